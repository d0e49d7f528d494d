"""Alerts and silences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, bindparam, exc, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import BadInput, StaleAlert
from monitor.store.alert_rows import ALERT_COLUMNS, ALERT_FIELDS, alert, alert_row
from monitor.store.border import TEXT_CHARACTERS, clean, clean_json
from monitor.store.outbox import add_event
from monitor.values.alerts import Alert, Event, Silence


def open_alerts(c: Connection) -> list[Alert]:
    """Alerts that are pending or firing."""
    rows = c.execute(
        text(f"""
            SELECT {ALERT_COLUMNS} FROM monitor_data.alerts
            WHERE state <> 'resolved'
            ORDER BY pending_since, alert_id
        """)
    )
    return [alert(row) for row in rows.mappings()]


def recent_alerts(c: Connection, since: datetime) -> list[Alert]:
    """The latest alert of every dedupe key that is open, or ended since then, or owes its end.

    An alert owes its end when receivers were told that it fires and not yet that it ended.
    """
    rows = c.execute(
        text(f"""
            SELECT DISTINCT ON (dedupe_key) {ALERT_COLUMNS} FROM monitor_data.alerts
            WHERE state <> 'resolved' OR resolved_at >= :since OR last_announced_at < resolved_at
            ORDER BY dedupe_key, pending_since DESC
        """),
        {"since": since},
    )
    return [alert(row) for row in rows.mappings()]


def list_alerts(
    c: Connection, *, states: Sequence[str] | None = None, limit: int = 100
) -> list[Alert]:
    """Alerts, newest first; in some states or in all (``resolved``: unwatched ones too)."""
    rows = c.execute(
        text(f"""
            SELECT {ALERT_COLUMNS} FROM monitor_data.alerts
            WHERE CAST(:states AS text[]) IS NULL OR state = ANY(CAST(:states AS text[]))
            ORDER BY pending_since DESC, alert_id
            LIMIT :limit
        """),
        {
            "states": [str(state) for state in states] if states is not None else None,
            "limit": limit,
        },
    )
    return [alert(row) for row in rows.mappings()]


def save_alert(
    c: Connection, alert: Alert, event: Event | None = None, endpoints: Iterable[str] = ()
) -> None:
    """Store the alert, and what is announced about it: one outbox row, one delivery per endpoint.

    An acknowledgement that a person gave meanwhile is kept, unless the alert got graver. Raises
    `StaleAlert`, and the transaction must be rolled back, when another watcher was here first: it has
    an alert open for the same key, or has announced the same step.
    """
    try:
        _upsert_alert(c, alert)
        if event is not None:
            add_event(c, event, endpoints)
    except exc.IntegrityError as error:
        raise StaleAlert(f"another watcher has {alert.dedupe_key} in hand") from error


def _upsert_alert(c: Connection, alert: Alert) -> None:
    stored = c.execute(
        text(f"""
            INSERT INTO monitor_data.alerts AS kept ({ALERT_COLUMNS})
            VALUES ({", ".join(f":{name}" for name in ALERT_FIELDS)})
            ON CONFLICT (alert_id) DO UPDATE SET
                severity = excluded.severity, state = excluded.state, summary = excluded.summary,
                labels = excluded.labels, details = excluded.details,
                pending_since = excluded.pending_since, last_active_at = excluded.last_active_at,
                fired_at = excluded.fired_at, resolved_at = excluded.resolved_at,
                unwatched_at = excluded.unwatched_at,
                acknowledged_at = CASE WHEN kept.severity = excluded.severity
                    THEN coalesce(excluded.acknowledged_at, kept.acknowledged_at)
                    ELSE excluded.acknowledged_at END,
                acknowledged_by = CASE WHEN kept.severity = excluded.severity
                    THEN coalesce(excluded.acknowledged_by, kept.acknowledged_by)
                    ELSE excluded.acknowledged_by END,
                last_announced_at = excluded.last_announced_at, sequence = excluded.sequence
            WHERE kept.sequence <= excluded.sequence
        """).bindparams(bindparam("labels", type_=JSONB), bindparam("details", type_=JSONB)),
        alert_row(alert),
    )
    if not stored.rowcount:
        raise StaleAlert(f"{alert.dedupe_key}: a later step of the alert is stored already")


def forget_alert(c: Connection, alert_id: str) -> None:
    """Remove an alert that never fired."""
    c.execute(
        text("DELETE FROM monitor_data.alerts WHERE alert_id = :alert_id AND state = 'pending'"),
        {"alert_id": alert_id},
    )


def acknowledge(c: Connection, alert_id: str, by: str, at: datetime) -> None:
    """Say that a person has taken the alert on: no more reminders. `BadInput` if it is not open."""
    changed = c.execute(
        text("""
            UPDATE monitor_data.alerts SET acknowledged_at = :at, acknowledged_by = :by
            WHERE alert_id = :alert_id AND state <> 'resolved'
        """),
        {"alert_id": alert_id, "by": clean(by), "at": at},
    )
    if not changed.rowcount:
        raise BadInput(f"there is no open alert {alert_id!r}; `monitor alerts list` shows them")


def add_silence(c: Connection, silence: Silence) -> None:
    """Store a silence. `BadInput` when it ends before it starts."""
    if silence.ends_at <= silence.starts_at:
        raise BadInput("ends_at: a silence must end after it starts")
    c.execute(
        text("""
            INSERT INTO monitor_data.silences
                (silence_id, matchers, starts_at, ends_at, created_by, comment)
            VALUES (:silence_id, :matchers, :starts_at, :ends_at, :created_by, :comment)
        """).bindparams(bindparam("matchers", type_=JSONB)),
        {
            "silence_id": silence.silence_id,
            "matchers": clean_json(silence.matchers),
            "starts_at": silence.starts_at,
            "ends_at": silence.ends_at,
            "created_by": clean(silence.created_by),
            "comment": clean(silence.comment, TEXT_CHARACTERS),
        },
    )


def end_silence(c: Connection, silence_id: str, at: datetime) -> None:
    """End a silence now. `BadInput` when none of that id is running or to come."""
    changed = c.execute(
        text("""
            UPDATE monitor_data.silences SET ends_at = :at, starts_at = least(starts_at, :at)
            WHERE silence_id = :silence_id AND ends_at > :at
        """),
        {"silence_id": silence_id, "at": at},
    )
    if not changed.rowcount:
        raise BadInput(f"no silence {silence_id!r} is running or to come")


def active_silences(c: Connection, now: datetime) -> list[Silence]:
    """The silences that hold now."""
    rows = c.execute(
        text("""
            SELECT silence_id, matchers, starts_at, ends_at, created_by, comment
            FROM monitor_data.silences
            WHERE starts_at <= :now AND ends_at > :now
            ORDER BY starts_at, silence_id
        """),
        {"now": now},
    )
    return [Silence(**row) for row in rows.mappings()]
