"""The row of an alert, as table and outbox hold it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping

from monitor.store.border import TEXT_CHARACTERS, clean, clean_json, clean_or_none
from monitor.values.alerts import Alert, AlertState
from monitor.values.checks import utc

ALERT_FIELDS: Final = (
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


ALERT_COLUMNS: Final = ", ".join(ALERT_FIELDS)


MOMENTS: Final = (
    *("pending_since", "last_active_at", "fired_at", "resolved_at", "acknowledged_at"),
    "last_announced_at",
)


def alert_row(alert: Alert) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(alert, name) for name in ALERT_FIELDS}
    row.update(
        dedupe_key=clean(alert.dedupe_key, 4 * 256),
        state=AlertState(alert.state).value,
        summary=clean(alert.summary, TEXT_CHARACTERS),
        labels=clean_json(alert.labels),
        details=clean_json(alert.details),
        acknowledged_by=clean_or_none(alert.acknowledged_by),
    )
    return row


def alert(row: RowMapping | Mapping[str, Any]) -> Alert:
    moments = {name: _moment(row[name]) for name in MOMENTS}
    return Alert(**{**row, **moments, "state": AlertState(row["state"])})


def _moment(value: datetime | str | None) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return None if value is None else utc(value)
