"""Partitions: made ahead, filled up from DEFAULT, dropped by retention.

Every partitioned table has a DEFAULT partition that takes what belongs to no other one: records that
are absurdly old or future-dated, and everything while nobody makes partitions. Rows of a day (or
month) that gets its partition later are moved there. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal

from sqlalchemy import Connection, text

from monitor.logs import get_logger
from monitor.settings import PostgresSettings

PartitionedTable = Literal[
    "scores",
    "dead_letters",
    "buckets",
    "buckets_hourly",
    "ingest_counts",
    "drifts",
    "identity_buckets",
    "alternative_buckets",
    "law_buckets",
]
log = get_logger(__name__)

HOUR: Final = timedelta(hours=1)
MOST_A_STEP: Final = 2
"""Partitions of one table that one call drops."""
LOCK_TIMEOUT: Final = "5s"
"""Longest wait for a table lock: whoever waits for one stops all writers behind it."""
OLDEST_FILLED_UP: Final = timedelta(days=400)
"""Rows older than this stay in DEFAULT: nobody needs a thousand partitions of absurd times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned:
    table: PartitionedTable
    column: str
    period: Literal["day", "month"]
    keep: str
    """Name of the `PostgresSettings` field that says how long its rows are kept."""
    storage: str = ""


PARTITIONED: Final = (
    Partitioned(table="scores", column="recorded_at", period="day", keep="keep_scores"),
    Partitioned(table="dead_letters", column="recorded_at", period="day", keep="keep_dead_letters"),
    Partitioned(
        table="buckets",
        column="bucket_start",
        period="day",
        keep="keep_fine_buckets",
        storage="WITH (fillfactor = 60)",  # rows are updated in place while their minute lasts
    ),
    Partitioned(table="buckets_hourly", column="bucket_start", period="month", keep="keep_buckets"),
    Partitioned(table="ingest_counts", column="bucket_start", period="month", keep="keep_buckets"),
    Partitioned(table="drifts", column="evaluated_at", period="month", keep="keep_drift"),
    Partitioned(
        table="identity_buckets", column="bucket_start", period="day", keep="keep_fine_buckets"
    ),
    Partitioned(
        table="alternative_buckets", column="bucket_start", period="day", keep="keep_fine_buckets"
    ),
    Partitioned(table="law_buckets", column="bucket_start", period="day", keep="keep_fine_buckets"),
)


def ensure_partitions(
    c: Connection, today: date, ahead_days: int, *, only: PartitionedTable | None = None
) -> tuple[str, ...]:
    """Make the partitions from yesterday to ``today + ahead_days``, and those that DEFAULT asks for.

    Of all tables, or ``only`` of one: beside writers, one in each transaction, or the two may wait for one
    another. The names of those that were new. Idempotent; concurrent calls wait for one another. A table lock
    that cannot be had soon raises `DatabaseUnavailable` at the transaction's border. Tables
    that the schema's revision does not have yet are passed over.
    """
    _take_turns(c)
    first = day_of(today) - timedelta(days=1)
    last = day_of(today) + timedelta(days=ahead_days)
    made: list[str] = []
    for parent in _chosen(only):
        if not _is_there(c, parent):
            continue
        existing = set(_partitions(c, parent))
        wanted = set(_starts(parent, first, last))
        wanted |= set(_starts_in_default(c, parent, first - OLDEST_FILLED_UP, last))
        for start in sorted(wanted - existing):
            made.append(_make(c, parent, start))
    return tuple(made)


def _is_there(c: Connection, parent: Partitioned) -> bool:
    name = f"monitor_data.{parent.table}"
    return c.scalar(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name}) is True


def _chosen(only: PartitionedTable | None) -> tuple[Partitioned, ...]:
    return tuple(parent for parent in PARTITIONED if only in (None, parent.table))


def day_of(moment: date) -> datetime:
    """Midnight (UTC) that begins the day."""
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC).date()
    return datetime.combine(moment, time(), UTC)


def _take_turns(c: Connection) -> None:
    c.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    c.execute(text("LOCK TABLE monitor_data.retention IN SHARE ROW EXCLUSIVE MODE"))


def _floor(parent: Partitioned, moment: datetime) -> datetime:
    day = day_of(moment)
    return day if parent.period == "day" else day.replace(day=1)


def _after(parent: Partitioned, start: datetime) -> datetime:
    if parent.period == "day":
        return start + timedelta(days=1)
    return (start + timedelta(days=32)).replace(day=1)


def _starts(parent: Partitioned, first: datetime, last: datetime) -> Iterator[datetime]:
    start = _floor(parent, first)
    while start <= last:
        yield start
        start = _after(parent, start)


def _name(parent: Partitioned, start: datetime) -> str:
    return (
        f"{parent.table}_p{start:%Y%m%d}"
        if parent.period == "day"
        else f"{parent.table}_p{start:%Y%m}"
    )


def _partitions(c: Connection, parent: Partitioned) -> dict[datetime, str]:
    """Start of the interval → name, without DEFAULT."""
    names = c.scalars(
        text("""
            SELECT child.relname
            FROM pg_inherits
            JOIN pg_class AS child ON child.oid = inhrelid
            WHERE inhparent = to_regclass('monitor_data.' || :parent)
              AND child.relname LIKE :parent || '\\_p%'
        """),
        {"parent": parent.table},
    )
    shape = "%Y%m%d" if parent.period == "day" else "%Y%m"
    prefix = f"{parent.table}_p"
    return {
        datetime.strptime(name.removeprefix(prefix), shape).replace(tzinfo=UTC): name
        for name in names
    }


def _starts_in_default(
    c: Connection, parent: Partitioned, first: datetime, last: datetime
) -> list[datetime]:
    """Intervals that DEFAULT holds rows of, between the two times and not before ``kept_from``."""
    return list(
        c.scalars(
            text(f"""
                SELECT DISTINCT date_trunc('{parent.period}', {parent.column}, 'UTC')
                FROM monitor_partitions.{parent.table}_default
                WHERE {parent.column} >= greatest(:first, coalesce(
                    (SELECT kept_from FROM monitor_data.retention WHERE table_name = :parent),
                    '-infinity'))
                  AND {parent.column} < :last
            """),
            {"first": first, "last": last, "parent": parent.table},
        )
    )


def _make(c: Connection, parent: Partitioned, start: datetime) -> str:
    """One partition, with the rows of its interval that DEFAULT holds.

    Whoever reads meanwhile waits until it is all done. A lock on DEFAULT alone is not enough: a statement that
    was planned before the partition was there would look for the rows where they no longer are.
    """
    name, end = _name(parent, start), _after(parent, start)
    table, default = f"monitor_data.{parent.table}", f"monitor_partitions.{parent.table}_default"
    c.execute(text(f"LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"))
    bounds = f"FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"
    c.execute(
        text(
            f"CREATE TABLE monitor_partitions.{name} (LIKE {table} INCLUDING ALL) {parent.storage}"
        )
    )
    c.execute(text(f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE"))
    c.execute(
        text(f"""
            WITH moved AS (
                DELETE FROM {default}
                WHERE {parent.column} >= :start AND {parent.column} < :end
                RETURNING *
            )
            INSERT INTO monitor_partitions.{name} SELECT * FROM moved
        """),
        {"start": start, "end": end},
    )
    c.execute(
        text(f"ALTER TABLE {table} ATTACH PARTITION monitor_partitions.{name} FOR VALUES {bounds}")
    )
    return name


def drop_partitions(
    c: Connection,
    settings: PostgresSettings,
    now: datetime,
    *,
    only: PartitionedTable | None = None,
) -> tuple[str, ...]:
    """Drop what is older than the retention settings; the names of the partitions that went.

    Of all tables, or ``only`` of one, as in `ensure_partitions`.

    A partition goes once its whole day (month) is too old, as seen from ``now`` and from the newest record
    that is stored: whatever a clock says, what the last records left stays. At most `MOST_A_STEP` of a table
    go in one call, so that whatever else is wrong, a setting or a clock, there is time to notice. DEFAULT loses its rows that are too old,
    and those dated further ahead than they would be kept. Fine buckets go only when every hour of
    theirs stands in ``buckets_hourly``: call `drift.roll_up` before; while one does not, they stay.
    """
    _take_turns(c)
    dropped: list[str] = []
    newest = _newest(c, now)
    if newest is None:
        return ()
    for parent in _chosen(only):
        keep: timedelta = getattr(settings, parent.keep)
        border = _in_steps(c, parent, _floor(parent, newest - keep))
        if parent.table == "buckets" and not _may_drop_buckets(c, border):
            continue
        dropped.extend(_drop(c, parent, border))
        _trim_default(c, parent, border, now + keep)
        _remember(c, parent, border)
    return tuple(dropped)


def _newest(c: Connection, now: datetime) -> datetime | None:
    """The time of the newest record that is stored and not of the future; None: none is."""
    moment: datetime | None = c.scalar(
        text("""
            SELECT greatest(
                (SELECT max(bucket_start) FROM monitor_data.ingest_counts WHERE bucket_start <= :now),
                (SELECT max(bucket_start) FROM monitor_data.buckets WHERE bucket_start <= :now),
                (SELECT max(recorded_at) FROM monitor_data.dead_letters WHERE recorded_at <= :now))
        """),
        {"now": now},
    )
    return moment


def _in_steps(c: Connection, parent: Partitioned, border: datetime) -> datetime:
    """``border``, or an earlier one up to which no more than `MOST_A_STEP` partitions lie."""
    ends = (_after(parent, start) for start in sorted(_partitions(c, parent)))
    passed = [end for end in ends if end <= border]
    return passed[MOST_A_STEP - 1] if len(passed) > MOST_A_STEP else border


def mend_kept_from(
    c: Connection, settings: PostgresSettings, now: datetime
) -> dict[PartitionedTable, datetime]:
    """Take back a ``kept_from`` that lies in the future, where a wrong clock once put it; the new ones.

    Behind the border of ``buckets`` an hour is told by ``buckets_hourly`` alone, and what comes late is added
    there. So its new border is the end of the last hour that stands there, for whose fine buckets nobody
    can vouch; every later hour has all of its own.
    """
    mended: dict[PartitionedTable, datetime] = {}
    for parent in PARTITIONED:
        was = _kept_from(c, parent.table)
        if was <= now + HOUR:  # the end of the hour that runs may have become the border here
            continue
        # Whoever rolls up has claimed touched hours first, by the border that he read: wait for him.
        c.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        c.execute(text("LOCK TABLE monitor_data.touched_hours IN SHARE ROW EXCLUSIVE MODE"))
        border = _floor(parent, now - getattr(settings, parent.keep))
        if parent.table == "buckets":
            last = c.scalar(
                text("""
                    SELECT max(bucket_start) FROM monitor_data.buckets_hourly
                    WHERE bucket_start <= :now
                """),
                {"now": now},
            )
            border = max(border, last + HOUR) if last else border
        c.execute(
            text("UPDATE monitor_data.retention SET kept_from = :border WHERE table_name = :name"),
            {"border": border, "name": parent.table},
        )
        mended[parent.table] = border
        log.error(
            "retention.was_in_the_future",
            table=parent.table,
            kept_from=was.isoformat(),
            mended=border.isoformat(),
            lost="what a wrong clock dropped before is gone: see docs/storage.md, Clocks",
        )
    return mended


def _may_drop_buckets(c: Connection, border: datetime) -> bool:
    """Whether there is a new border, and every hour before it is rolled up.

    The second is asked under a lock that stops writers: a record that one of them brings afterwards
    is late, and `buckets.roll_up` adds it to its hour.
    """
    if _kept_from(c, "buckets") >= border:
        return False
    c.execute(text("LOCK TABLE monitor_data.buckets IN ACCESS EXCLUSIVE MODE"))
    touched = c.scalar(
        text("""
            SELECT EXISTS (
                SELECT FROM monitor_data.touched_hours WHERE hour < :border AND hour >= :kept_from)
        """),
        {"border": border, "kept_from": _kept_from(c, "buckets")},
    )
    return not touched


def _kept_from(c: Connection, table: PartitionedTable) -> datetime:
    """The border of the last drop."""
    moment: datetime | None = c.scalar(
        text("SELECT kept_from FROM monitor_data.retention WHERE table_name = :name"),
        {"name": table},
    )
    return moment or datetime.min.replace(tzinfo=UTC)


def _drop(c: Connection, parent: Partitioned, border: datetime) -> Iterator[str]:
    for start, name in sorted(_partitions(c, parent).items()):
        if _after(parent, start) <= border:
            c.execute(text(f"DROP TABLE monitor_partitions.{name}"))
            yield name


def _trim_default(c: Connection, parent: Partitioned, border: datetime, furthest: datetime) -> None:
    c.execute(
        text(f"""
            DELETE FROM monitor_partitions.{parent.table}_default
            WHERE {parent.column} < :border OR {parent.column} > :furthest
        """),
        {"border": border, "furthest": furthest},
    )


def _remember(c: Connection, parent: Partitioned, border: datetime) -> None:
    c.execute(
        text("""
            INSERT INTO monitor_data.retention (table_name, kept_from) VALUES (:parent, :border)
            ON CONFLICT (table_name) DO UPDATE
                SET kept_from = greatest(retention.kept_from, excluded.kept_from)
        """),
        {"parent": parent.table, "border": border},
    )
