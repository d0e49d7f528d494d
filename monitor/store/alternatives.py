"""What weighed answers say for each registered alternative, and where the bets on it stand.

As `monitor.store.identity`: a writer's rows are its own and only ever grow by adding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.store.identity import state_of
from monitor.store.processes import PROCESS, PROCESS_PLACES, PROCESS_SET, process_row
from monitor.values.checks import utc
from monitor.values.likeness import Likeness, LikenessBucket
from monitor.values.surprise import IdentityState

_SUMS: Final = ("n", "nearer", "tokens", "excess", "variance")
_LISTS: Final = ("likelihoods", "wagers")
_KEY: Final = "bucket_start, lineage_id, segment, source, served, alternative"
_OF_PACK: Final = """lineage_id = ANY(
    ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))"""
_SUMMED: Final = ", ".join(
    (
        *(
            f"sum({name}){'' if name in ('excess', 'variance') else '::bigint'} AS {name}"
            for name in _SUMS
        ),
        *(f"array_agg({name}) AS {name}" for name in _LISTS),
    )
)


def add_likenesses(c: Connection, lineage_id: int, buckets: Iterable[LikenessBucket]) -> None:
    """Add the buckets to what is stored, in key order, so that writers cannot deadlock."""
    rows = [
        {
            "bucket_start": bucket.bucket_start,
            "lineage_id": lineage_id,
            "segment": clean(bucket.segment),
            "source": clean(bucket.source),
            "served": clean(bucket.served),
            "alternative": clean(bucket.alternative),
            **{name: getattr(bucket.likeness, name) for name in _SUMS},
            **{name: getattr(bucket.likeness, name).tolist() for name in _LISTS},
        }
        for bucket in buckets
    ]
    if not rows:
        return
    rows.sort(
        key=lambda row: tuple(
            row[name] for name in ("bucket_start", "segment", "source", "served", "alternative")
        )
    )
    added = [f"{name} = kept.{name} + excluded.{name}" for name in _SUMS]
    added += [
        f"""{name} = (
            SELECT array_agg(a + b ORDER BY place)
            FROM unnest(kept.{name}, excluded.{name}) WITH ORDINALITY AS pair (a, b, place))"""
        for name in _LISTS
    ]
    c.execute(
        text(f"""
            INSERT INTO monitor_data.alternative_buckets AS kept
                ({_KEY}, {", ".join((*_SUMS, *_LISTS))})
            VALUES
                (:bucket_start, :lineage_id, :segment, :source, :served, :alternative,
                 {", ".join(f":{name}" for name in (*_SUMS, *_LISTS))})
            ON CONFLICT ({_KEY}) DO UPDATE SET {", ".join(added)}
        """),
        rows,
    )


def new_likenesses(
    c: Connection, pack_id: str, after: datetime, before: datetime
) -> list[LikenessBucket]:
    """The buckets that start in (after, before), summed over writers: one for each interval and stream."""
    rows = c.execute(
        text(f"""
            SELECT bucket_start, segment, served, alternative, {_SUMMED}
            FROM monitor_data.alternative_buckets
            WHERE bucket_start > :after AND bucket_start < :before AND {_OF_PACK}
            GROUP BY bucket_start, segment, served, alternative
            ORDER BY bucket_start, segment, served, alternative
        """),
        {"pack_id": pack_id, "after": after, "before": before},
    )
    return [
        LikenessBucket(
            bucket_start=utc(row["bucket_start"]),
            segment=row["segment"],
            source="",
            served=row["served"],
            alternative=row["alternative"],
            likeness=_likeness(row),
        )
        for row in rows.mappings()
    ]


def likenesses(
    c: Connection, pack_id: str, start: datetime, end: datetime
) -> dict[str, dict[str, Likeness]]:
    """What the answers of [start, end) say, by segment and alternative."""
    rows = c.execute(
        text(f"""
            SELECT segment, alternative, {_SUMMED}
            FROM monitor_data.alternative_buckets
            WHERE bucket_start >= :start AND bucket_start < :end AND {_OF_PACK}
            GROUP BY segment, alternative
        """),
        {"pack_id": pack_id, "start": start, "end": end},
    )
    found: dict[str, dict[str, Likeness]] = defaultdict(dict)
    for row in rows.mappings():
        found[row["segment"]][row["alternative"]] = _likeness(row)
    return dict(found)


def _likeness(row: Any) -> Likeness:
    return Likeness(
        **{name: row[name] for name in _SUMS},
        **{name: np.array(row[name], dtype=np.float64).sum(axis=0) for name in _LISTS},
    )


def load_alternatives(c: Connection, pack_id: str) -> dict[tuple[str, str, str], IdentityState]:
    """Where the bets on the pack's alternatives stand, by segment, served model and alternative."""
    rows = c.execute(
        text(f"""
            SELECT segment, served, alternative, started_at, last_bucket, n, log_values, evidence,
                evidence_limit, {", ".join(PROCESS)}
            FROM monitor_data.alternative_detectors
            WHERE pack_id = :pack_id
        """),
        {"pack_id": pack_id},
    )
    states = (state_of(row, row.alternative) for row in rows)
    return {state.stream: state for state in states}


def save_alternatives(c: Connection, pack_id: str, states: Iterable[IdentityState]) -> None:
    """Store the states, in key order; one that is behind what is stored is dropped."""
    rows = [
        {
            "pack_id": pack_id,
            "segment": clean(state.segment),
            "served": clean(state.served),
            "alternative": clean(state.alternative),
            "started_at": state.started_at,
            "last_bucket": state.last_bucket,
            "n": state.n,
            "log_values": list(state.log_values),
            "evidence": state.evidence,
            "evidence_limit": state.limit,
            **process_row(state.process),
        }
        for state in sorted(states, key=lambda one: one.stream)
    ]
    if rows:
        c.execute(
            text(f"""
                INSERT INTO monitor_data.alternative_detectors AS kept
                    (pack_id, segment, served, alternative, started_at, last_bucket, n, log_values,
                     evidence, evidence_limit, {", ".join(PROCESS)})
                VALUES
                    (:pack_id, :segment, :served, :alternative, :started_at, :last_bucket, :n,
                     :log_values, :evidence, :evidence_limit, {PROCESS_PLACES})
                ON CONFLICT (pack_id, segment, served, alternative) DO UPDATE SET
                    started_at = excluded.started_at, last_bucket = excluded.last_bucket,
                    n = excluded.n, log_values = excluded.log_values,
                    evidence = excluded.evidence, evidence_limit = excluded.evidence_limit,
                    {PROCESS_SET}
                WHERE kept.last_bucket <= excluded.last_bucket
            """),
            rows,
        )
