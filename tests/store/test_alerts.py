"""Alerts, the outbox in the alert's transaction, and deliveries that couriers share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from monitor.errors import BadInput, Discard, StaleAlert
from monitor.store.alerts import (
    acknowledge,
    active_silences,
    add_silence,
    end_silence,
    forget_alert,
    list_alerts,
    open_alerts,
    recent_alerts,
    save_alert,
)
from monitor.store.database import transaction
from monitor.store.outbox import (
    Tried,
    add_event,
    claim_deliveries,
    disable_endpoint,
    disabled_endpoints,
    enable_endpoint,
    list_deliveries,
    record_attempts,
    replay_delivery,
)
from monitor.values.alerts import (
    Alert,
    AlertState,
    Attempt,
    Delivery,
    DeliveryState,
    Outcome,
    Silence,
)
from tests.store.builders import MINUTE, NOON, alert, event

LEASE = 60.0


def announce(database: Engine, of: Alert, endpoints: Sequence[str] = ("hook",)) -> None:
    with transaction(database) as c:
        save_alert(c, of, event(of), endpoints)


def claim(
    database: Engine,
    now: datetime,
    *,
    limit: int = 10,
    endpoints: Sequence[str] = ("hook", "pager"),
) -> list[Delivery]:
    with transaction(database) as c:
        return claim_deliveries(c, now, limit, LEASE, endpoints)


def attempt(
    database: Engine,
    delivery: Delivery,
    at: datetime,
    state: DeliveryState = DeliveryState.DELIVERED,
    retry: datetime | None = None,
) -> None:
    outcome = Outcome.DELIVERED if state is DeliveryState.DELIVERED else Outcome.RETRY
    made = Attempt(attempted_at=at, outcome=outcome, status=200, latency_seconds=0.1, error="e\0")
    with transaction(database) as c:
        tried = Tried(delivery_id=delivery.delivery_id, attempt=made, state=state, next_at=retry)
        record_attempts(c, [tried])


def test_alert_comes_back_as_it_was(database: Engine) -> None:
    given = alert(sequence=1)
    announce(database, given)
    with transaction(database) as c:
        (kept,) = open_alerts(c)
    assert kept.details == {"shift": {"value": 0.5, "high": None}, "note": "nul�"}
    assert replace(kept, details=given.details) == given


def test_an_unwatched_alert_is_told_apart_from_a_resolved_one(database: Engine) -> None:
    ended = replace(alert(sequence=2), state=AlertState.UNWATCHED, unwatched_at=NOON, details={})
    with transaction(database) as c:
        save_alert(c, ended, event(ended, "drift.unwatched"), ["pager"])
        assert list_alerts(c) == [ended]
        assert open_alerts(c) == []
        assert recent_alerts(c, NOON) == [ended]
        (delivery,) = list_deliveries(c)
        assert delivery.event.alert == ended
        seen = c.execute(text("SELECT state, resolved_at, unwatched_at FROM monitor.alerts")).one()
        assert tuple(seen) == ("unwatched", None, NOON)
        # The release before this one goes on reading the table, and takes it for resolved.
        row = c.execute(text("SELECT state, resolved_at FROM monitor_data.alerts")).one()
        assert tuple(row) == ("resolved", NOON)


def test_an_event_that_waited_through_the_upgrade_is_still_told(database: Engine) -> None:
    waits = replace(alert(sequence=1), details={})
    with transaction(database) as c:
        save_alert(c, waits, event(waits), ["pager"])
        keys = c.scalar(
            text("SELECT array_agg(key) FROM monitor_data.events, jsonb_object_keys(alert) AS key")
        )
        assert "unwatched_at" not in keys, "as the release before wrote it"
        (delivery,) = list_deliveries(c)
    assert delivery.event.alert == waits


def test_event_and_alert_are_stored_together_or_not_at_all(database: Engine) -> None:
    with pytest.raises(RuntimeError), transaction(database) as c:
        save_alert(c, alert(sequence=1), event(alert(sequence=1)), ["hook"])
        raise RuntimeError("killed before its commit")
    assert claim(database, NOON + MINUTE) == []
    with transaction(database) as c:
        assert open_alerts(c) == []


def test_one_open_alert_per_key(database: Engine) -> None:
    announce(database, alert(1, sequence=1))
    with pytest.raises(StaleAlert):
        announce(database, alert(2, sequence=1))
    announce(database, alert(3, key="pack/deceptive/all", sequence=1))
    with transaction(database) as c:
        assert [a.alert_id for a in open_alerts(c)] == ["alert-1", "alert-3"]


def test_one_open_alert_per_key_under_a_race(database: Engine) -> None:
    barrier = threading.Barrier(6)
    lost: list[Discard] = []

    def watcher(number: int) -> None:
        barrier.wait()
        try:
            announce(database, alert(number, sequence=1))
        except Discard as discard:
            lost.append(discard)

    threads = [threading.Thread(target=watcher, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 5
    with transaction(database) as c:
        assert len(open_alerts(c)) == 1
    assert len(claim(database, NOON + MINUTE)) == 1 or len(claim(database, NOON + 9 * MINUTE)) == 1


def test_the_same_step_is_announced_once(database: Engine) -> None:
    """A watcher that lost its lock comes with the step that its successor has announced."""
    announce(database, alert(sequence=1))
    with pytest.raises(StaleAlert):
        announce(database, alert(sequence=1))
    announce(database, alert(sequence=2))
    with pytest.raises(StaleAlert), transaction(database) as c:
        save_alert(c, alert(sequence=1))
    with transaction(database) as c:
        assert c.scalar(text("SELECT count(*) FROM monitor_data.events")) == 2


def test_key_is_free_again_after_resolution(database: Engine) -> None:
    resolved = replace(alert(sequence=2), state=AlertState.RESOLVED, resolved_at=NOON + MINUTE)
    announce(database, resolved)
    announce(database, alert(2, sequence=1))
    with transaction(database) as c:
        assert [a.alert_id for a in open_alerts(c)] == ["alert-2"]
        assert {a.alert_id for a in list_alerts(c)} == {"alert-1", "alert-2"}
        assert [a.alert_id for a in list_alerts(c, states=["resolved"])] == ["alert-1"]


def test_recent_alerts_are_the_last_of_each_key(database: Engine) -> None:
    def resolved(number: int, key: str, at: datetime, announced: datetime) -> Alert:
        return replace(
            alert(number, key=key, sequence=2),
            state=AlertState.RESOLVED,
            resolved_at=at,
            last_announced_at=announced,
        )

    old, now = NOON - timedelta(days=2), NOON + MINUTE
    announce(database, resolved(1, "long gone", old, old))
    announce(database, resolved(2, "owes its end", old, old - MINUTE))
    announce(database, resolved(3, "cooling down", now, now))
    announce(database, replace(resolved(4, "twice", now, now), pending_since=old))
    announce(database, alert(5, key="twice", sequence=1))
    with transaction(database) as c:
        recent = recent_alerts(c, NOON)
    assert {a.dedupe_key: a.alert_id for a in recent} == {
        "owes its end": "alert-2",
        "cooling down": "alert-3",
        "twice": "alert-5",
    }


def test_acknowledgement_outlives_the_watchers_next_save_but_not_a_graver_alert(
    database: Engine,
) -> None:
    announce(database, alert(sequence=1))
    with transaction(database) as c:
        acknowledge(c, "alert-1", "ada", NOON + MINUTE)
        save_alert(c, replace(alert(sequence=1), last_active_at=NOON + 2 * MINUTE))
        (kept,) = open_alerts(c)
        assert (kept.acknowledged_by, kept.acknowledged_at) == ("ada", NOON + MINUTE)
        save_alert(c, replace(alert(sequence=2), severity="critical"))
        (worse,) = open_alerts(c)
    assert worse.acknowledged_by is None


def test_only_open_alerts_are_acknowledged(database: Engine) -> None:
    with pytest.raises(BadInput, match="no open alert 'nobody'"), transaction(database) as c:
        acknowledge(c, "nobody", "ada", NOON)


def test_pending_alert_is_forgotten_and_a_firing_one_is_not(database: Engine) -> None:
    with transaction(database) as c:
        save_alert(c, alert(1))
        save_alert(c, alert(2, key="other", sequence=1))
        forget_alert(c, "alert-1")
        forget_alert(c, "alert-2")
        assert [a.alert_id for a in open_alerts(c)] == ["alert-2"]


def test_silences_hold_between_their_times(database: Engine) -> None:
    silence = Silence(
        silence_id="s1",
        matchers={"feature": "tox*"},
        starts_at=NOON,
        ends_at=NOON + 10 * MINUTE,
        created_by="ada",
        comment="deploy",
    )
    with transaction(database) as c:
        add_silence(c, silence)
        assert active_silences(c, NOON - MINUTE) == []
        assert active_silences(c, NOON) == [silence]
        assert active_silences(c, NOON + 10 * MINUTE) == []
        end_silence(c, "s1", NOON + MINUTE)
        assert active_silences(c, NOON + 2 * MINUTE) == []
        with pytest.raises(BadInput):
            end_silence(c, "s1", NOON + 2 * MINUTE)
        with pytest.raises(BadInput, match="ends_at"):
            add_silence(c, replace(silence, silence_id="s2", ends_at=NOON))


def test_every_endpoint_gets_its_own_delivery(database: Engine) -> None:
    announce(database, alert(sequence=1), ["hook", "pager", "hook"])
    claimed = claim(database, NOON + MINUTE)
    assert [d.endpoint for d in claimed] == ["hook", "pager"]
    assert {d.event.event_id for d in claimed} == {"evt_alert-1_1"}
    assert claimed[0].event.alert.state is AlertState.FIRING
    assert claimed[0].event.alert.fired_at == NOON


def test_couriers_never_take_the_same_delivery(database: Engine) -> None:
    for number in range(30):
        announce(database, alert(number, key=f"key-{number}", sequence=1))
    barrier = threading.Barrier(3)
    taken: list[list[int]] = []

    def courier() -> None:
        barrier.wait()
        mine: list[int] = []
        while batch := claim(database, NOON + 2 * MINUTE, limit=3):
            mine += [delivery.delivery_id for delivery in batch]
        taken.append(mine)

    threads = [threading.Thread(target=courier) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [delivery for mine in taken for delivery in mine]
    assert len(every) == len(set(every)) == 30


def test_claiming_skips_what_another_courier_is_claiming(database: Engine) -> None:
    for number in range(2):
        announce(database, alert(number, key=f"key-{number}", sequence=1))
    with transaction(database) as c:
        (first,) = claim_deliveries(c, NOON + 2 * MINUTE, 1, LEASE, ["hook"])
        (second,) = claim(database, NOON + 2 * MINUTE)
    assert first.delivery_id != second.delivery_id


def test_lease_of_a_dead_courier_ends(database: Engine) -> None:
    announce(database, alert(sequence=1))
    (first,) = claim(database, NOON + MINUTE)
    assert claim(database, NOON + MINUTE + timedelta(seconds=59)) == []
    (again,) = claim(database, NOON + 2 * MINUTE)
    assert again.event.event_id == first.event.event_id


def test_events_of_an_alert_go_in_order(database: Engine) -> None:
    """The resolution waits for the alarm, on the same endpoint; another endpoint does not wait."""
    announce(database, alert(sequence=1), ["hook", "pager"])
    announce(database, alert(sequence=2), ["hook", "pager"])
    first = {d.endpoint: d for d in claim(database, NOON + 5 * MINUTE)}
    assert {d.event.sequence for d in first.values()} == {1}

    attempt(database, first["pager"], NOON + 5 * MINUTE)
    later = NOON + 30 * MINUTE
    attempt(database, first["hook"], NOON + 5 * MINUTE, DeliveryState.WAITING, later)
    (second,) = claim(database, NOON + 6 * MINUTE)
    assert (second.endpoint, second.event.sequence) == ("pager", 2)

    (retried,) = claim(database, later, endpoints=["hook"])
    assert (retried.event.sequence, retried.attempts) == (1, 1)
    attempt(database, retried, later, DeliveryState.GIVEN_UP)
    assert [d.event.sequence for d in claim(database, later, endpoints=["hook"])] == [2]


def test_attempts_are_kept_and_a_late_courier_takes_nothing_back(database: Engine) -> None:
    announce(database, alert(sequence=1))
    (delivery,) = claim(database, NOON + MINUTE)
    attempt(database, delivery, NOON + MINUTE)
    attempt(database, delivery, NOON + 3 * MINUTE, DeliveryState.WAITING, NOON + 4 * MINUTE)
    with transaction(database) as c:
        (kept,) = list_deliveries(c)
        tries = c.execute(
            text("SELECT number, outcome, error FROM monitor_data.delivery_attempts ORDER BY 1")
        ).all()
    assert (kept.state, kept.attempts) == (DeliveryState.DELIVERED, 2)
    assert [tuple(row) for row in tries] == [(1, "delivered", "e�"), (2, "retry", "e�")]
    assert claim(database, NOON + 9 * MINUTE) == []


def test_disabled_endpoint_gets_nothing_until_enabled(database: Engine) -> None:
    announce(database, alert(sequence=1), ["hook", "pager"])
    with transaction(database) as c:
        disable_endpoint(c, "hook", NOON, "answered 410")
        assert disabled_endpoints(c) == {"hook": "answered 410"}
    assert [d.endpoint for d in claim(database, NOON + MINUTE)] == ["pager"]
    with transaction(database) as c:
        enable_endpoint(c, "hook")
    assert [d.endpoint for d in claim(database, NOON + MINUTE)] == ["hook"]


def test_replay_sends_the_same_event_again(database: Engine) -> None:
    announce(database, alert(sequence=1))
    (delivery,) = claim(database, NOON + MINUTE)
    attempt(database, delivery, NOON + MINUTE)
    with transaction(database) as c:
        replay_delivery(c, delivery.delivery_id, NOON + 5 * MINUTE)
    (again,) = claim(database, NOON + 5 * MINUTE)
    assert again.event == delivery.event
    with pytest.raises(BadInput, match="no delivery 999"), transaction(database) as c:
        replay_delivery(c, 999, NOON)


def test_deliveries_are_listed_newest_first(database: Engine) -> None:
    announce(database, alert(sequence=1), ["hook", "pager"])
    announce(database, alert(sequence=2), ["hook"])
    with transaction(database) as c:
        listed = list_deliveries(c, endpoint="hook", states=["waiting"])
    assert [d.event.sequence for d in listed] == [2, 1]


def test_an_alert_that_was_never_stored_can_be_announced(database: Engine) -> None:
    """`monitor.test` events."""
    trial = replace(alert(7, sequence=1), pending_since=datetime(2026, 1, 1, tzinfo=UTC))
    with transaction(database) as c:
        add_event(c, event(trial, "monitor.test"), ["hook"])
        assert open_alerts(c) == []
    (delivery,) = claim(database, NOON + 2 * MINUTE)
    assert delivery.event.type == "monitor.test"
