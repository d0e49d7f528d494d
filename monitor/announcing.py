"""What an evaluation tells: every alert one step on, stored together with what is announced about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from monitor.alert.policy import (
    audience,
    event_of,
    is_silenced,
    transition,
    unwatched_because,
    with_prompts,
    without_condition,
)
from monitor.ledger import Ledger
from monitor.settings import Settings
from monitor.values.alerts import Alert, AlertState, Condition, Event, EventType
from monitor.values.presence import PackPresence
from monitor.vouching import Examined

STRONGEST_PROMPTS: Final = 5


def announce(
    ledger: Ledger,
    settings: Settings,
    presence: Sequence[PackPresence],
    examined: Sequence[Examined],
    made: Sequence[Condition],
    now: datetime,
) -> tuple[list[Event], list[Alert]]:
    """Take every alert one step on; what was put into the outbox, and what fires now."""
    drift = settings.drift
    cooldowns = [rule.cooldown for rule in drift.rules]
    cooldowns += [rule.cooldown for rule in drift.silence_rules]
    others = (settings.identity.rule, settings.twin.rule, settings.server_canaries.rule)
    cooldowns += [rule.cooldown for rule in others if rule is not None]
    recent = ledger.alerts(now - max(cooldowns, default=timedelta(0)))
    known = {alert.dedupe_key: alert for alert in recent}
    silences = ledger.silences(now)
    events: list[Event] = []
    stands: list[Alert] = []

    def keep(before: Alert | None, after: Alert | None, announced: EventType | None) -> None:
        if after is None:
            if before is not None:
                ledger.forget(before.alert_id)
            return
        if announced in ("drift.detected", "drift.reminder") and "feature" in after.labels:
            after = _with_strongest(ledger, after, examined)
        event = event_of(after, announced, now) if announced else None
        if event or after != before:
            told = audience(after, settings.alerts.endpoints) if event else ()
            ledger.keep_alert(after, event, told)
        if event:
            events.append(event)
        stands.append(after)

    for condition in made:
        before = known.pop(condition.dedupe_key, None)
        silenced = is_silenced(condition.labels, silences, now)
        keep(before, *transition(before, _kept(condition, before), now, silenced=silenced))
    watched = [pack.subject.info() for pack in examined]
    last_seen = {p.pack_id: p.last_seen_at for p in presence if p.last_seen_at is not None}
    for alert in known.values():
        why = unwatched_because(
            alert,
            watched,
            last_seen=last_seen,
            rules=drift.rules,
            silence_rules=drift.silence_rules,
            identity=settings.identity,
            twin=settings.twin,
            server=settings.server_canaries,
        )
        silenced = is_silenced(alert.labels, silences, now)
        keep(alert, *without_condition(alert, why, now, silenced=silenced))
    return events, [alert for alert in stands if alert.state is AlertState.FIRING]


def announce_alone(
    ledger: Ledger, settings: Settings, condition: Condition, now: datetime
) -> Event | None:
    """Take the alert of one condition a step on, where no evaluation does; what was put into the outbox.

    Raises `StaleAlert`, and the transaction must be rolled back, when another process was faster.
    """
    recent = ledger.alerts(now - condition.cooldown)
    before = next((one for one in recent if one.dedupe_key == condition.dedupe_key), None)
    silenced = is_silenced(condition.labels, ledger.silences(now), now)
    after, announced = transition(before, condition, now, silenced=silenced)
    if after is None or after == before:
        return None
    event = event_of(after, announced, now) if announced else None
    ledger.keep_alert(after, event, audience(after, settings.alerts.endpoints) if event else ())
    return event


def _kept(condition: Condition, before: Alert | None) -> Condition:
    """The condition with the prompts that were found when the alert was announced."""
    if before is None or "strongest_prompts" not in before.details:
        return condition
    return with_prompts(condition, before.details["strongest_prompts"])


def _with_strongest(ledger: Ledger, alert: Alert, examined: Sequence[Examined]) -> Alert:
    """The alert with ids and scores of the strongest prompts of its window; never their text."""
    pack = next(pack for pack in examined if pack.subject.pack_id == alert.labels["pack"])
    shown = next(
        drift
        for drift in pack.drifts
        if drift.window == alert.details["window"]
        and drift.feature == alert.labels["feature"]
        and drift.segment == alert.labels["segment"]
    )
    feature = next(f for f in pack.subject.features if f.name == shown.feature)
    rows = ledger.strongest_prompts(feature, shown, STRONGEST_PROMPTS)
    prompts = [
        {
            "prompt_id": row["prompt_id"],
            "score": round(row["score"], 3),
            **({"adjusted": round(row["adjusted"], 3)} if shown.adjusted else {}),
            "recorded_at": row["recorded_at"].isoformat(),
            "record": f"{row['topic']}/{row['partition']}/{row['record_offset']}",
        }
        for row in rows
    ]
    return replace(alert, details={**alert.details, "strongest_prompts": prompts})
