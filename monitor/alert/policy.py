"""From conditions to alerts: the life of one alert, and what is announced about it. Pure.

`conditions` (rules.py) and `silence_conditions` (health.py) say what holds now, `unwatched_because`
(watched.py) which alerts nothing looks at any more; `transition` and `without_condition` decide what
becomes of the alert.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from monitor.alert.health import Health, PackHealth, not_evaluated, silence_conditions
from monitor.alert.rules import FeatureInfo, conditions, rank, with_prompts
from monitor.alert.sentences import WHEN_FIRED, over, reading_when
from monitor.alert.watched import WatchedPack, unwatched_because
from monitor.settings import Endpoint
from monitor.values.alerts import Alert, AlertState, Condition, Event, EventType, Silence

__all__ = [
    "FeatureInfo",
    "Health",
    "PackHealth",
    "WatchedPack",
    "audience",
    "conditions",
    "end_owed",
    "event_of",
    "is_silenced",
    "not_evaluated",
    "rank",
    "silence_conditions",
    "transition",
    "unwatched_because",
    "with_prompts",
    "without_condition",
]

_COOLING: Final = "cooling"
"""Where an alert that began in the cooldown of an earlier one keeps its severity and the cooldown's end:
it may be told of before that end only while it is graver. Gone once it was told of."""
_IDS: Final = uuid.UUID("6f6f2f4e-5d0c-4f57-9b0e-3a2d8a5c1e77")


def transition(
    alert: Alert | None, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    """The alert after this condition, and what to announce about it; one step of a state machine.

    ``alert`` is the latest one of the condition's dedupe key (None when there is none, or when the
    last one ended longer than its cooldown ago and its end was announced). A result of None means
    that the alert is to be forgotten: it was pending and never fired.

    * pending → firing once the condition has held for ``hold_for``; a pending alert whose condition
      stops holding is forgotten.
    * firing → resolved once the condition has not held for ``hold_for``. So one reading that dips
      below the line neither fires nor resolves anything. Summary and details are then of the
      resolution; what was read when it fired stays in ``details.when_fired``.
    * For ``cooldown`` after it resolved the key stays quiet, unless the condition is graver than the
      alert was; then a new alert begins. After an alert that was no longer watched a new one begins
      at once: nobody saw the condition end, and its receivers were told that nobody looks.
    * Severity only rises while an alert is open. A rise is announced as another ``detected``, also
      when the alert was acknowledged, and withdraws the acknowledgement: it was given to less.
    * An acknowledged alert sends no reminders; its resolution is announced.
    * While silenced nothing is announced, and severity stays what was announced last. Afterwards
      whatever is still owed is announced: that it fires, that it got worse, or that it ended. An
      alert that began and ended in silence is never announced. When the condition returns before
      an owed end could be announced, the same alert fires on: to its receivers it never ended.
    """
    if alert is None:
        return _begun(condition, now, silenced=silenced) if condition.active else (None, None)
    if alert.ended_at is not None:
        return _after_its_end(alert, condition, now, silenced=silenced)
    if condition.active:
        return _held(alert, condition, now, silenced=silenced)
    if alert.state is AlertState.PENDING:
        return None, None
    return _let_go(alert, condition, now, silenced=silenced)


def _begun(
    condition: Condition, now: datetime, *, silenced: bool, cooling: Mapping[str, str] | None = None
) -> tuple[Alert | None, EventType | None]:
    fresh = Alert(
        alert_id=str(uuid.uuid5(_IDS, f"{condition.dedupe_key} {now.isoformat()}")),
        dedupe_key=condition.dedupe_key,
        rule=condition.rule,
        kind=condition.kind,
        severity=condition.severity,
        state=AlertState.PENDING,
        summary=condition.summary,
        labels=condition.labels,
        details={**condition.details, **({_COOLING: cooling} if cooling else {})},
        pending_since=now,
        last_active_at=now,
    )
    return _held(fresh, condition, now, silenced=silenced)


def _held(
    alert: Alert, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    announced = alert.sequence > 0
    kept = {key: alert.details[key] for key in (WHEN_FIRED, _COOLING) if key in alert.details}
    cooling = kept.get(_COOLING)
    if cooling and (announced or now >= datetime.fromisoformat(cooling["until"])):
        del kept[_COOLING]
        cooling = None
    quiet = cooling is not None and rank(condition.severity) <= rank(cooling["severity"])
    if quiet and alert.state is AlertState.PENDING:
        return None, None
    alert = replace(
        alert,
        last_active_at=now,
        summary=condition.summary,
        details={**condition.details, **kept},
    )
    if not announced:
        alert = replace(alert, severity=condition.severity)
    if alert.state is AlertState.PENDING:
        if now - alert.pending_since < condition.hold_for:
            return alert, None
        alert = replace(alert, state=AlertState.FIRING, fired_at=now)
        alert = _marked(alert, condition, "fired", now)
    if silenced or quiet:
        return alert, None
    if not announced:
        told = {key: value for key, value in alert.details.items() if key != _COOLING}
        return _announced(replace(alert, details=told), "detected", now)
    if rank(condition.severity) > rank(alert.severity):
        worse = replace(
            alert, severity=condition.severity, acknowledged_at=None, acknowledged_by=None
        )
        worse = _marked(worse, condition, f"became {condition.severity}", now)
        return _announced(worse, "detected", now)
    due = condition.reminder is not None and (
        alert.last_announced_at is None or now - alert.last_announced_at >= condition.reminder
    )
    if due and alert.acknowledged_at is None:
        return _announced(alert, "reminder", now)
    return alert, None


def _marked(alert: Alert, condition: Condition, event: str, now: datetime) -> Alert:
    """The alert, with what it reads now kept for the sentence that will end it."""
    kept = reading_when(condition, event, now.isoformat())
    return replace(alert, details={**alert.details, WHEN_FIRED: kept})


def _let_go(
    alert: Alert, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert, EventType | None]:
    # The longest window that showed the drift must itself be clear: a thin one knows nothing.
    shown_by = alert.details.get("shown_by", [])
    if shown_by and shown_by[-1] not in condition.details.get("clear_windows", []):
        return alert, None
    if now - alert.last_active_at < condition.hold_for:
        return alert, None
    resolved = _ended(replace(alert, state=AlertState.RESOLVED, resolved_at=now), condition)
    if silenced or alert.sequence == 0:
        return resolved, None
    return _announced(resolved, "resolved", now)


def _ended(alert: Alert, condition: Condition) -> Alert:
    """The alert with what it reads now."""
    of_then = ("cause", "verdict", "witnesses")
    last = {key: value for key, value in alert.details.items() if key not in of_then}
    return replace(alert, summary=over(alert, condition), details={**last, **condition.details})


def without_condition(
    alert: Alert, unwatched: str | None, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    """The alert after a step that made no condition for its key, and what to announce about it.

    ``unwatched`` says why nothing watches it any more, see `unwatched_because`: then a pending alert
    is forgotten (None), and a firing one ends as unwatched, with the reason as its summary. None:
    nothing is known, and unknown is not resolved. An end that is still owed is announced.
    """
    if alert.ended_at is not None:
        return _told_of_its_end(alert, now, silenced=silenced)
    if unwatched is None:
        return alert, None
    if alert.state is AlertState.PENDING:
        return None, None
    ended = replace(alert, state=AlertState.UNWATCHED, unwatched_at=now, summary=unwatched)
    if silenced or alert.sequence == 0:
        return ended, None
    return _announced(ended, "unwatched", now)


def end_owed(alert: Alert) -> bool:
    """Ended while silenced, after receivers had been told that it fires."""
    return (
        alert.ended_at is not None
        and alert.last_announced_at is not None
        and alert.last_announced_at < alert.ended_at
    )


def _told_of_its_end(
    alert: Alert, now: datetime, *, silenced: bool
) -> tuple[Alert, EventType | None]:
    if silenced or not end_owed(alert):
        return alert, None
    return _announced(alert, alert.state.value, now)


def _after_its_end(
    alert: Alert, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    if end_owed(alert) and condition.active:
        reopened = replace(alert, state=AlertState.FIRING, resolved_at=None, unwatched_at=None)
        return _held(reopened, condition, now, silenced=silenced)
    if not condition.active:
        resolved = end_owed(alert) and not silenced and alert.state is AlertState.RESOLVED
        read = _ended(alert, condition) if resolved else alert
        return _told_of_its_end(read, now, silenced=silenced)
    cooling = alert.resolved_at is not None and now < alert.resolved_at + condition.cooldown
    if not cooling or alert.resolved_at is None:
        return _begun(condition, now, silenced=silenced)
    if rank(condition.severity) <= rank(alert.severity):
        return alert, None
    until = (alert.resolved_at + condition.cooldown).isoformat()
    limit = {"severity": alert.severity, "until": until}
    return _begun(condition, now, silenced=silenced, cooling=limit)


_EVENTS: Final[Mapping[tuple[str, str], EventType]] = {
    ("drift", "detected"): "drift.detected",
    ("drift", "reminder"): "drift.reminder",
    ("drift", "resolved"): "drift.resolved",
    ("drift", "unwatched"): "drift.unwatched",
    ("silence", "detected"): "silence.detected",
    ("silence", "reminder"): "silence.reminder",
    ("silence", "resolved"): "silence.resolved",
    ("silence", "unwatched"): "silence.unwatched",
}


def _announced(alert: Alert, what: str, now: datetime) -> tuple[Alert, EventType]:
    told = replace(alert, sequence=alert.sequence + 1, last_announced_at=now)
    return told, _EVENTS[alert.kind, what]


def event_of(alert: Alert, event_type: EventType, now: datetime) -> Event:
    """The outbox row for what `transition` announced. Its id follows from alert and sequence."""
    return Event(
        event_id=f"evt_{uuid.UUID(alert.alert_id).hex}_{alert.sequence}",
        alert_id=alert.alert_id,
        type=event_type,
        sequence=alert.sequence,
        created_at=now,
        alert=alert,
    )


def audience(alert: Alert, endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    """Names of the endpoints that are told: those whose ``min_severity`` the alert has reached.

    Severity never falls while an alert is open, so whoever heard of it hears of its end.
    """
    return tuple(e.name for e in endpoints if rank(alert.severity) >= rank(e.min_severity))


def is_silenced(
    alert_labels: Mapping[str, str], silences: Sequence[Silence], now: datetime
) -> bool:
    """Does a silence apply now? All its matchers (label → glob) must match; an absent label is ''."""
    return any(
        silence.starts_at <= now < silence.ends_at
        and all(
            fnmatchcase(alert_labels.get(label, ""), pattern)
            for label, pattern in silence.matchers.items()
        )
        for silence in silences
    )
