"""How likely answers are of which nobody says how they were drawn, and what an approved baseline tells the weighing.

A writer's rows are its own (``source`` is its partition), and they only ever grow by adding.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.values.likelihood import EstimatedLaw, LawBucket, Likelihoods, law_from
from monitor.values.numerics import Numerics


def add_laws(c: Connection, lineage_id: int, buckets: Iterable[LawBucket]) -> None:
    """Add the buckets to what is stored, in key order, so that writers cannot deadlock."""
    rows = [
        {
            "bucket_start": bucket.bucket_start,
            "lineage_id": lineage_id,
            "source": clean(bucket.source),
            "served": clean(bucket.served),
            "n": bucket.sums.n,
            "tokens": bucket.sums.tokens,
            "logs": bucket.sums.logs.tolist(),
            "squares": bucket.sums.squares.tolist(),
        }
        for bucket in buckets
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (row["bucket_start"], row["source"], row["served"]))
    c.execute(
        text("""
            INSERT INTO monitor_data.law_buckets AS kept
                (bucket_start, lineage_id, source, served, n, tokens, logs, squares)
            VALUES (:bucket_start, :lineage_id, :source, :served, :n, :tokens, :logs, :squares)
            ON CONFLICT (bucket_start, lineage_id, source, served) DO UPDATE SET
                n = kept.n + excluded.n, tokens = kept.tokens + excluded.tokens,
                logs = (
                    SELECT array_agg(a + b ORDER BY place)
                    FROM unnest(kept.logs, excluded.logs) WITH ORDINALITY AS pair (a, b, place)),
                squares = (
                    SELECT array_agg(a + b ORDER BY place)
                    FROM unnest(kept.squares, excluded.squares) WITH ORDINALITY AS pair (a, b, place))
        """),
        rows,
    )


def likelihoods_between(c: Connection, pack_id: str, start: datetime, end: datetime) -> Likelihoods:
    """What the intervals add up to that begin in [start, end), of all served models."""
    rows = c.execute(
        text("""
            SELECT n, tokens, logs, squares
            FROM monitor_data.law_buckets
            WHERE bucket_start >= :start AND bucket_start < :end AND lineage_id = ANY(
                ARRAY(SELECT lineage_id FROM monitor_data.lineages WHERE pack_id = :pack_id))
        """),
        {"pack_id": pack_id, "start": start, "end": end},
    )
    found = Likelihoods()
    for row in rows:
        found += Likelihoods(
            n=row.n,
            tokens=row.tokens,
            logs=np.array(row.logs, dtype=np.float64),
            squares=np.array(row.squares, dtype=np.float64),
        )
    return found


def law_in_force(c: Connection, pack_id: str) -> EstimatedLaw | None:
    """That of the pack's approved baseline; None where there is none, or where it estimated none."""
    stored = _of_approved(c, "law", pack_id)
    law = law_from(stored) if stored else None
    return law if isinstance(law, EstimatedLaw) else None


def numerics_in_force(c: Connection, pack_id: str) -> Numerics | None:
    """Those of the pack's approved baseline; None where there is none, or where none were measured."""
    stored = _of_approved(c, "numerics", pack_id)
    return Numerics(**stored) if stored else None


def _of_approved(c: Connection, column: Literal["law", "numerics"], pack_id: str) -> Any:
    return c.scalar(
        text(f"""
            SELECT {column} FROM monitor_data.baselines
            WHERE pack_id = :pack_id AND status = 'approved'
        """),
        {"pack_id": pack_id},
    )
