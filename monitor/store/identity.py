"""What the weighed answers add up to, and where the test of their identity stands.

A writer's rows are its own (``source`` is its partition), and they only ever grow by adding, so a sum
over any interval is right whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.store.processes import PROCESS, PROCESS_PLACES, PROCESS_SET, process_of, process_row
from monitor.values.checks import utc
from monitor.values.surprise import IdentityBucket, IdentityState, Tally

_TALLY: Final = (
    *("n", "left_out", "tokens", "excess", "variance", "off_support"),
    *("counted_tokens", "counted_excess", "counted_variance", "greedy_tokens", "given_away"),
)
_REAL: Final = ("excess", "variance", "counted_excess", "counted_variance")
_OF_PACK: Final = """lineage_id = ANY(
    ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))"""
_SUMMED: Final = ", ".join(
    f"sum({name}){'' if name in _REAL else '::bigint'} AS {name}" for name in _TALLY
)


def add_identity(c: Connection, lineage_id: int, buckets: Iterable[IdentityBucket]) -> None:
    """Add the buckets to what is stored, in key order, so that writers cannot deadlock."""
    rows = [
        {
            "bucket_start": bucket.bucket_start,
            "lineage_id": lineage_id,
            "segment": clean(bucket.segment),
            "source": clean(bucket.source),
            "served": clean(bucket.served),
            **{name: getattr(bucket.tally, name) for name in _TALLY},
            "wagers": bucket.wagers.tolist(),
        }
        for bucket in buckets
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (row["bucket_start"], row["segment"], row["source"], row["served"]))
    c.execute(
        text(f"""
            INSERT INTO monitor_data.identity_buckets AS kept
                (bucket_start, lineage_id, segment, source, served, {", ".join(_TALLY)}, wagers)
            VALUES
                (:bucket_start, :lineage_id, :segment, :source, :served,
                 {", ".join(f":{name}" for name in _TALLY)}, :wagers)
            ON CONFLICT (bucket_start, lineage_id, segment, source, served) DO UPDATE SET
                {", ".join(f"{name} = kept.{name} + excluded.{name}" for name in _TALLY)},
                wagers = (
                    SELECT array_agg(a + b ORDER BY place)
                    FROM unnest(kept.wagers, excluded.wagers) WITH ORDINALITY AS pair (a, b, place))
        """),
        rows,
    )


def new_identity(
    c: Connection, pack_id: str, after: datetime, before: datetime
) -> list[IdentityBucket]:
    """The buckets that start in (after, before), summed over writers: one for each interval and stream."""
    rows = c.execute(
        text(f"""
            SELECT bucket_start, segment, served, array_agg(wagers) AS wagers, {_SUMMED}
            FROM monitor_data.identity_buckets
            WHERE bucket_start > :after AND bucket_start < :before AND {_OF_PACK}
            GROUP BY bucket_start, segment, served
            ORDER BY bucket_start, segment, served
        """),
        {"pack_id": pack_id, "after": after, "before": before},
    )
    return [
        IdentityBucket(
            bucket_start=utc(row["bucket_start"]),
            segment=row["segment"],
            source="",
            served=row["served"],
            tally=_tally(row),
            wagers=np.array(row["wagers"], dtype=np.float64).sum(axis=0),
        )
        for row in rows.mappings()
    ]


def tallies(c: Connection, pack_id: str, start: datetime, end: datetime) -> dict[str, Tally]:
    """What the answers of [start, end) add up to, by segment."""
    rows = c.execute(
        text(f"""
            SELECT segment, {_SUMMED}
            FROM monitor_data.identity_buckets
            WHERE bucket_start >= :start AND bucket_start < :end AND {_OF_PACK}
            GROUP BY segment
        """),
        {"pack_id": pack_id, "start": start, "end": end},
    )
    return {row["segment"]: _tally(row) for row in rows.mappings()}


def _tally(row: Any) -> Tally:
    return Tally(**{name: row[name] for name in _TALLY})


def load_identity(c: Connection, pack_id: str) -> dict[tuple[str, str, str], IdentityState]:
    """Where the tests of the pack's served models stand that bet on nobody by name, by `IdentityState.stream`."""
    rows = c.execute(
        text(f"""
            SELECT segment, served, started_at, last_bucket, n, log_values, evidence, evidence_limit,
                {", ".join(PROCESS)}
            FROM monitor_data.identity_detectors
            WHERE pack_id = :pack_id
        """),
        {"pack_id": pack_id},
    )
    states = map(state_of, rows)
    return {state.stream: state for state in states}


def state_of(row: Any, alternative: str = "") -> IdentityState:
    """A row of the detectors: of this module's, or of those that bet on an ``alternative``."""
    return IdentityState(
        segment=row.segment,
        served=row.served,
        alternative=alternative,
        started_at=utc(row.started_at),
        last_bucket=utc(row.last_bucket),
        n=row.n,
        log_values=tuple(row.log_values),
        evidence=row.evidence,
        limit=row.evidence_limit,
        process=process_of(row._mapping),
    )


def save_identity(c: Connection, pack_id: str, states: Iterable[IdentityState]) -> None:
    """Store the states, in key order; one that is behind what is stored is dropped."""
    rows = [
        {
            "pack_id": pack_id,
            "segment": clean(state.segment),
            "served": clean(state.served),
            "started_at": state.started_at,
            "last_bucket": state.last_bucket,
            "n": state.n,
            "log_values": list(state.log_values),
            "evidence": state.evidence,
            "evidence_limit": state.limit,
            **process_row(state.process),
        }
        for state in sorted(states, key=lambda one: (one.segment, one.served))
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.identity_detectors AS kept
                    (pack_id, segment, served, started_at, last_bucket, n, log_values, evidence,
                     evidence_limit, {", ".join(PROCESS)})
                VALUES
                    (:pack_id, :segment, :served, :started_at, :last_bucket, :n, :log_values,
                     :evidence, :evidence_limit, {PROCESS_PLACES})
                ON CONFLICT (pack_id, segment, served) DO UPDATE SET
                    started_at = excluded.started_at, last_bucket = excluded.last_bucket,
                    n = excluded.n, log_values = excluded.log_values,
                    evidence = excluded.evidence, evidence_limit = excluded.evidence_limit,
                    {PROCESS_SET}
                WHERE kept.last_bucket <= excluded.last_bucket
            """),
            rows,
        )
