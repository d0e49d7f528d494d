"""Additive statistics: upserted by the worker, rolled up to hours, summed to windows.

How nothing is counted twice or missed. Whoever adds to ``buckets`` first upserts a row of
``touched_hours`` (hour, lineage, source), in the same transaction: that row is the truth about which
hours ``buckets_hourly`` does not tell yet. Readers take an hour from ``buckets_hourly`` unless it is
touched, then from ``buckets``; so a window is exact at any time. `roll_up` deletes touched rows and
writes the hours' sums in one transaction; a row that a writer holds is skipped, and a writer that
comes later waits and touches the hour anew.

Hours before ``retention.kept_from`` have lost their fine buckets. A record that comes so late is
*added* to its hourly row and its fine buckets are deleted.

Which tails are known. ``tail_n`` says of how many of a row's ``n`` prompts ``tail_count`` was counted by
`Directed.in_tail`. Releases before revision 0003 leave it NULL, or as it was while they add to the
row, and counted the tail of falling features on the wrong side. So a falling feature's tail is known
where ``tail_n = n``, whatever old and new workers did to the row in turn; a rising one's always is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.store.literals import array_literal
from monitor.values.checks import utc
from monitor.values.scores import SCORE_BINS, Bucket, tail_sum

HOUR: Final = timedelta(hours=1)

HOURS_A_CALL: Final = 500
"""Touched rows rolled up in one transaction; a backlog takes several calls."""

KEPT_FROM: Final = """coalesce(
    (SELECT kept_from FROM monitor_data.retention WHERE table_name = 'buckets'), '-infinity')"""


def _each_bin(expression: str) -> str:
    """``ARRAY[…]`` with ``expression`` for every bin; 50 times faster than unnesting."""
    return "ARRAY[" + ", ".join(expression.format(i=i) for i in range(1, SCORE_BINS + 1)) + "]"


SUMS: Final = f"""sum(n)::bigint AS n, sum(tail_count)::bigint AS tail_count,
    sum(tail_n)::bigint AS tail_n, sum(total) AS total, sum(total_squares) AS total_squares,
    {_each_bin("sum(histogram[{i}])")} AS histogram"""

_ADD: Final = """n = {table}.n + excluded.n,
    tail_count = {table}.tail_count + excluded.tail_count,
    tail_n = {table}.tail_n + excluded.tail_n,
    total = {table}.total + excluded.total,
    total_squares = {table}.total_squares + excluded.total_squares,
    histogram = {histogram}"""


def _add(table: str) -> str:
    histogram = _each_bin(f"{table}.histogram[{{i}}] + excluded.histogram[{{i}}]")
    return _ADD.format(table=table, histogram=histogram)


def add_buckets(c: Connection, lineage_id: int, buckets: Iterable[Bucket]) -> None:
    """Add the buckets to what is stored. Rows are taken in key order, so writers cannot deadlock."""
    merged = _merged(buckets)
    if not merged:
        return
    _touch_hours(c, lineage_id, merged)
    _upsert_buckets(c, lineage_id, merged)


_Key = tuple[datetime, int, str, str, int]


def _merged(buckets: Iterable[Bucket]) -> list[tuple[_Key, Bucket]]:
    """One bucket per key, sorted: two segments may have become one when their text was cut."""
    merged: dict[_Key, Bucket] = {}
    for bucket in buckets:
        key = (
            utc(bucket.bucket_start),
            bucket.feature,
            clean(bucket.segment),
            clean(bucket.source),
            bucket.bucket_seconds,
        )
        other = merged.get(key)
        merged[key] = _sum(other, bucket) if other else bucket
    return sorted(merged.items(), key=lambda item: item[0])


def _sum(a: Bucket, b: Bucket) -> Bucket:
    return Bucket(
        bucket_start=a.bucket_start,
        bucket_seconds=a.bucket_seconds,
        feature=a.feature,
        segment=a.segment,
        source=a.source,
        n=a.n + b.n,
        total=a.total + b.total,
        total_squares=a.total_squares + b.total_squares,
        histogram=a.histogram + b.histogram,
        tail_count=tail_sum((a.tail_count, b.tail_count)),
    )


def _touch_hours(c: Connection, lineage_id: int, merged: Sequence[tuple[_Key, Bucket]]) -> None:
    """Say that these hours are not what ``buckets_hourly`` tells. DO UPDATE, for its row lock."""
    touched = sorted({(hour_of(key[0]), key[3]) for key, _ in merged})
    c.execute(
        text("""
            INSERT INTO monitor_data.touched_hours (hour, lineage_id, source)
            SELECT hour, :lineage_id, source
            FROM unnest(CAST(:hours AS timestamptz[]), CAST(:sources AS text[]))
                AS touched (hour, source)
            ON CONFLICT (hour, lineage_id, source) DO UPDATE SET touched_at = now()
        """),
        {
            "lineage_id": lineage_id,
            "hours": [hour for hour, _ in touched],
            "sources": [source for _, source in touched],
        },
    )


_UPSERT_BUCKETS: Final = text(f"""
    INSERT INTO monitor_data.buckets AS kept
        (bucket_start, lineage_id, feature, segment, source, bucket_seconds,
         n, tail_count, tail_n, total, total_squares, histogram)
    SELECT start, :lineage_id, feature, segment, source, seconds, n, tail_count, tail_n, total, squares,
        CAST(histogram AS int[])
    FROM unnest(
        CAST(:starts AS timestamptz[]), CAST(:features AS smallint[]), CAST(:segments AS text[]),
        CAST(:sources AS text[]), CAST(:seconds AS int[]), CAST(:ns AS bigint[]),
        CAST(:tail_counts AS bigint[]), CAST(:tail_ns AS bigint[]), CAST(:totals AS float8[]),
        CAST(:squares AS float8[]), CAST(:histograms AS text[]))
        WITH ORDINALITY
        AS given (start, feature, segment, source, seconds, n, tail_count, tail_n, total, squares,
            histogram, row)
    ORDER BY row
    ON CONFLICT (bucket_start, lineage_id, feature, segment, source, bucket_seconds)
    DO UPDATE SET {_add("kept")}
""")


def _upsert_buckets(c: Connection, lineage_id: int, merged: Sequence[tuple[_Key, Bucket]]) -> None:
    keys = [key for key, _ in merged]
    values = [bucket for _, bucket in merged]
    c.execute(
        _UPSERT_BUCKETS,
        {
            "lineage_id": lineage_id,
            "starts": array_literal(key[0] for key in keys),
            "features": array_literal(key[1] for key in keys),
            "segments": array_literal(key[2] for key in keys),
            "sources": array_literal(key[3] for key in keys),
            "seconds": array_literal(key[4] for key in keys),
            "ns": array_literal(bucket.n for bucket in values),
            "tail_counts": array_literal(int(bucket.tail_count or 0) for bucket in values),
            "tail_ns": array_literal(
                None if bucket.tail_count is None else bucket.n for bucket in values
            ),
            "totals": array_literal(float(bucket.total) for bucket in values),
            "squares": array_literal(float(bucket.total_squares) for bucket in values),
            "histograms": _histograms(values),
        },
    )


def _histograms(buckets: Sequence[Bucket]) -> str:
    """Each histogram as the text of an array; an array of arrays could not be unnested by row."""
    each = (",".join(map(str, bucket.histogram.tolist())) for bucket in buckets)
    return "{" + ",".join(f'"{{{bins}}}"' for bins in each) + "}"


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def roll_up(c: Connection, now: datetime) -> int:
    """Bring ``buckets_hourly`` up to date for hours that have ended; the number of hours written.

    Idempotent. Call again while it returns a number above 0: one call takes a bounded number.
    """
    claimed = _claim_hours(c, hour_of(utc(now)))
    if not claimed:
        return 0
    kept_from = c.scalar(text(f"SELECT {KEPT_FROM} > '-infinity'")) and c.scalar(
        text(f"SELECT {KEPT_FROM}")
    )
    whole = {(hour, lineage) for hour, lineage, _ in claimed if not kept_from or hour >= kept_from}
    late = [row for row in claimed if kept_from and row[0] < kept_from]
    if whole:
        _write_hours(c, sorted(whole))
    if late:
        _add_late(c, late)
    return len(whole) + len({(hour, lineage) for hour, lineage, _ in late})


def _claim_hours(c: Connection, before: datetime) -> list[tuple[datetime, int, str]]:
    """Take touched rows of ended hours away, but those that a writer holds."""
    rows = c.execute(
        text("""
            WITH claimed AS (
                SELECT hour, lineage_id, source
                FROM monitor_data.touched_hours
                WHERE hour < :before
                ORDER BY hour, lineage_id, source
                LIMIT :most
                FOR UPDATE SKIP LOCKED
            )
            DELETE FROM monitor_data.touched_hours AS touched
            USING claimed
            WHERE (touched.hour, touched.lineage_id, touched.source)
                = (claimed.hour, claimed.lineage_id, claimed.source)
            RETURNING touched.hour, touched.lineage_id, touched.source
        """),
        {"before": before, "most": HOURS_A_CALL},
    )
    return [(utc(row.hour), row.lineage_id, row.source) for row in rows]


_WRITE_HOURS: Final = text(f"""
    INSERT INTO monitor_data.buckets_hourly AS kept
        (bucket_start, lineage_id, feature, segment, n, tail_count, tail_n, total, total_squares,
         histogram)
    SELECT hour, bucket.lineage_id, feature, segment, {SUMS}
    FROM unnest(CAST(:hours AS timestamptz[]), CAST(:lineages AS int[])) AS claimed (hour, lineage_id)
    JOIN monitor_data.buckets AS bucket
        ON bucket.bucket_start >= hour AND bucket.bucket_start < hour + interval '1 hour'
        AND bucket.lineage_id = claimed.lineage_id
    GROUP BY hour, bucket.lineage_id, feature, segment
    ORDER BY hour, bucket.lineage_id, feature, segment
    ON CONFLICT (bucket_start, lineage_id, feature, segment) DO UPDATE SET
        n = excluded.n, tail_count = excluded.tail_count, tail_n = excluded.tail_n,
        total = excluded.total, total_squares = excluded.total_squares,
        histogram = excluded.histogram
""")


def _write_hours(c: Connection, hours: Sequence[tuple[datetime, int]]) -> None:
    """Write the sums of whole hours anew, from all fine buckets."""
    c.execute(
        _WRITE_HOURS,
        {"hours": [hour for hour, _ in hours], "lineages": [lineage for _, lineage in hours]},
    )


_ADD_LATE: Final = text(f"""
    WITH moved AS (
        DELETE FROM monitor_data.buckets AS bucket
        USING unnest(CAST(:hours AS timestamptz[]), CAST(:lineages AS int[]), CAST(:sources AS text[]))
            AS claimed (hour, lineage_id, source)
        WHERE bucket.bucket_start >= hour AND bucket.bucket_start < hour + interval '1 hour'
            AND bucket.lineage_id = claimed.lineage_id AND bucket.source = claimed.source
        RETURNING hour, bucket.lineage_id, feature, segment,
            n, tail_count, tail_n, total, total_squares, histogram
    )
    INSERT INTO monitor_data.buckets_hourly AS kept
        (bucket_start, lineage_id, feature, segment, n, tail_count, tail_n, total, total_squares,
         histogram)
    SELECT hour, lineage_id, feature, segment, {SUMS}
    FROM moved
    GROUP BY hour, lineage_id, feature, segment
    ORDER BY hour, lineage_id, feature, segment
    ON CONFLICT (bucket_start, lineage_id, feature, segment) DO UPDATE SET {_add("kept")}
""")


def _add_late(c: Connection, rows: Sequence[tuple[datetime, int, str]]) -> None:
    """Add what came after the fine buckets had been dropped, and drop it too."""
    c.execute(
        _ADD_LATE,
        {
            "hours": [row[0] for row in rows],
            "lineages": [row[1] for row in rows],
            "sources": [row[2] for row in rows],
        },
    )
