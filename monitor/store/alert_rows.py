"""The row of an alert, as table and outbox hold it.

An alert that is no longer watched stands there as resolved, with ``unwatched_at`` beside it, so that
the release before this one reads the row. The view and everything above the store tell the two apart.
"""

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
    *("acknowledged_by", "last_announced_at", "sequence", "unwatched_at"),
)


ALERT_COLUMNS: Final = ", ".join(ALERT_FIELDS)


MOMENTS: Final = (
    *("pending_since", "last_active_at", "fired_at", "resolved_at", "acknowledged_at"),
    *("last_announced_at", "unwatched_at"),
)


def alert_row(alert: Alert) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(alert, name) for name in ALERT_FIELDS}
    ended = alert.state is AlertState.UNWATCHED
    row.update(
        dedupe_key=clean(alert.dedupe_key, 4 * 256),
        state=(AlertState.RESOLVED if ended else AlertState(alert.state)).value,
        resolved_at=alert.ended_at,
        summary=clean(alert.summary, TEXT_CHARACTERS),
        labels=clean_json(alert.labels),
        details=clean_json(alert.details),
        acknowledged_by=clean_or_none(alert.acknowledged_by),
    )
    return row


def alert(row: RowMapping | Mapping[str, Any]) -> Alert:
    # An event that waits since before an upgrade has none of the newer columns.
    moments = {name: _moment(row.get(name)) for name in MOMENTS}
    state = AlertState(row["state"])
    if moments["unwatched_at"]:
        state, moments["resolved_at"] = AlertState.UNWATCHED, None
    # An event of a newer release has fields that this one does not know.
    known = {name: row[name] for name in ALERT_FIELDS if name in row}
    return Alert(**{**known, **moments, "state": state})


def _moment(value: datetime | str | None) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return None if value is None else utc(value)
