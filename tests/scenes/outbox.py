"""Alerts with their events in the outbox, and what came of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, text

from monitor.alert.policy import event_of
from monitor.store.alerts import save_alert
from monitor.store.database import transaction
from monitor.values.alerts import Alert, AlertState, EventType

ALERT_IDS = iter(f"00000000-0000-4000-8000-{n:012d}" for n in range(1, 10_000))


def announce(
    database: Engine,
    *endpoints: str,
    alert_id: str | None = None,
    types: tuple[EventType, ...] = ("drift.detected",),
) -> list[str]:
    """An alert with its events in the outbox; the events' ids."""
    now = datetime.now(UTC)
    alert_id = alert_id or next(ALERT_IDS)
    ids = []
    for sequence, type in enumerate(types, start=1):
        ended = type.endswith("resolved")
        alert = Alert(
            alert_id=alert_id,
            dedupe_key=f"drift/p/{alert_id}/all",
            rule="persona",
            kind="drift",
            severity="warning",
            state=AlertState.RESOLVED if ended else AlertState.FIRING,
            summary="toxic rose",
            labels={"feature": "toxic", "segment": "all"},
            details={"window": "15m"},
            pending_since=now,
            last_active_at=now,
            fired_at=now,
            resolved_at=now if ended else None,
            last_announced_at=now,
            sequence=sequence,
        )
        event = event_of(alert, type, now)
        with transaction(database) as connection:
            save_alert(connection, alert, event, endpoints or ("ops",))
        ids.append(event.event_id)
    return ids


def attempts(database: Engine) -> list[Any]:
    with transaction(database) as connection:
        return list(
            connection.execute(
                text(
                    "SELECT delivery_id, number, outcome, status, latency_seconds, error"
                    " FROM monitor_data.delivery_attempts ORDER BY delivery_id, number"
                )
            )
        )
