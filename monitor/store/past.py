"""What was so at an earlier moment, as far as rows still tell it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from monitor.store.alert_rows import ALERT_COLUMNS, alert
from monitor.store.packs import ALIVE
from monitor.values.alerts import Alert
from monitor.values.checks import utc
from monitor.values.presence import PackPresence

_BASELINE_THEN: Final = """SELECT baseline_id FROM monitor_data.baselines AS kept
    WHERE kept.pack_id = pack.pack_id AND approved_at <= :at AND (retired_at IS NULL OR retired_at > :at)
    ORDER BY approved_at DESC LIMIT 1"""
_WORKED: Final = "seen_at >= :since AND (state <> 'stopped' OR seen_at > :at) AND started_at <= :at"
"""A worker counts as alive from the first to the last time it was seen: pauses between are not kept."""


def presence_at(c: Connection, at: datetime) -> list[PackPresence]:
    """As `monitor.store.packs.pack_presence` would have told at ``at``."""
    rows = c.execute(
        text(f"""
            SELECT pack.pack_id, pack.name, pack.registered_at,
                (SELECT max(least(seen_at, :at)) FROM monitor_data.workers AS worker
                 WHERE worker.pack_id = pack.pack_id AND started_at <= :at) AS last_seen_at,
                (SELECT count(*) FROM monitor_data.workers AS worker
                 WHERE worker.pack_id = pack.pack_id AND {_WORKED}) AS live_workers,
                ({_BASELINE_THEN}) AS baseline_id
            FROM monitor_data.packs AS pack
            ORDER BY pack.registered_at, pack.pack_id
        """),
        {"at": at, "since": at - ALIVE},
    )
    return [PackPresence(**row) for row in rows.mappings()]


def alive_at(c: Connection, at: datetime) -> frozenset[str]:
    """The workers that lived at ``at``."""
    rows = c.scalars(
        text(f"SELECT worker_id FROM monitor_data.workers WHERE {_WORKED}"),
        {"at": at, "since": at - ALIVE},
    )
    return frozenset(rows)


def evaluations_between(c: Connection, start: datetime, end: datetime) -> dict[datetime, datetime]:
    """When the watcher evaluated in [start, end), and where the windows ended, by the drift that it kept."""
    rows = c.execute(
        text("""
            SELECT evaluated_at, max(window_end) AS window_end FROM monitor_data.drifts
            WHERE evaluated_at >= :start AND evaluated_at < :end
            GROUP BY evaluated_at ORDER BY evaluated_at
        """),
        {"start": start, "end": end},
    )
    return {utc(row.evaluated_at): utc(row.window_end) for row in rows}


def fired_between(c: Connection, start: datetime, end: datetime) -> list[Alert]:
    """The alerts that fired before ``end`` and had not ended at ``start``, in the order of their firing."""
    rows = c.execute(
        text(f"""
            SELECT {ALERT_COLUMNS} FROM monitor_data.alerts
            WHERE fired_at < :end AND (resolved_at IS NULL OR resolved_at >= :start)
            ORDER BY fired_at, alert_id
        """),
        {"start": start, "end": end},
    )
    return [alert(row) for row in rows.mappings()]


def fine_kept_from(c: Connection) -> datetime | None:
    """Fine buckets before this were dropped; None: none ever were."""
    moment: datetime | None = c.scalar(
        text("SELECT kept_from FROM monitor_data.retention WHERE table_name = 'buckets'")
    )
    return utc(moment) if moment else None


def fine_bounds(c: Connection) -> tuple[datetime, datetime] | None:
    """The starts of the first and the last fine bucket; None: there are none."""
    row = c.execute(
        text(
            "SELECT min(bucket_start) AS first, max(bucket_start) AS last FROM monitor_data.buckets"
        )
    ).one()
    return None if row.first is None else (utc(row.first), utc(row.last))
