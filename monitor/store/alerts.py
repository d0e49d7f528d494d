"""What watcher, courier and people store and ask about alerts: alerts, silences, outbox, deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, exc, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import BadInput, StaleAlert
from monitor.store.border import TEXT_CHARACTERS, clean, clean_json, clean_or_none
from monitor.values.alerts import (
    Alert,
    AlertState,
    Attempt,
    Delivery,
    DeliveryState,
    Event,
    Silence,
)
from monitor.values.checks import utc

# --- alerts --------------------------------------------------------------------------------------

_ALERT_FIELDS: Final = (
    *(
        "alert_id",
        "dedupe_key",
        "rule",
        "kind",
        "severity",
        "state",
        "summary",
        "labels",
        "details",
    ),
    *("pending_since", "last_active_at", "fired_at", "resolved_at", "acknowledged_at"),
    *("acknowledged_by", "last_announced_at", "sequence"),
)
_ALERT: Final = ", ".join(_ALERT_FIELDS)
_MOMENTS: Final = (
    *("pending_since", "last_active_at", "fired_at", "resolved_at", "acknowledged_at"),
    "last_announced_at",
)


def open_alerts(c: Connection) -> list[Alert]:
    """Alerts that are pending or firing."""
    rows = c.execute(
        text(f"""
            SELECT {_ALERT} FROM monitor_data.alerts
            WHERE state <> 'resolved'
            ORDER BY pending_since, alert_id
        """)
    )
    return [_alert(row) for row in rows.mappings()]


def recent_alerts(c: Connection, since: datetime) -> list[Alert]:
    """The latest alert of every dedupe key that is open, or resolved since then, or owes its end.

    An alert owes its end when receivers were told that it fires and not yet that it resolved.
    """
    rows = c.execute(
        text(f"""
            SELECT DISTINCT ON (dedupe_key) {_ALERT} FROM monitor_data.alerts
            WHERE state <> 'resolved' OR resolved_at >= :since OR last_announced_at < resolved_at
            ORDER BY dedupe_key, pending_since DESC
        """),
        {"since": since},
    )
    return [_alert(row) for row in rows.mappings()]


def list_alerts(
    c: Connection, *, states: Sequence[str] | None = None, limit: int = 100
) -> list[Alert]:
    """Alerts, newest first; in some states or in all."""
    rows = c.execute(
        text(f"""
            SELECT {_ALERT} FROM monitor_data.alerts
            WHERE CAST(:states AS text[]) IS NULL OR state = ANY(CAST(:states AS text[]))
            ORDER BY pending_since DESC, alert_id
            LIMIT :limit
        """),
        {
            "states": [str(state) for state in states] if states is not None else None,
            "limit": limit,
        },
    )
    return [_alert(row) for row in rows.mappings()]


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
            INSERT INTO monitor_data.alerts AS kept ({_ALERT})
            VALUES ({", ".join(f":{name}" for name in _ALERT_FIELDS)})
            ON CONFLICT (alert_id) DO UPDATE SET
                severity = excluded.severity, state = excluded.state, summary = excluded.summary,
                labels = excluded.labels, details = excluded.details,
                pending_since = excluded.pending_since, last_active_at = excluded.last_active_at,
                fired_at = excluded.fired_at, resolved_at = excluded.resolved_at,
                acknowledged_at = CASE WHEN kept.severity = excluded.severity
                    THEN coalesce(excluded.acknowledged_at, kept.acknowledged_at)
                    ELSE excluded.acknowledged_at END,
                acknowledged_by = CASE WHEN kept.severity = excluded.severity
                    THEN coalesce(excluded.acknowledged_by, kept.acknowledged_by)
                    ELSE excluded.acknowledged_by END,
                last_announced_at = excluded.last_announced_at, sequence = excluded.sequence
            WHERE kept.sequence <= excluded.sequence
        """).bindparams(bindparam("labels", type_=JSONB), bindparam("details", type_=JSONB)),
        _alert_row(alert),
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


def _alert_row(alert: Alert) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(alert, name) for name in _ALERT_FIELDS}
    row.update(
        dedupe_key=clean(alert.dedupe_key, 4 * 256),
        state=AlertState(alert.state).value,
        summary=clean(alert.summary, TEXT_CHARACTERS),
        labels=clean_json(alert.labels),
        details=clean_json(alert.details),
        acknowledged_by=clean_or_none(alert.acknowledged_by),
    )
    return row


def _alert(row: RowMapping | Mapping[str, Any]) -> Alert:
    moments = {name: _moment(row[name]) for name in _MOMENTS}
    return Alert(**{**row, **moments, "state": AlertState(row["state"])})


def _moment(value: datetime | str | None) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return None if value is None else utc(value)


# --- silences ------------------------------------------------------------------------------------


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


# --- outbox --------------------------------------------------------------------------------------


def add_event(c: Connection, event: Event, endpoints: Iterable[str]) -> None:
    """Write the outbox row with a snapshot of the alert, and one delivery per endpoint, due at once."""
    c.execute(
        text("""
            INSERT INTO monitor_data.events (event_id, alert_id, type, sequence, created_at, alert)
            VALUES (:event_id, :alert_id, :type, :sequence, :created_at, :alert)
        """).bindparams(bindparam("alert", type_=JSONB)),
        {
            "event_id": event.event_id,
            "alert_id": event.alert_id,
            "type": event.type,
            "sequence": event.sequence,
            "created_at": event.created_at,
            "alert": _snapshot(event.alert),
        },
    )
    rows = [
        {
            "event_id": event.event_id,
            "endpoint": endpoint,
            "alert_id": event.alert_id,
            "sequence": event.sequence,
            "at": event.created_at,
        }
        for endpoint in sorted(set(endpoints))
    ]
    if rows:
        c.execute(
            text("""
                INSERT INTO monitor_data.deliveries
                    (event_id, endpoint, alert_id, sequence, state, next_attempt_at)
                VALUES (:event_id, :endpoint, :alert_id, :sequence, 'waiting', :at)
            """),
            rows,
        )


def _snapshot(alert: Alert) -> dict[str, Any]:
    row = _alert_row(alert)
    for name in _MOMENTS:
        row[name] = row[name].isoformat() if row[name] else None
    return row


# --- deliveries ----------------------------------------------------------------------------------

_DELIVERY: Final = """delivery.delivery_id, delivery.endpoint, delivery.state, delivery.attempts,
    delivery.next_attempt_at, event.event_id, event.alert_id, event.type, event.sequence,
    event.created_at, event.alert"""


def claim_deliveries(
    c: Connection, now: datetime, limit: int, lease_seconds: float, endpoints: Sequence[str]
) -> list[Delivery]:
    """Lease up to ``limit`` deliveries that are due, for couriers that never take the same one.

    Deliveries of one alert to one endpoint go in their order: a later one waits until the earlier was
    delivered or given up. A lease ends by itself, so a courier that died delays its deliveries by at
    most ``lease_seconds``. Disabled endpoints get nothing.
    """
    rows = c.execute(
        text(f"""
            WITH due AS (
                SELECT delivery_id
                FROM monitor_data.deliveries AS candidate
                WHERE state = 'waiting'
                    AND next_attempt_at <= :now
                    AND (leased_until IS NULL OR leased_until <= :now)
                    AND endpoint = ANY(CAST(:endpoints AS text[]))
                    AND NOT EXISTS (
                        SELECT FROM monitor_data.endpoints
                        WHERE endpoints.name = candidate.endpoint AND disabled_at IS NOT NULL)
                    AND NOT EXISTS (
                        SELECT FROM monitor_data.deliveries AS earlier
                        WHERE earlier.alert_id = candidate.alert_id
                            AND earlier.endpoint = candidate.endpoint
                            AND earlier.sequence < candidate.sequence
                            AND earlier.state = 'waiting')
                ORDER BY next_attempt_at, delivery_id
                LIMIT :limit
                FOR UPDATE SKIP LOCKED
            )
            UPDATE monitor_data.deliveries AS delivery
            SET leased_until = :leased_until
            FROM due, monitor_data.events AS event
            WHERE delivery.delivery_id = due.delivery_id AND event.event_id = delivery.event_id
            RETURNING {_DELIVERY}
        """),
        {
            "now": now,
            "limit": limit,
            "leased_until": now + timedelta(seconds=lease_seconds),
            "endpoints": list(endpoints),
        },
    )
    claimed = [_delivery(row) for row in rows.mappings()]
    return sorted(claimed, key=lambda delivery: (delivery.next_attempt_at, delivery.delivery_id))


def record_attempt(
    c: Connection,
    delivery_id: int,
    attempt: Attempt,
    next_attempt_at: datetime | None,
    state: DeliveryState,
) -> None:
    """Keep the attempt, free the lease, and set what comes next.

    A courier that comes late (its lease had ended) adds its attempt, but never takes a delivery back
    that another one has finished.
    """
    number = c.scalar(
        text("""
            UPDATE monitor_data.deliveries SET
                attempts = attempts + 1,
                state = CASE WHEN state = 'delivered' THEN state ELSE :state END,
                next_attempt_at = coalesce(:next_attempt_at, next_attempt_at),
                leased_until = NULL,
                finished_at = CASE WHEN :state = 'waiting' THEN finished_at
                    ELSE coalesce(finished_at, :attempted_at) END
            WHERE delivery_id = :delivery_id
            RETURNING attempts
        """),
        {
            "delivery_id": delivery_id,
            "state": DeliveryState(state).value,
            "next_attempt_at": next_attempt_at,
            "attempted_at": attempt.attempted_at,
        },
    )
    if number is None:
        raise BadInput(f"there is no delivery {delivery_id}")
    c.execute(
        text("""
            INSERT INTO monitor_data.delivery_attempts
                (delivery_id, number, attempted_at, outcome, status, latency_seconds, error,
                 retry_after_seconds)
            VALUES
                (:delivery_id, :number, :attempted_at, :outcome, :status, :latency_seconds, :error,
                 :retry_after_seconds)
        """),
        {
            "delivery_id": delivery_id,
            "number": number,
            "attempted_at": attempt.attempted_at,
            "outcome": attempt.outcome.value,
            "status": attempt.status,
            "latency_seconds": attempt.latency_seconds,
            "error": clean(attempt.error, TEXT_CHARACTERS),
            "retry_after_seconds": attempt.retry_after_seconds,
        },
    )


def list_deliveries(
    c: Connection,
    *,
    states: Sequence[str] | None = None,
    endpoint: str | None = None,
    limit: int = 100,
) -> list[Delivery]:
    """Deliveries, newest first; in some states or in all, to one endpoint or to all."""
    rows = c.execute(
        text(f"""
            SELECT {_DELIVERY}
            FROM monitor_data.deliveries AS delivery
            JOIN monitor_data.events AS event USING (event_id)
            WHERE (CAST(:states AS text[]) IS NULL OR state = ANY(CAST(:states AS text[])))
                AND (CAST(:endpoint AS text) IS NULL OR endpoint = :endpoint)
            ORDER BY delivery_id DESC
            LIMIT :limit
        """),
        {
            "states": [str(state) for state in states] if states is not None else None,
            "endpoint": endpoint,
            "limit": limit,
        },
    )
    return [_delivery(row) for row in rows.mappings()]


def replay_delivery(c: Connection, delivery_id: int, now: datetime) -> None:
    """Make a finished delivery due again, with the same event id; `BadInput` if it is unknown."""
    changed = c.execute(
        text("""
            UPDATE monitor_data.deliveries
            SET state = 'waiting', next_attempt_at = :now, leased_until = NULL, finished_at = NULL
            WHERE delivery_id = :delivery_id
        """),
        {"delivery_id": delivery_id, "now": now},
    )
    if not changed.rowcount:
        raise BadInput(f"there is no delivery {delivery_id}; `monitor deliveries list` shows them")


def _delivery(row: RowMapping) -> Delivery:
    return Delivery(
        delivery_id=row["delivery_id"],
        endpoint=row["endpoint"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        next_attempt_at=utc(row["next_attempt_at"]),
        event=Event(
            event_id=row["event_id"],
            alert_id=row["alert_id"],
            type=row["type"],
            sequence=row["sequence"],
            created_at=utc(row["created_at"]),
            alert=_alert(row["alert"]),
        ),
    )


# --- endpoints -----------------------------------------------------------------------------------


def disable_endpoint(c: Connection, name: str, at: datetime, reason: str) -> None:
    """Send the endpoint nothing more (it answered 410), until `enable_endpoint`."""
    c.execute(
        text("""
            INSERT INTO monitor_data.endpoints (name, disabled_at, reason)
            VALUES (:name, :at, :reason)
            ON CONFLICT (name) DO UPDATE SET
                disabled_at = coalesce(endpoints.disabled_at, excluded.disabled_at),
                reason = excluded.reason
        """),
        {"name": name, "at": at, "reason": clean(reason, TEXT_CHARACTERS)},
    )


def enable_endpoint(c: Connection, name: str) -> None:
    """Send to the endpoint again."""
    c.execute(
        text("DELETE FROM monitor_data.endpoints WHERE name = :name"),
        {"name": name},
    )


def disabled_endpoints(c: Connection) -> dict[str, str]:
    """Name → reason of the endpoints that get nothing."""
    rows = c.execute(
        text("SELECT name, reason FROM monitor_data.endpoints WHERE disabled_at IS NOT NULL")
    )
    return {row.name: row.reason for row in rows}
