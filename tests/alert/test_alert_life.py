"""The life of an alert: a model of what a receiver may ever hear, tried on generated histories."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor import operate
from monitor.alert.health import Health, PackHealth
from monitor.alert.policy import (
    WatchedPack,
    audience,
    conditions,
    end_owed,
    event_of,
    is_silenced,
    rank,
    silence_conditions,
    transition,
    unwatched_because,
    without_condition,
)
from monitor.settings import (
    DriftRule,
    Endpoint,
    IdentityRule,
    IdentitySettings,
    ServerCanarySettings,
    SilenceRule,
    Thresholds,
    TwinSettings,
)
from monitor.values.alerts import Alert, AlertState, Condition, Event, EventType, Severity, Silence
from monitor.values.features import Directed
from tests.alert.drifts import drift, feature, rule
from tests.scenes.examples import examples

T0 = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOLD, COOLDOWN, REMINDER = 2 * MINUTE, 30 * MINUTE, 60 * MINUTE


def condition(*, active: bool, severity: Severity = "warning", **changes: Any) -> Condition:
    given: dict[str, Any] = {
        "dedupe_key": "drift/p/toxic/all",
        "rule": "persona",
        "kind": "drift",
        "severity": severity,
        "active": active,
        "summary": "toxic rose",
        "labels": {"feature": "toxic"},
        "details": {},
        "hold_for": HOLD,
        "cooldown": COOLDOWN,
        "reminder": REMINDER,
    }
    return Condition(**given | changes)


@dataclass
class Told:
    minute: int
    type: EventType
    event: Event


class History:
    """One dedupe key through the minutes: what the store would keep, and what was announced."""

    def __init__(self) -> None:
        self.alert: Alert | None = None
        self._ended: Alert | None = None
        self.told: list[Told] = []
        self.minute = 0

    def see(
        self,
        active: bool | None,
        *,
        severity: Severity = "warning",
        silenced: bool = False,
        **changes: Any,
    ) -> Alert | None:
        """The next minute; ``active`` None is "unknown": no condition is made."""
        self.minute += 1
        now = T0 + self.minute * MINUTE
        if active is not None:
            seen = condition(active=active, severity=severity, **changes)
            self.alert, announced = transition(self.alert, seen, now, silenced=silenced)
            if self.alert is None:
                self.alert = self._ended  # what the store holds once the pending one is removed
            elif self.alert.ended_at is not None:
                self._ended = self.alert
            if announced:
                assert self.alert is not None
                event = event_of(self.alert, announced, now)
                self.told.append(Told(minute=self.minute, type=announced, event=event))
        return self.alert

    def acknowledge(self) -> None:
        if self.alert and self.alert.state is AlertState.FIRING:
            at = T0 + self.minute * MINUTE
            self.alert = replace(self.alert, acknowledged_at=at, acknowledged_by="ann")

    @property
    def types(self) -> list[str]:
        return [told.type for told in self.told]


def seen(*minutes: bool | None) -> History:
    history = History()
    for active in minutes:
        history.see(active)
    return history


def test_it_waits_for_hold_then_fires_once() -> None:
    history = seen(True, True)
    assert history.alert is not None
    assert history.alert.state is AlertState.PENDING
    assert history.types == []
    history.see(True)
    history.see(True)
    assert history.types == ["drift.detected"]


def test_a_short_rise_is_forgotten() -> None:
    history = seen(True, True, False)
    assert history.alert is None
    assert history.types == []


def test_hold_of_zero_fires_and_resolves_at_once() -> None:
    history = History()
    history.see(True, hold_for=timedelta(0))
    history.see(False, hold_for=timedelta(0))
    assert history.types == ["drift.detected", "drift.resolved"]


def test_one_dip_does_not_resolve_and_a_steady_calm_does() -> None:
    history = seen(True, True, True, False, True, False)
    assert history.types == ["drift.detected"]
    history.see(False)
    assert history.types == ["drift.detected", "drift.resolved"]
    assert history.alert is not None
    assert history.alert.state is AlertState.RESOLVED
    assert history.alert.details["when_fired"]["summary"] == "toxic rose"


def test_cooldown_keeps_the_key_quiet_unless_it_gets_worse() -> None:
    history = seen(True, True, True, False, False)
    for _ in range(10):
        history.see(True)
    assert history.types == ["drift.detected", "drift.resolved"]
    for _ in range(3):
        history.see(True, severity="critical")
    assert history.types == ["drift.detected", "drift.resolved", "drift.detected"]
    first, last = history.told[0].event, history.told[-1].event
    assert first.alert_id != last.alert_id
    assert last.alert.severity == "critical"


def test_after_the_cooldown_a_new_alert_begins_with_its_own_hold() -> None:
    history = seen(True, True, True, False, False)
    resolved_at = history.told[-1].minute
    while len(history.told) < 3:
        history.see(True)
    assert history.told[2].minute == resolved_at + (COOLDOWN + HOLD) // MINUTE


def test_severity_rises_aloud_and_never_falls() -> None:
    history = seen(True, True, True)
    history.see(True, severity="critical")
    history.see(True, severity="warning")
    history.see(True, severity="critical")
    assert history.types == ["drift.detected", "drift.detected"]
    assert [t.event.alert.severity for t in history.told] == ["warning", "critical"]
    assert history.alert is not None
    assert history.alert.severity == "critical"


def test_reminders_until_acknowledged_and_a_rise_withdraws_the_acknowledgement() -> None:
    history = seen(True, True, True)
    for _ in range(130):
        history.see(True)
    assert history.types == ["drift.detected", "drift.reminder", "drift.reminder"]
    history.acknowledge()
    for _ in range(130):
        history.see(True)
    assert len(history.told) == 3
    history.see(True, severity="critical")
    assert history.types[3:] == ["drift.detected"]
    assert history.alert is not None
    assert history.alert.acknowledged_at is None
    history.acknowledge()
    history.see(False)
    history.see(False)
    history.see(False)
    assert history.types[4:] == ["drift.resolved"]


def test_no_reminder_when_none_is_wanted() -> None:
    history = seen(True, True, True)
    for _ in range(300):
        history.see(True, reminder=None)
    assert history.types == ["drift.detected"]


def test_silence_holds_the_news_and_tells_it_afterwards() -> None:
    history = History()
    for _ in range(5):
        history.see(True, silenced=True)
    assert history.alert is not None
    assert history.alert.state is AlertState.FIRING
    assert history.types == []
    history.see(True)
    assert history.types == ["drift.detected"]
    history.see(True, severity="critical", silenced=True)
    assert history.alert is not None
    assert history.alert.severity == "warning", "severity stays what was announced"
    history.see(True, severity="critical")
    assert history.types == ["drift.detected", "drift.detected"]


def test_what_began_and_ended_in_silence_is_never_told() -> None:
    history = History()
    for active in (True, True, True, True, False, False, False):
        history.see(active, silenced=True)
    history.see(False)
    assert history.alert is not None
    assert history.alert.state is AlertState.RESOLVED
    assert history.types == []


def test_a_resolution_in_silence_is_owed_and_told_afterwards() -> None:
    history = seen(True, True, True)
    for _ in range(4):
        history.see(False, silenced=True)
    assert history.alert is not None
    assert end_owed(history.alert)
    history.see(False)
    assert history.types == ["drift.detected", "drift.resolved"]
    assert not end_owed(history.alert)


def test_a_return_before_the_owed_resolution_goes_on_with_the_same_alert() -> None:
    history = seen(True, True, True)
    before = history.alert
    for _ in range(4):
        history.see(False, silenced=True)
    history.see(True, silenced=True)
    assert before is not None
    assert history.alert is not None
    assert history.alert.state is AlertState.FIRING
    assert history.alert.alert_id == before.alert_id
    assert history.alert.resolved_at is None
    assert history.types == ["drift.detected"]


def test_an_alert_resolves_only_when_the_window_that_showed_it_is_clear() -> None:
    history = History()
    for _ in range(3):
        history.see(True, details={"shown_by": ["15m", "1h"]})
    for _ in range(9):
        history.see(False, details={"clear_windows": ["15m", "24h"]})
    assert history.types == ["drift.detected"], "the 1h window is thin: unknown is not resolved"
    history.see(False, details={"clear_windows": ["1h", "24h"]})
    assert history.types == ["drift.detected", "drift.resolved"]


moves = st.lists(
    st.tuples(
        st.sampled_from([True, True, False, None, "acknowledge"]),
        st.sampled_from(["info", "warning", "critical"]),
        st.booleans() | st.just(False),
        st.integers(1, 40),
    ),
    max_size=40,
)


@settings(max_examples=examples(300), deadline=None)
@given(moves=moves)
@example(
    # Graver when it began in the cooldown, forgotten when it was milder, and still there.
    moves=[
        (True, "info", False, 3),
        (False, "info", False, 2),
        (True, "warning", False, 1),
        (True, "info", False, 4),
    ]
)
@example(
    # Graver when it began in the cooldown, milder when it would fire.
    moves=[
        (True, "info", False, 3),
        (False, "info", False, 2),
        (True, "warning", False, 1),
        (True, "info", False, 2),
    ]
)
def test_what_a_receiver_hears_is_always_sound(moves: list[Any]) -> None:
    history = History()
    for active, severity, silenced, minutes in moves:
        for _ in range(minutes):
            if active == "acknowledge":
                history.acknowledge()
                break
            before = len(history.told)
            was = history.alert
            history.see(active, severity=severity, silenced=silenced)
            assert len(history.told) - before <= (0 if silenced else 1)
            if (
                was is not None
                and history.alert is not None
                and was.alert_id != history.alert.alert_id
                and history.alert.ended_at is None
            ):
                assert was.state is AlertState.RESOLVED, (
                    "a new alert begins only after the old ended"
                )
    told = history.told
    assert len({t.event.event_id for t in told}) == len(told)
    assert not any("." in t.event.event_id for t in told)
    open_alert: str | None = None
    spoken: Severity = "info"
    sequences: dict[str, int] = {}
    for at, t in enumerate(told):
        alert, what = t.event.alert, t.type.rpartition(".")[2]
        assert "cooling" not in alert.details, "bookkeeping is told to nobody"
        assert t.event.sequence == sequences.get(alert.alert_id, 0) + 1, "numbered without a gap"
        sequences[alert.alert_id] = t.event.sequence
        if open_alert is None:
            assert what == "detected"
        else:
            assert alert.alert_id == open_alert, "never two open alerts of one key"
            if what == "detected":
                assert rank(alert.severity) > rank(spoken), "detected again only when graver"
            if what == "reminder":
                assert t.minute - told[at - 1].minute >= REMINDER // MINUTE
                assert alert.acknowledged_at is None
            if what == "resolved":
                assert t.event.alert.last_active_at <= t.event.created_at - HOLD
        if at and told[at - 1].type.endswith("resolved") and rank(alert.severity) <= rank(spoken):
            resolved_at = told[at - 1].event.alert.resolved_at
            assert resolved_at is not None
            assert t.event.created_at >= resolved_at + COOLDOWN, "quiet during the cooldown"
        open_alert = None if what == "resolved" else alert.alert_id
        spoken = alert.severity
    # Nothing stays unsaid: after a long calm every alert that was told of is told to be over.
    for _ in range(5):
        history.see(False)
    assert not history.told or history.told[-1].type == "drift.resolved"


@settings(max_examples=examples(100), deadline=None)
@given(minutes=st.lists(st.booleans(), min_size=1, max_size=400))
def test_flapping_never_announces_more_often_than_the_cooldown_allows(minutes: list[bool]) -> None:
    history = History()
    for active in minutes:
        history.see(active)
    detected = [t.minute for t in history.told if t.type == "drift.detected"]
    quiet = (COOLDOWN + 2 * HOLD) // MINUTE
    assert all(b - a >= quiet for a, b in itertools.pairwise(detected))


def endpoint(name: str, severity: Severity) -> Endpoint:
    return Endpoint(name=name, url="http://x", format="slack", min_severity=severity)


def test_who_heard_of_it_hears_of_its_end() -> None:
    endpoints = [
        endpoint("all", "info"),
        endpoint("most", "warning"),
        endpoint("grave", "critical"),
    ]
    history = seen(True, True, True)
    history.see(True, severity="critical")
    for _ in range(3):
        history.see(False, severity="warning")
    heard = [audience(t.event.alert, endpoints) for t in history.told]
    assert heard == [("all", "most"), ("all", "most", "grave"), ("all", "most", "grave")]


def test_silences_match_by_glob_within_their_time() -> None:
    silence = Silence(
        silence_id="s",
        matchers={"feature": "tox*", "segment": "all"},
        starts_at=T0,
        ends_at=T0 + MINUTE,
        created_by="ann",
    )
    labels = {"feature": "toxic", "segment": "all"}
    assert is_silenced(labels, [silence], T0)
    assert not is_silenced(labels, [silence], T0 + MINUTE)
    assert not is_silenced(labels, [silence], T0 - MINUTE)
    assert not is_silenced({"feature": "toxic"}, [silence], T0)
    assert not is_silenced(labels, [], T0)


def test_a_silence_may_match_on_the_labels_that_alerts_have_and_on_no_other() -> None:
    """On any other it would be accepted and silence nothing."""
    facts = Health(since=T0, until=T0, watching_since=T0, packs=[PackHealth(pack_id="p")])
    (silence,) = silence_conditions(facts, [SilenceRule(name="no_baseline")], T0)
    (found,) = conditions([drift()], [rule()], [feature()])
    assert set(operate.SILENCED_LABELS) == set(found.labels) | set(silence.labels)


def test_a_silence_without_matchers_is_for_everything() -> None:
    silence = Silence(
        silence_id="s", matchers={}, starts_at=T0, ends_at=T0 + MINUTE, created_by="a"
    )
    assert is_silenced({}, [silence], T0)


@dataclass(frozen=True)
class Described(Directed):
    name: str = "toxic"
    tags: tuple[str, ...] = ()
    description: str = ""


def watched(**changes: Any) -> WatchedPack:
    given: dict[str, Any] = {"pack_id": "p", "baseline_id": "b", "features": [Described()]}
    return WatchedPack(**given | changes)


def firing(**changes: Any) -> Alert:
    history = History()
    for _ in range(3):
        history.see(True, **changes)
    assert history.alert is not None
    assert history.alert.state is AlertState.FIRING
    return history.alert


def reason(alert: Alert, *packs: WatchedPack, **changes: Any) -> str | None:
    given: dict[str, Any] = {
        "last_seen": {"p": T0},
        "rules": [DriftRule(name="any", severities={"info": Thresholds(shift=1.0)})],
        "silence_rules": [SilenceRule(name="lag", limit=1), SilenceRule(name="instrument")],
        "identity": IdentitySettings(share=0.1),
        "twin": TwinSettings(share=0.1),
        "server": ServerCanarySettings(url="http://served/v1", model="served"),
    }
    return unwatched_because(alert, packs, **given | changes)


DRIFT = {"feature": "toxic", "segment": "all", "pack": "p"}


@pytest.mark.parametrize(
    ("packs", "changes", "why"),
    [
        ([watched()], {}, None),
        ([watched(), watched(pack_id="p-2")], {}, None),
        ([watched(pack_id="p-2")], {}, "no worker of pack p since 2026-03-01 00:00 UTC"),
        ([], {"last_seen": {}}, "no worker of pack p is known"),
        ([watched(features=[])], {}, "no drift rule selects toxic in segment all"),
        ([watched()], {"rules": []}, "no drift rule selects toxic in segment all"),
        ([watched(baseline_id=None)], {}, "pack p has no approved baseline"),
    ],
)
def test_why_nothing_watches_a_drift_alert(
    packs: list[WatchedPack], changes: dict[str, Any], why: str | None
) -> None:
    said = reason(firing(labels=DRIFT), *packs, **changes)
    expected = why and f"no longer watched: {why}; read last: toxic rose"
    assert said == expected


@pytest.mark.parametrize(
    ("rule", "labels", "packs", "why"),
    [
        ("lag", {}, [], None),
        ("starvation", {}, [watched()], "no silence rule starvation is configured"),
        ("instrument", {"pack": "p"}, [watched(baseline_id=None)], None),
        ("instrument", {"pack": "p"}, [watched(pack_id="p-2")], "no worker of pack p since"),
        ("instrument", {}, [watched()], "instrument is now watched for each pack apart"),
    ],
)
def test_why_nothing_watches_an_alert_about_the_monitor(
    rule: str, labels: dict[str, str], packs: list[WatchedPack], why: str | None
) -> None:
    said = reason(firing(rule=rule, kind="silence", labels=labels), *packs)
    assert (said is None) if why is None else (said is not None and why in said)


def test_an_alert_that_nothing_watches_ends_once_and_not_as_resolved() -> None:
    alert, announced = without_condition(firing(), "no longer watched: …", T0, silenced=False)
    assert announced == "drift.unwatched"
    assert alert is not None
    assert (alert.state, alert.unwatched_at, alert.resolved_at) == (AlertState.UNWATCHED, T0, None)
    assert alert.summary == "no longer watched: …"
    later = T0 + MINUTE
    assert without_condition(alert, "no longer watched", later, silenced=False) == (alert, None)
    assert transition(alert, condition(active=False), later, silenced=False) == (alert, None)


def test_unknown_leaves_an_alert_as_it_is_and_a_pending_one_is_forgotten() -> None:
    alert = firing()
    assert without_condition(alert, None, T0, silenced=False) == (alert, None)
    pending = seen(True).alert
    assert pending is not None
    assert without_condition(pending, None, T0, silenced=False) == (pending, None)
    assert without_condition(pending, "why", T0, silenced=False) == (None, None)


def test_what_is_watched_again_begins_anew_without_a_cooldown() -> None:
    ended, _ = without_condition(firing(), "why", T0 + 5 * MINUTE, silenced=False)
    again, announced = transition(
        ended, condition(active=True, hold_for=timedelta(0)), T0 + 6 * MINUTE, silenced=False
    )
    assert announced == "drift.detected"
    assert again is not None
    assert ended is not None
    assert again.alert_id != ended.alert_id


def test_an_end_in_silence_is_owed_and_withdrawn_when_the_condition_is_back_first() -> None:
    ended, announced = without_condition(firing(), "why", T0 + 9 * MINUTE, silenced=True)
    assert ended is not None
    assert announced is None
    assert end_owed(ended)
    told, announced = without_condition(ended, "why", T0 + 10 * MINUTE, silenced=False)
    assert announced == "drift.unwatched"
    assert told is not None
    assert not end_owed(told)
    back, announced = transition(ended, condition(active=True), T0 + 10 * MINUTE, silenced=False)
    assert announced is None, "to its receivers it never ended"
    assert back is not None
    assert (back.alert_id, back.state, back.ended_at) == (ended.alert_id, AlertState.FIRING, None)


def test_alert_and_event_ids_follow_from_what_happened() -> None:
    a, b = seen(True, True, True), seen(True, True, True)
    assert a.told[0].event == b.told[0].event
    json.dumps(dict(a.told[0].event.alert.details))


IDENTITY = {"kind": "identity", "segment": "all", "pack": "p", "served": "llama@1"}


@pytest.mark.parametrize(
    ("packs", "settings", "expected"),
    [
        ([WatchedPack(pack_id="p", baseline_id=None, features=())], {"share": 0.1}, None),
        ([], {"share": 0.1}, "no worker of pack p since 2026-03-01 00:00 UTC"),
        ([], {}, "answers are not weighed any more"),
        ([], {"share": 0.1, "rule": None}, "identity.rule does not look at segment all"),
        (
            [],
            {"share": 0.1, "rule": IdentityRule(segments=("route=*",))},
            "identity.rule does not look at segment all",
        ),
    ],
)
def test_why_nothing_watches_an_alert_about_identity(
    packs: list[WatchedPack], settings: dict[str, Any], expected: str | None
) -> None:
    told = reason(firing(labels=IDENTITY), *packs, identity=IdentitySettings(**settings))
    assert (told is None) if expected is None else (told is not None and expected in told)
