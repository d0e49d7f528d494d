"""The lineages of differences to twins, and where their tests stand.

The differences' buckets lie in ``buckets`` under a lineage of their own: a number below 0, as adjusted scores
have. So they are rolled up, kept and read as windows like any other, and releases that know nothing of twins
do not see them.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.store.processes import PROCESS, PROCESS_PLACES, PROCESS_SET, process_of, process_row
from monitor.values.checks import utc
from monitor.values.twin import TwinState


def twin_lineage_of(c: Connection, lineage_id: int) -> int:
    """The number, below 0, of the differences between this lineage's scores and their twins'."""
    find = text("SELECT twin_id FROM monitor_data.twin_lineages WHERE lineage_id = :lineage_id")
    found: int | None = c.scalar(find, {"lineage_id": lineage_id})
    if found is None:
        c.execute(
            text("""
                INSERT INTO monitor_data.twin_lineages (lineage_id) VALUES (:lineage_id)
                ON CONFLICT DO NOTHING
            """),
            {"lineage_id": lineage_id},
        )
        found = c.scalar(find, {"lineage_id": lineage_id})
    assert found is not None
    return found


def load_twins(c: Connection, pack_id: str) -> dict[tuple[int, str], TwinState]:
    """Where the tests of the pack's differences stand, by feature index and segment."""
    rows = c.execute(
        text(f"""
            SELECT feature, segment, started_at, last_bucket, n, log_values, evidence, evidence_limit,
                {", ".join(PROCESS)}
            FROM monitor_data.twin_detectors
            WHERE pack_id = :pack_id
        """),
        {"pack_id": pack_id},
    )
    return {
        (row.feature, row.segment): TwinState(
            feature=row.feature,
            segment=row.segment,
            started_at=utc(row.started_at),
            last_bucket=utc(row.last_bucket),
            n=row.n,
            log_values=tuple(row.log_values),
            evidence=row.evidence,
            limit=row.evidence_limit,
            process=process_of(row._mapping),
        )
        for row in rows
    }


def save_twins(c: Connection, pack_id: str, states: Iterable[TwinState]) -> None:
    """Store the states, in key order; one that is behind what is stored is dropped."""
    rows = [
        {
            "pack_id": pack_id,
            "feature": state.feature,
            "segment": clean(state.segment),
            "started_at": state.started_at,
            "last_bucket": state.last_bucket,
            "n": state.n,
            "log_values": list(state.log_values),
            "evidence": state.evidence,
            "evidence_limit": state.limit,
            **process_row(state.process),
        }
        for state in sorted(states, key=lambda one: (one.feature, one.segment))
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.twin_detectors AS kept
                    (pack_id, feature, segment, started_at, last_bucket, n, log_values, evidence,
                     evidence_limit, {", ".join(PROCESS)})
                VALUES
                    (:pack_id, :feature, :segment, :started_at, :last_bucket, :n, :log_values,
                     :evidence, :evidence_limit, {PROCESS_PLACES})
                ON CONFLICT (pack_id, feature, segment) DO UPDATE SET
                    started_at = excluded.started_at, last_bucket = excluded.last_bucket,
                    n = excluded.n, log_values = excluded.log_values,
                    evidence = excluded.evidence, evidence_limit = excluded.evidence_limit,
                    {PROCESS_SET}
                WHERE kept.last_bucket <= excluded.last_bucket
            """),
            rows,
        )
