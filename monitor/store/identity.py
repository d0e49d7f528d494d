"""What the weighed answers add up to, and where the test of their identity stands.

A writer's rows are its own (``source`` is its partition), and they only ever grow by adding, so a sum
over any interval is right whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.values.arrays import Doubles
from monitor.values.checks import utc
from monitor.values.surprise import IdentityBucket


def add_identity(c: Connection, lineage_id: int, buckets: Iterable[IdentityBucket]) -> None:
    """Add the buckets to what is stored, in key order, so that writers cannot deadlock."""
    rows = [
        {
            "bucket_start": bucket.bucket_start,
            "lineage_id": lineage_id,
            "segment": clean(bucket.segment),
            "source": clean(bucket.source),
            "served": clean(bucket.served),
            "n": bucket.n,
            "tokens": bucket.tokens,
            "excess": bucket.excess,
            "variance": bucket.variance,
            "off_support": bucket.off_support,
            "given_away": bucket.given_away,
            "wagers": bucket.wagers.tolist(),
        }
        for bucket in buckets
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (row["bucket_start"], row["segment"], row["source"], row["served"]))
    c.execute(
        text("""
            INSERT INTO monitor_data.identity_buckets AS kept
                (bucket_start, lineage_id, segment, source, served, n, tokens, excess, variance,
                 off_support, given_away, wagers)
            VALUES
                (:bucket_start, :lineage_id, :segment, :source, :served, :n, :tokens, :excess,
                 :variance, :off_support, :given_away, :wagers)
            ON CONFLICT (bucket_start, lineage_id, segment, source, served) DO UPDATE SET
                n = kept.n + excluded.n,
                tokens = kept.tokens + excluded.tokens,
                excess = kept.excess + excluded.excess,
                variance = kept.variance + excluded.variance,
                off_support = kept.off_support + excluded.off_support,
                given_away = kept.given_away + excluded.given_away,
                wagers = (
                    SELECT array_agg(a + b ORDER BY place)
                    FROM unnest(kept.wagers, excluded.wagers) WITH ORDINALITY AS both (a, b, place))
        """),
        rows,
    )
