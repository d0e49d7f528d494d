"""How far partitions are read: lag against the log's end, and the watermark of what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from monitor.store.border import clean
from monitor.values.checks import utc
from monitor.values.progress import LogEnd, Progress

FRESH: Final = timedelta(seconds=60)
"""A partition read up to an end that was asked for this lately is up to date. The view says the same."""
IN_USE: Final = timedelta(minutes=2)
"""A partition that is no worker's for so long, while others of its group are, is not read any more:
its topic was taken out of the configuration. Without any worker all stay in use."""


def keep_log_ends(
    c: Connection, group_id: str, worker_id: str, ends: Iterable[LogEnd], now: datetime
) -> None:
    """Keep what the broker said of the partitions that are the worker's at ``now``, in key order.

    An answer older than the one that is there changes nothing. A partition whose stored offset has
    reached the end is caught up as of the question.
    """
    rows = [
        {
            "group_id": clean(group_id),
            "topic": clean(end.topic),
            "partition": end.partition,
            "begins_at": end.begins_at,
            "log_end": end.log_end,
            "asked_at": end.asked_at,
            "now": now,
            "worker_id": clean(worker_id),
        }
        for end in sorted(ends, key=lambda end: (end.topic, end.partition))
    ]
    if not rows:
        return
    c.execute(
        text("""
            INSERT INTO monitor_data.log_ends AS kept
                (group_id, topic, partition, begins_at, log_end, asked_at, assigned_at, begun_at,
                 caught_up_at, worker_id)
            SELECT told.group_id, told.topic, told.partition, told.begins_at, told.log_end,
                told.asked_at, told.now, told.asked_at,
                CASE WHEN coalesce(stored.next_offset, told.begins_at) >= told.log_end
                    THEN told.asked_at END,
                told.worker_id
            FROM (SELECT
                CAST(:group_id AS text) AS group_id, CAST(:topic AS text) AS topic,
                CAST(:partition AS integer) AS partition, CAST(:begins_at AS bigint) AS begins_at,
                CAST(:log_end AS bigint) AS log_end, CAST(:asked_at AS timestamptz) AS asked_at,
                CAST(:now AS timestamptz) AS now, CAST(:worker_id AS text) AS worker_id
            ) AS told
            LEFT JOIN monitor_data.offsets AS stored USING (group_id, topic, partition)
            ON CONFLICT (group_id, topic, partition) DO UPDATE SET
                begins_at = excluded.begins_at, log_end = excluded.log_end,
                asked_at = excluded.asked_at, assigned_at = excluded.assigned_at,
                worker_id = excluded.worker_id,
                caught_up_at = greatest(kept.caught_up_at, excluded.caught_up_at)
            WHERE kept.asked_at <= excluded.asked_at
        """),
        rows,
    )


def progress_of(c: Connection, now: datetime, group_id: str | None = None) -> list[Progress]:
    """The partitions that are in use (see `IN_USE`) in a consumer group (None: in any), in order.

    One whose end nobody told yet is left out: how far it is read is not known.

    The watermark is ``now`` where everything up to a fresh answer of the broker is stored; else the time
    of the newest record in the last stored chunk, or of an older answer up to which all is stored.
    """
    rows = c.execute(
        text("""
            WITH known AS (
                SELECT group_id, topic, partition,
                    coalesce(stored.next_offset, told.begins_at) AS next_offset,
                    greatest(stored.log_end, told.log_end) AS log_end,
                    stored.updated_at, told.asked_at, told.begun_at, told.caught_up_at,
                    stored.watermark AS newest_record,
                    coalesce(told.assigned_at, stored.updated_at)
                        >= max(told.assigned_at) OVER (PARTITION BY group_id)
                            - CAST(:in_use AS interval) AS in_use
                FROM monitor_data.offsets AS stored
                FULL JOIN monitor_data.log_ends AS told USING (group_id, topic, partition)
                WHERE CAST(:group_id AS text) IS NULL OR group_id = :group_id
            )
            SELECT topic, partition, greatest(log_end - next_offset, 0) AS lag,
                coalesce(caught_up_at, begun_at) AS known_since,
                coalesce(asked_at, updated_at) AS asked_at,
                next_offset >= log_end AND asked_at >= :now - CAST(:fresh AS interval) AS up_to_date,
                CASE WHEN begun_at IS NOT NULL THEN greatest(
                    newest_record,
                    CASE WHEN next_offset >= log_end THEN asked_at END)
                END AS read_until
            FROM known
            WHERE log_end IS NOT NULL AND in_use IS NOT FALSE
            ORDER BY topic, partition
        """),
        {"group_id": group_id, "now": now, "fresh": FRESH, "in_use": IN_USE},
    )
    made = []
    for row in rows:
        watermark = now if row.up_to_date else row.read_until
        made.append(
            Progress(
                topic=row.topic,
                partition=row.partition,
                lag=row.lag,
                asked_at=utc(row.asked_at),
                watermark=min(utc(watermark), now) if watermark else None,
                known_since=utc(row.known_since) if row.known_since else None,
            )
        )
    return made


def ends_not_told(c: Connection, group_id: str) -> int:
    """Of how many partitions that the group has begun nobody has told the log's end: their lag is not known."""
    found: int = c.scalar(
        text("SELECT count(*) FROM monitor.ingest_lag WHERE group_id = :group_id AND lag IS NULL"),
        {"group_id": group_id},
    )
    return found
