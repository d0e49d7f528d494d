"""The database of a configuration file, and an alert that fired in it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import yaml
from sqlalchemy import Engine

from monitor.settings import PostgresSettings
from monitor.store.alerts import save_alert
from monitor.store.database import connect, transaction
from monitor.values.alerts import Alert, AlertState, Event


def engine_of(config: Path) -> Engine:
    return connect(PostgresSettings(**yaml.safe_load(config.read_text())["postgres"]))


def fired(database: Engine, at: datetime) -> Alert:
    alert = Alert(
        alert_id="alert-1",
        dedupe_key="pack/toxic/all",
        rule="persona-drift",
        kind="drift",
        severity="warning",
        state=AlertState.FIRING,
        summary="toxic [drifted]",
        labels={"feature": "toxic", "segment": "all"},
        details={},
        pending_since=at,
        last_active_at=at,
        fired_at=at,
        last_announced_at=at,
        sequence=1,
    )
    event = Event(
        event_id="evt_1",
        alert_id=alert.alert_id,
        type="drift.detected",
        sequence=1,
        created_at=at,
        alert=alert,
    )
    with transaction(database) as c:
        save_alert(c, alert, event, ["ops", "chat"])
    return alert
