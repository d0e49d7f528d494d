"""From conditions to alerts: the life of one alert, and what is announced about it. Pure.

`conditions` (rules.py) and `silence_conditions` (health.py) say what holds now; `transition` decides
what becomes of the alert.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final

from monitor.alert.health import Health, silence_conditions
from monitor.alert.rules import FeatureInfo, conditions, matches, rank, with_prompts
from monitor.alert.sentences import WHEN_FIRED, over, reading_when
from monitor.settings import DriftRule, Endpoint, SilenceRule
from monitor.values.alerts import Alert, AlertState, Condition, Event, EventType, Silence

__all__ = [
    "FeatureInfo",
    "Health",
    "audience",
    "conditions",
    "event_of",
    "is_silenced",
    "orphan_conditions",
    "rank",
    "resolution_owed",
    "silence_conditions",
    "transition",
    "with_prompts",
]

_IDS: Final = uuid.UUID("6f6f2f4e-5d0c-4f57-9b0e-3a2d8a5c1e77")


def transition(
    alert: Alert | None, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    """The alert after this condition, and what to announce about it; one step of a state machine.

    ``alert`` is the latest one of the condition's dedupe key (None when there is none, or when the
    last one resolved longer than its cooldown ago and its resolution was announced). A result of
    None means that the alert is to be forgotten: it was pending and never fired.

    * pending → firing once the condition has held for ``hold_for``; a pending alert whose condition
      stops holding is forgotten.
    * firing → resolved once the condition has not held for ``hold_for``. So one reading that dips
      below the line neither fires nor resolves anything. Summary and details are then of the
      resolution; what was read when it fired stays in ``details.when_fired``.
    * For ``cooldown`` after it resolved the key stays quiet, unless the condition is graver than the
      alert was; then a new alert begins.
    * Severity only rises while an alert is open. A rise is announced as another ``detected``, also
      when the alert was acknowledged, and withdraws the acknowledgement: it was given to less.
    * An acknowledged alert sends no reminders; its resolution is announced.
    * While silenced nothing is announced, and severity stays what was announced last. Afterwards
      whatever is still owed is announced: that it fires, that it got worse, or that it resolved. An
      alert that began and ended in silence is never announced. When the condition returns before
      an owed resolution could be announced, the same alert fires on: to its receivers it never ended.
    """
    if alert is None:
        return _begun(condition, now, silenced=silenced) if condition.active else (None, None)
    if alert.state is AlertState.RESOLVED:
        return _after_resolution(alert, condition, now, silenced=silenced)
    if condition.active:
        return _held(alert, condition, now, silenced=silenced)
    if alert.state is AlertState.PENDING:
        return None, None
    return _let_go(alert, condition, now, silenced=silenced)


def _begun(
    condition: Condition, now: datetime, *, silenced: bool
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
        details=condition.details,
        pending_since=now,
        last_active_at=now,
    )
    return _held(fresh, condition, now, silenced=silenced)


def _held(
    alert: Alert, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert, EventType | None]:
    fired = {WHEN_FIRED: alert.details[WHEN_FIRED]} if WHEN_FIRED in alert.details else {}
    alert = replace(
        alert,
        last_active_at=now,
        summary=condition.summary,
        details={**condition.details, **fired},
    )
    announced = alert.sequence > 0
    if not announced:
        alert = replace(alert, severity=condition.severity)
    if alert.state is AlertState.PENDING:
        if now - alert.pending_since < condition.hold_for:
            return alert, None
        alert = replace(alert, state=AlertState.FIRING, fired_at=now)
        alert = _marked(alert, condition, "fired", now)
    if silenced:
        return alert, None
    if not announced:
        return _announced(alert, "detected", now)
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
    """The alert with what it reads now; where nothing watches it any more, with its last figures."""
    last = {key: value for key, value in alert.details.items() if key not in ("cause", "verdict")}
    return replace(alert, summary=over(alert, condition), details={**last, **condition.details})


def resolution_owed(alert: Alert) -> bool:
    """Resolved while silenced, after receivers had been told that it fires."""
    return (
        alert.state is AlertState.RESOLVED
        and alert.resolved_at is not None
        and alert.last_announced_at is not None
        and alert.last_announced_at < alert.resolved_at
    )


def _after_resolution(
    alert: Alert, condition: Condition, now: datetime, *, silenced: bool
) -> tuple[Alert | None, EventType | None]:
    if resolution_owed(alert):
        if condition.active:
            reopened = replace(alert, state=AlertState.FIRING, resolved_at=None)
            return _held(reopened, condition, now, silenced=silenced)
        if silenced:
            return alert, None
        return _announced(_ended(alert, condition), "resolved", now)
    if not condition.active or alert.resolved_at is None:
        return alert, None
    cooling = now < alert.resolved_at + condition.cooldown
    if cooling and rank(condition.severity) <= rank(alert.severity):
        return alert, None
    return _begun(condition, now, silenced=silenced)


_EVENTS: Final[Mapping[tuple[str, str], EventType]] = {
    ("drift", "detected"): "drift.detected",
    ("drift", "reminder"): "drift.reminder",
    ("drift", "resolved"): "drift.resolved",
    ("silence", "detected"): "silence.detected",
    ("silence", "reminder"): "silence.reminder",
    ("silence", "resolved"): "silence.resolved",
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


def orphan_conditions(
    alerts: Sequence[Alert],
    *,
    pack_id: str | None,
    rules: Sequence[DriftRule],
    features: Sequence[FeatureInfo],
    silence_rules: Sequence[SilenceRule],
) -> list[Condition]:
    """Inactive conditions for open alerts that nothing watches any more.

    Their pack was replaced, or their rule left the configuration; without these they would stay open.
    """
    known = {feature.name: feature for feature in features}
    wanted = {rule.name for rule in silence_rules}
    made = []
    for alert in alerts:
        if alert.state is AlertState.RESOLVED:
            continue
        if alert.kind == "silence":
            watched = alert.rule in wanted
        else:
            feature = known.get(alert.labels.get("feature", ""))
            segment = alert.labels.get("segment", "")
            watched = alert.labels.get("pack") == pack_id and (
                feature is not None and any(matches(rule, feature, segment) for rule in rules)
            )
        if not watched:
            made.append(
                Condition(
                    dedupe_key=alert.dedupe_key,
                    rule=alert.rule,
                    kind=alert.kind,
                    severity=alert.severity,
                    active=False,
                    summary="no longer watched: its pack or its rule was replaced",
                    labels=alert.labels,
                    details={"clear_windows": alert.details.get("shown_by", [])},
                )
            )
    return made
