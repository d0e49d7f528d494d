"""The outbox: events, their deliveries, and endpoints that are switched off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from monitor.errors import BadInput
from monitor.store.alert_rows import MOMENTS, alert, alert_row
from monitor.store.border import TEXT_CHARACTERS, clean
from monitor.values.alerts import Alert, Attempt, Delivery, DeliveryState, Event, UnreadableEvent
from monitor.values.checks import utc


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


def _snapshot(told: Alert) -> dict[str, Any]:
    row = alert_row(told)
    for name in MOMENTS:
        row[name] = row[name].isoformat() if row[name] else None
    if told.unwatched_at is None:
        del row["unwatched_at"]  # a courier of the release before this one knows no such field
    return row


_DELIVERY: Final = """delivery.delivery_id, delivery.endpoint, delivery.state, delivery.attempts,
    event.event_id, event.alert_id, event.type, event.sequence,
    least(greatest(delivery.next_attempt_at, timestamptz 'epoch'), timestamptz '9999-01-01 UTC')
        AS next_attempt_at,
    least(greatest(event.created_at, timestamptz 'epoch'), timestamptz '9999-01-01 UTC')
        AS created_at,
    event.alert::text AS alert"""
"""The driver itself must read every row, whatever it holds: moments that Python has, JSON as text."""


_BY_INDEX: Final = """
    SELECT set_config(name, value, true) FROM (VALUES
        ('plan_cache_mode', 'force_custom_plan'), ('enable_seqscan', 'off'), ('enable_sort', 'off'),
        ('enable_bitmapscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
        ('jit', 'off')
    ) AS setting (name, value)"""


def claim_deliveries(
    c: Connection, now: datetime, limit: int, lease_seconds: float, endpoints: Sequence[str]
) -> list[Delivery]:
    """Lease up to ``limit`` deliveries that are due, for couriers that never take the same one.

    Deliveries of one alert to one endpoint go in their order: a later one waits until the earlier was
    delivered or given up. A lease ends by itself, so a courier that died delays its deliveries by at
    most ``lease_seconds``. Disabled endpoints get nothing. Which of those due at the same moment are
    taken is left open.

    Whoever has ten thousand waiting must not look at all of them for each: the rows come by the index of
    what is due, and each is held against its own alert alone. Statistics are from before the burst, and
    a plan kept from then too, so this transaction makes its plan anew and without joins of whole tables.
    """
    c.execute(text(_BY_INDEX))
    rows = c.execute(
        text(f"""
            WITH due AS (
                SELECT candidate.delivery_id
                FROM unnest(CAST(:endpoints AS text[])) AS told (endpoint)
                CROSS JOIN LATERAL (
                    SELECT delivery_id
                    FROM monitor_data.deliveries AS candidate
                    WHERE state = 'waiting'
                        AND candidate.endpoint = told.endpoint
                        AND next_attempt_at <= :now
                        AND (leased_until IS NULL OR leased_until <= :now)
                        AND NOT EXISTS (
                            SELECT FROM monitor_data.deliveries AS earlier
                            WHERE earlier.alert_id = candidate.alert_id
                                -- An expression, so that the index of what is due is no way in here.
                                AND earlier.endpoint || '' = candidate.endpoint
                                AND earlier.sequence < candidate.sequence
                                AND earlier.state = 'waiting')
                    ORDER BY next_attempt_at
                    LIMIT :limit
                    FOR UPDATE SKIP LOCKED
                ) AS candidate
                WHERE NOT EXISTS (
                    SELECT FROM monitor_data.endpoints
                    WHERE endpoints.name = told.endpoint AND disabled_at IS NOT NULL)
                LIMIT :limit
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


def release_deliveries(c: Connection, deliveries: Sequence[Delivery]) -> None:
    """End the leases of deliveries that were claimed and not tried: they are due as before."""
    c.execute(
        text("""
            UPDATE monitor_data.deliveries SET leased_until = NULL
            WHERE delivery_id = ANY(CAST(:ids AS bigint[])) AND state = 'waiting'
        """),
        {"ids": [delivery.delivery_id for delivery in deliveries]},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An attempt, and what becomes of its delivery; ``next_at`` is None when that is settled."""

    delivery_id: int
    attempt: Attempt
    state: DeliveryState
    next_at: datetime | None


def record_attempts(c: Connection, made: Sequence[Tried]) -> None:
    """Keep the attempts, of one delivery each, free their leases, and set what comes next.

    A courier that comes late (its lease had ended) adds its attempt, but never takes a delivery back
    that another one has finished. `BadInput` if a delivery is unknown: then none is recorded.
    """
    known = c.execute(
        # In their order, so that two couriers that record the same ones wait for one another and no more.
        text("""
            SELECT delivery_id FROM monitor_data.deliveries
            WHERE delivery_id = ANY(CAST(:ids AS bigint[])) ORDER BY delivery_id FOR UPDATE
        """),
        {"ids": [one.delivery_id for one in made]},
    )
    unknown = {one.delivery_id for one in made} - {row.delivery_id for row in known}
    if unknown:
        raise BadInput(f"there is no delivery {min(unknown)}")
    c.execute(
        text("""
            WITH made AS (
                SELECT * FROM unnest(
                    CAST(:delivery_id AS bigint[]), CAST(:state AS text[]),
                    CAST(:next_attempt_at AS timestamptz[]), CAST(:attempted_at AS timestamptz[]),
                    CAST(:outcome AS text[]), CAST(:status AS integer[]),
                    CAST(:latency_seconds AS double precision[]), CAST(:error AS text[]),
                    CAST(:retry_after_seconds AS double precision[])
                ) AS made (delivery_id, state, next_attempt_at, attempted_at, outcome, status,
                    latency_seconds, error, retry_after_seconds)
            ), counted AS (
                UPDATE monitor_data.deliveries AS delivery SET
                    attempts = delivery.attempts + 1,
                    state = CASE WHEN delivery.state = 'delivered' THEN delivery.state
                        ELSE made.state END,
                    next_attempt_at = coalesce(made.next_attempt_at, delivery.next_attempt_at),
                    leased_until = NULL,
                    finished_at = CASE WHEN made.state = 'waiting' THEN delivery.finished_at
                        ELSE coalesce(delivery.finished_at, made.attempted_at) END
                FROM made
                WHERE delivery.delivery_id = made.delivery_id
                RETURNING delivery.delivery_id, delivery.attempts
            )
            INSERT INTO monitor_data.delivery_attempts
                (delivery_id, number, attempted_at, outcome, status, latency_seconds, error,
                 retry_after_seconds)
            SELECT delivery_id, counted.attempts, attempted_at, outcome, status, latency_seconds,
                error, retry_after_seconds
            FROM counted JOIN made USING (delivery_id)
        """),
        {
            "delivery_id": [one.delivery_id for one in made],
            "state": [one.state.value for one in made],
            "next_attempt_at": [one.next_at for one in made],
            "attempted_at": [one.attempt.attempted_at for one in made],
            "outcome": [one.attempt.outcome.value for one in made],
            "status": [one.attempt.status for one in made],
            "latency_seconds": [one.attempt.latency_seconds for one in made],
            "error": [clean(one.attempt.error, TEXT_CHARACTERS) for one in made],
            "retry_after_seconds": [one.attempt.retry_after_seconds for one in made],
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


def load_delivery(c: Connection, delivery_id: int) -> Delivery | None:
    """The delivery of that number; None: there is none."""
    row = (
        c.execute(
            text(f"""
                SELECT {_DELIVERY}
                FROM monitor_data.deliveries AS delivery
                JOIN monitor_data.events AS event USING (event_id)
                WHERE delivery_id = :delivery_id
            """),
            {"delivery_id": delivery_id},
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else _delivery(row)


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
        event=_event(row),
    )


def _event(row: RowMapping) -> Event | UnreadableEvent:
    named: dict[str, Any] = {
        "event_id": row["event_id"],
        "alert_id": row["alert_id"],
        "type": row["type"],
        "sequence": row["sequence"],
        "created_at": utc(row["created_at"]),
    }
    try:
        snapshot = json.loads(row["alert"])
        if not isinstance(snapshot, dict):
            raise TypeError("the alert is no object")
        return Event(**named, alert=alert(snapshot))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as fault:
        return UnreadableEvent(**named, reason=f"{type(fault).__name__}: {fault}"[:300])


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
