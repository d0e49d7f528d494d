"""The watcher where the served endpoint is asked directly: whose change it was, on a real PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text

from monitor.drift.server import evidence, limit
from monitor.settings import ServerCanarySettings
from monitor.store.alerts import list_alerts
from monitor.store.database import transaction
from monitor.store.server_canaries import save_round
from monitor.values.alerts import AlertState
from monitor.values.server_canaries import ServerRound
from monitor.watcher import Watcher
from tests.traffic import PACK, settings_of

HOUR = timedelta(hours=1)
ASKED = ServerCanarySettings(url="http://served:8000/v1", model="served")


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    return hour.resumed(database)


@pytest.fixture
def settings():
    return settings_of().model_copy(update={"server_canaries": ASKED})


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def asked(traffic, settings, *, beyond=0, problem="", before=timedelta(0)):
    """A round that the worker stored, ``before`` now."""
    at = traffic.minute - before
    made = ServerRound(
        pack_id=PACK, set_id="s", served="served", asked_at=at, asked=8, problem=problem
    )
    if not problem:
        made = ServerRound(
            pack_id=PACK,
            set_id="s",
            served="served",
            asked_at=at,
            asked=8,
            compared=8,
            compared_beyond=min(beyond, 8),
            questions=32,
            beyond=beyond,
            largest=float(beyond),
            evidence=evidence(beyond, 32),
            limit=limit(risk=0.01, every=HOUR, horizon=settings.drift.average_run_length),
            moved={"toxic": 1.25, "assistant": -0.2},
        )
    with transaction(traffic.database) as c:
        save_round(c, made)


def events_of(evaluations):
    return [event for seen in evaluations for event in seen.events]


def test_a_swapped_server_is_told_with_its_witness(traffic, settings, watcher, database):
    traffic.approve(settings)
    asked(traffic, settings)
    assert events_of(traffic.minutes(3, watcher=watcher)) == []
    asked(traffic, settings, beyond=20)
    (event,) = events_of(traffic.minutes(3, watcher=watcher))
    assert (event.type, event.alert.rule, event.alert.severity) == (
        "drift.detected",
        "server_changed",
        "critical",
    )
    assert event.alert.labels == {
        "kind": "server_canaries",
        "rule": "server_changed",
        "served": "served",
        "pack": PACK,
    }
    details = event.alert.details
    assert details["cause"] == "model_shift"
    assert "served answers 20 of 32 fixed questions otherwise" in details["verdict"]
    assert details["witnesses"]["server_canaries"]["finding"] == "moved"
    assert details["towards"] == {"toxic": 1.25, "assistant": -0.2}
    assert details["evidence"]["value"] > details["evidence"]["limit"]
    with database.connect() as c:
        c.execute(text(details["query"])).all()
        crossed = c.execute(text("SELECT crossed FROM monitor.server_canaries")).scalars().all()
    assert sorted(crossed) == [False, True]


def test_what_drifts_meanwhile_is_put_down_to_the_model(traffic, settings, watcher):
    traffic.approve(settings)
    asked(traffic, settings, beyond=20)
    seen = traffic.minutes(12, shift=(1.5, 0.0), watcher=watcher)
    persona = next(e for e in events_of(seen) if e.alert.labels.get("feature") == "toxic")
    assert persona.alert.details["cause"] == "model_shift"
    assert "asked directly" in persona.alert.details["verdict"] or (
        "otherwise than the copy" in persona.alert.details["verdict"]
    )


def test_a_fresh_round_vouches_for_the_server_where_users_change(traffic, settings, watcher):
    traffic.approve(settings)
    seen = traffic.minutes(10, shift=(1.5, 0.0), watcher=watcher)
    assert seen[-1].packs[0].cause == "unknown"
    asked(traffic, settings)
    seen = traffic.minutes(2, shift=(1.5, 0.0), watcher=watcher)
    assert seen[-1].packs[0].cause == "input_shift"


def test_a_round_from_before_the_window_leaves_it_undecided(traffic, settings, watcher):
    traffic.approve(settings)
    asked(traffic, settings, before=timedelta(minutes=40))
    seen = traffic.minutes(2, shift=(1.5, 0.0), watcher=watcher)
    assert seen[-1].packs[0].cause == "undecided"


def test_a_server_that_is_away_is_unknown_and_pages_nobody(traffic, settings, watcher):
    traffic.approve(settings)
    asked(traffic, settings, problem="HTTP 503")
    seen = traffic.minutes(3, watcher=watcher)
    assert events_of(seen) == []
    assert seen[-1].packs[0].cause == "unknown"
    drift = next(d for d in seen[-1].drifts if d.segment == "all")
    witness = next(w for w in drift.witnesses if w.name == "server_canaries")
    assert witness.finding == "absent"
    assert "HTTP 503" in witness.told


def test_an_alert_stays_while_the_server_is_away_and_ends_when_it_is_the_copy_again(
    traffic, settings, watcher
):
    asked(traffic, settings, beyond=20)
    (fired,) = events_of(traffic.minutes(2, watcher=watcher))
    asked(traffic, settings, problem="HTTP 503")
    assert events_of(traffic.minutes(2, watcher=watcher)) == []
    asked(traffic, settings)
    (ended,) = events_of(traffic.minutes(2, watcher=watcher))
    assert ended.type == "drift.resolved"
    assert ended.alert.alert_id == fired.alert.alert_id
    assert "answers as the monitored copy does" in ended.alert.summary


def test_when_asking_is_switched_off_its_alert_ends_as_unwatched(
    traffic, settings, watcher, database
):
    asked(traffic, settings, beyond=20)
    traffic.minutes(2, watcher=watcher)
    traffic.minutes(1, watcher=Watcher(database, settings_of(), clock=traffic.now))
    with transaction(database) as c:
        (alert,) = [a for a in list_alerts(c) if a.rule == "server_changed"]
    assert alert.state is AlertState.UNWATCHED
    assert "server_canaries.url is null" in alert.summary


def test_a_copy_in_doubt_accuses_nobody(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    traffic.canaries = False
    with transaction(traffic.database) as c:
        traffic.run_canaries(c)
    asked(traffic, settings, beyond=20)
    seen = traffic.minutes(8, watcher=watcher)
    assert {e.alert.rule for e in events_of(seen)} == {"instrument"}
