"""The watcher where the copy answers some prompts too: whose change it was, on a real PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import text

from monitor.settings import TwinSettings
from monitor.store.alerts import list_alerts
from monitor.store.database import transaction
from monitor.store.twins import load_twins
from monitor.store.windows import read_windows
from monitor.values.alerts import AlertState
from monitor.values.surprise import NotWeighed
from monitor.values.witnesses import Cause
from monitor.watcher import Watcher
from tests.scenes.twinned import Twinned
from tests.traffic import MINUTE, PACK, settings_of

SHARE = 0.2


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    """After a quiet hour without a twin."""
    other = hour.resumed(database)
    other.__class__ = Twinned
    return other


@pytest.fixture
def settings():
    return settings_of(twin=TwinSettings(share=SHARE))


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def rules(evaluations):
    return [event.alert.rule for seen in evaluations for event in seen.events]


def test_users_who_change_the_topic_are_named(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.asks = (1.5, 0.0)
    seen = traffic.minutes(15, watcher=watcher)
    events = [e for evaluation in seen for e in evaluation.events]
    assert {e.alert.labels.get("feature") for e in events} == {"toxic"}
    shown = next(d for d in seen[-1].drifts if (d.feature, d.window) == ("toxic", "15m"))
    assert shown.cause is Cause.INPUT_SHIFT
    (twin,) = [w for w in shown.witnesses if w.name == "twin"]
    assert twin.finding == "steady"
    assert abs(twin.figures["difference"]["value"]) < 0.4
    assert twin.figures["bound"] > 0.5
    assert "answers of the copy's own to the same prompts" in twin.told


def test_a_model_replaced_under_its_old_name_is_named(traffic, settings, watcher, database):
    traffic.approve(settings)
    assert rules(traffic.minutes(10, watcher=watcher)) == []
    traffic.served = (1.5, 0.0)
    seen = traffic.minutes(12, watcher=watcher)
    events = [e for evaluation in seen for e in evaluation.events]
    twin = next(e.alert for e in events if e.alert.rule == "twin")
    assert twin.severity == "critical"
    assert twin.labels == {"kind": "twin", "rule": "twin", "segment": "all", "pack": PACK}
    assert twin.details["cause"] == "model_shift"
    assert [one["feature"] for one in twin.details["features"]] == ["toxic"]
    assert "read otherwise than the monitored copy's own (toxic)" in twin.summary
    persona = [d for d in seen[-1].drifts if (d.feature, d.segment) == ("toxic", "all")]
    assert {d.cause for d in persona} == {Cause.MODEL_SHIFT}
    with database.connect() as c:
        rows = c.execute(text(twin.details["query"])).all()
        states = c.execute(text("SELECT feature, crossed FROM monitor.twins ORDER BY 1")).all()
        kept = c.scalar(
            text("""
                SELECT witnesses -> 'twin' ->> 'finding' FROM monitor.drift_history
                WHERE segment = 'all' ORDER BY evaluated_at DESC LIMIT 1
            """)
        )
    assert rows
    assert [tuple(row) for row in states] == [("assistant", False), ("toxic", True)]
    assert kept == "moved"


def test_users_and_model_at_once_are_told_apart(traffic, settings, watcher):
    """One topic moves a feature, the model another: what moved the twin is said."""
    traffic.approve(settings)
    traffic.asks, traffic.served = (1.5, 0.0), (0.0, -1.5)
    seen = traffic.minutes(12, watcher=watcher)
    (twin,) = [w for w in seen[-1].drifts[0].witnesses if w.name == "twin"]
    assert (twin.finding, twin.figures["feature"]) == ("moved", "assistant")


def test_the_twin_needs_no_baseline(traffic, watcher):
    traffic.served = (1.5, 0.0)
    seen = traffic.minutes(10, watcher=watcher)
    assert rules(seen) == ["twin"]


def test_too_few_twins_decide_nothing_and_say_how_many_would(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.asks = (0.6, 0.0)
    seen = traffic.minutes(2, watcher=watcher)
    shown = next(d for d in seen[-1].drifts if (d.feature, d.window) == ("toxic", "1h"))
    (twin,) = [w for w in shown.witnesses if w.name == "twin"]
    assert twin.finding == "unsure"
    assert shown.cause is Cause.UNDECIDED


def test_prompts_without_a_twin_are_counted_with_their_reason(traffic, watcher, database):
    traffic.reason = NotWeighed.SAMPLING_UNKNOWN
    traffic.minutes(2, watcher=watcher)
    with database.connect() as c:
        found = c.execute(
            text("SELECT twinning, feature, count(*) FROM monitor.twin_scores GROUP BY 1, 2")
        ).all()
    assert [tuple(row) for row in found] == [("sampling_unknown", None, 24)]


def test_a_copy_in_doubt_accuses_nobody(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    traffic.canaries = False
    with transaction(traffic.database) as c:
        traffic.run_canaries(c)
    traffic.served = (1.5, 0.0)
    seen = traffic.minutes(12, watcher=watcher)
    assert set(rules(seen)) == {"instrument"}
    # What was answered meanwhile is passed over, not held against the server later.
    traffic.canaries, traffic.served = True, (0.0, 0.0)
    with transaction(traffic.database) as c:
        traffic.run_canaries(c)
    assert "twin" not in rules(traffic.minutes(5, watcher=watcher))


def test_a_restart_in_the_middle_changes_nothing(traffic, settings, database):
    for shift in [0.0] * 5 + [1.5] * 5:
        traffic.served = (shift, 0.0)
        traffic.minutes(1, watcher=Watcher(database, settings, clock=traffic.now))
    with transaction(database) as c:
        state = load_twins(c, PACK)[0, "all"]
        (window,) = read_windows(
            c,
            PACK,
            [(traffic.minute - timedelta(hours=1), traffic.minute)],
            features=[0],
            segments=["all"],
            of_twins=True,
        )
    # The last minute is open until the next step.
    assert state.n in (window.n, window.n - 12)
    assert state.crossed


def test_when_twins_are_switched_off_their_alert_ends_as_unwatched(
    traffic, settings, watcher, database
):
    traffic.served = (1.5, 0.0)
    traffic.minutes(10, watcher=watcher)
    off = Watcher(database, settings_of(), clock=traffic.now)
    traffic.minutes(1, watcher=off)
    with transaction(database) as c:
        (alert,) = [a for a in list_alerts(c) if a.rule == "twin"]
    assert alert.state is AlertState.UNWATCHED
    assert "twin.share is 0" in alert.summary


def test_the_false_alarms_of_all_families_share_one_budget(traffic, settings, watcher):
    traffic.approve(settings)
    seen = traffic.minutes(2, watcher=watcher)
    streams = 2
    budget = settings.drift.average_run_length / MINUTE
    for drift in seen[-1].drifts:
        assert drift.evidence_limit == pytest.approx(np.log(2 * budget * streams))
    for state in seen[-1].packs[0].heard.twins.tests["all"]:
        assert state.limit == pytest.approx(np.log(2 * budget * streams))


def test_differences_are_no_scores(traffic, settings, watcher, database):
    """They share the table of buckets, and neither windows nor baselines of scores see them."""
    traffic.served = (4.0, 0.0)
    made = traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    with transaction(database) as c:
        ends = [(traffic.minute - 2 * MINUTE, traffic.minute)]
        (raw,) = read_windows(c, PACK, ends, features=[0], segments=["all"])
        (twins,) = read_windows(c, PACK, ends, features=[0], segments=["all"], of_twins=True)
        shown = c.execute(
            text("""
                SELECT sum(n)::int FROM monitor.twin_windows
                WHERE feature = 'toxic' AND segment = 'all'
            """)
        ).scalar_one()
    assert (raw.n, twins.n, shown) == (120, 24, 24)
    assert made.streams[0, "all"].window.n == 3_600
