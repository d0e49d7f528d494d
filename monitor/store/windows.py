"""Windows and newly closed buckets: sums over what `monitor.store.buckets` keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, RowMapping, text

from monitor.store.border import clean
from monitor.store.buckets import HOUR, KEPT_FROM, SUMS, hour_of
from monitor.values.checks import utc
from monitor.values.drift import Window
from monitor.values.scores import Bucket

_FIELDS: Final = "feature, segment, n, tail_count, tail_n, total, total_squares, histogram"

_MINE: Final = """lineage_id = ANY(
    ARRAY(
        SELECT lineage_id FROM monitor_data.lineages
        WHERE pack_id = :pack_id AND CAST(:adjusted_by AS text) IS NULL AND NOT :of_twins
        UNION ALL
        SELECT twin_id FROM monitor_data.twin_lineages JOIN monitor_data.lineages USING (lineage_id)
        WHERE pack_id = :pack_id AND :of_twins
        UNION ALL
        SELECT adjusted_id FROM monitor_data.adjusted_lineages
        WHERE baseline_id = CAST(:adjusted_by AS text)))
    AND (CAST(:features AS smallint[]) IS NULL OR feature = ANY(CAST(:features AS smallint[])))
    AND (CAST(:segments AS text[]) IS NULL OR segment = ANY(CAST(:segments AS text[])))"""

_TAIL_KNOWN: Final = """(sum(tail_n) = sum(n) OR feature <> ALL(
    ARRAY(SELECT ordinal FROM monitor_data.pack_features WHERE pack_id = :pack_id AND sign = -1)))
    AS tail_known"""
"""Whether all of a row's tail was counted on the feature's side; see `monitor.store.buckets`."""

_READ_WINDOW: Final = text(f"""
    WITH touched AS MATERIALIZED (
        SELECT DISTINCT hour, lineage_id
        FROM monitor_data.touched_hours
        WHERE hour >= :first_hour AND hour < :last_hour
    ),
    part AS (
        SELECT {_FIELDS}
        FROM monitor_data.buckets_hourly AS hourly
        WHERE bucket_start >= :first_hour AND bucket_start < :last_hour AND {_MINE}
            AND NOT EXISTS (
                SELECT FROM touched
                WHERE hour = hourly.bucket_start AND touched.lineage_id = hourly.lineage_id
                    AND hour >= {KEPT_FROM})
        UNION ALL
        SELECT {_FIELDS}
        FROM (SELECT hour, lineage_id AS touched_lineage_id FROM touched) AS touched
        JOIN monitor_data.buckets AS bucket
            ON bucket.bucket_start >= hour AND bucket.bucket_start < hour + interval '1 hour'
            AND bucket.lineage_id = touched_lineage_id
        WHERE {_MINE}
        UNION ALL
        SELECT {_FIELDS}
        FROM monitor_data.buckets
        WHERE bucket_start >= :start AND bucket_start < :first_hour AND {_MINE}
        UNION ALL
        SELECT {_FIELDS}
        FROM monitor_data.buckets
        WHERE bucket_start >= :last_hour AND bucket_start < :end AND {_MINE}
    )
    SELECT feature, segment, {SUMS}, {_TAIL_KNOWN}
    FROM part GROUP BY feature, segment ORDER BY feature, segment
""")


def read_windows(
    c: Connection,
    pack_id: str,
    ends: Iterable[tuple[datetime, datetime]],
    *,
    features: Sequence[int] | None = None,
    segments: Sequence[str] | None = None,
    adjusted_by: str | None = None,
    of_twins: bool = False,
) -> list[Window]:
    """The windows [start, end) of every feature and segment with data, all lineages of the pack.

    Of raw scores, of those that the baseline ``adjusted_by`` adjusted, or of the differences to twins.
    In the order of ``ends``, then feature, then segment. A bucket belongs to the window that its
    start lies in. Part hours from before fine buckets were dropped are missing.
    """
    windows: list[Window] = []
    for given_start, given_end in ends:
        start, end = utc(given_start), utc(given_end)
        first_hour = hour_of(start + HOUR - timedelta(microseconds=1))
        last_hour = max(first_hour, hour_of(end))
        if first_hour >= end:  # within one hour: there is no whole one
            first_hour = last_hour = end
        rows = c.execute(
            _READ_WINDOW,
            {
                "pack_id": pack_id,
                "start": start,
                "end": end,
                "adjusted_by": adjusted_by,
                "of_twins": of_twins,
                "first_hour": first_hour,
                "last_hour": last_hour,
                "features": list(features) if features is not None else None,
                "segments": [clean(s) for s in segments] if segments is not None else None,
            },
        )
        windows.extend(_window(row, start, end) for row in rows.mappings())
    return windows


def _window(row: RowMapping, start: datetime, end: datetime) -> Window:
    return Window(
        feature=row["feature"], segment=row["segment"], start=start, end=end, **_sums(row)
    )


def _sums(row: RowMapping) -> dict[str, Any]:
    return {
        "n": row["n"],
        "tail_count": row["tail_count"] if row["tail_known"] else None,
        "total": row["total"],
        "total_squares": row["total_squares"],
        "histogram": np.array(row["histogram"], dtype=np.int64),
    }


EVERY_SOURCE: Final = "*"


def new_buckets(
    c: Connection,
    pack_id: str,
    after: datetime,
    before: datetime,
    *,
    features: Sequence[int] | None = None,
    segments: Sequence[str] | None = None,
    adjusted_by: str | None = None,
    of_twins: bool = False,
) -> list[Bucket]:
    """Fine buckets with ``after < bucket_start < before``, merged over sources and lineages, in order.

    Of raw or adjusted scores, or differences, as in `read_windows`. ``source`` of a merged bucket is `EVERY_SOURCE`.
    """
    rows = c.execute(
        text(f"""
            SELECT bucket_start, bucket_seconds, feature, segment, {SUMS}, {_TAIL_KNOWN}
            FROM monitor_data.buckets
            WHERE bucket_start > :after AND bucket_start < :before AND {_MINE}
            GROUP BY bucket_start, bucket_seconds, feature, segment
            ORDER BY bucket_start, feature, segment
        """),
        {
            "pack_id": pack_id,
            "adjusted_by": adjusted_by,
            "of_twins": of_twins,
            "after": utc(after),
            "before": utc(before),
            "features": list(features) if features is not None else None,
            "segments": [clean(s) for s in segments] if segments is not None else None,
        },
    )
    return [
        Bucket(
            bucket_start=utc(row["bucket_start"]),
            bucket_seconds=row["bucket_seconds"],
            feature=row["feature"],
            segment=row["segment"],
            source=EVERY_SOURCE,
            **_sums(row),
        )
        for row in rows.mappings()
    ]
