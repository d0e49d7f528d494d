"""The watcher where answers are weighed: whose change it was, on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import text

from monitor.settings import IdentitySettings, Settings
from monitor.store.alerts import list_alerts
from monitor.store.database import transaction
from monitor.store.identity import load_identity, tallies
from monitor.values.alerts import AlertState
from monitor.values.surprise import TILTS, NotWeighed, Surprise
from monitor.values.witnesses import Cause
from monitor.watcher import Watcher
from monitor.weighing import Weighing
from tests.traffic import MINUTE, PACK, Traffic, settings_of

SHARE = 0.1
TOKENS, SPREAD = 40, 2.0


class Weighed(Traffic):
    """Of each minute's answers a tenth are weighed; ``excess`` is that of the served model, in nats a token."""

    excess = 0.0
    foreign = 1.0
    reason = None

    def weighed(self, prompts):
        done = [
            replace(row, weighed=self._answer()) if place % 10 == 0 else row
            for place, row in enumerate(prompts)
        ]
        settings = Settings(identity=IdentitySettings(share=SHARE))
        return done, Weighing(settings).buckets(done)

    def _answer(self):
        """Bets of a Gaussian walk: exactly fair while nothing is in excess."""
        if self.reason is not None:
            return self.reason
        variance = TOKENS * SPREAD
        shifted = self.excess if self.random.random() < self.foreign else 0.0
        excess = self.random.normal(shifted * TOKENS, variance**0.5)
        tilts = np.array(TILTS)
        return Surprise(
            law="sampled",
            tokens=TOKENS,
            excess=excess,
            variance=variance,
            peak=0.0,
            off_support=0,
            given_away=0,
            log_bets=tilts * excess - tilts**2 * variance / 2,
        )


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    """After a quiet hour of which nothing was weighed."""
    other = hour.resumed(database)
    other.__class__ = Weighed
    return other


@pytest.fixture
def settings():
    return settings_of(identity=IdentitySettings(share=SHARE))


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def told(evaluations):
    return [(e.type, e.alert.labels) for seen in evaluations for e in seen.events]


def test_answers_that_moved_while_nothing_read_the_prompts_are_undecided(
    traffic, settings, watcher
):
    """The weights may be the same behind another system prompt that no record tells."""
    traffic.approve(settings)
    seen = traffic.minutes(15, shift=(1.5, 0.0), watcher=watcher)
    events = [e for evaluation in seen for e in evaluation.events]
    assert {e.alert.labels.get("feature") for e in events} == {"toxic"}
    details = events[-1].alert.details
    assert details["cause"] == "undecided"
    assert details["witnesses"]["identity"]["finding"] == "steady"
    assert details["witnesses"]["identity"]["surprise"]["high"] < 0.15
    assert "answers are what the copy would say" in details["verdict"]


def test_a_model_replaced_under_its_old_name_is_named(traffic, settings, watcher, database):
    traffic.approve(settings)
    assert told(traffic.minutes(10, watcher=watcher)) == []
    traffic.excess = 1.4
    seen = traffic.minutes(10, shift=(1.5, 0.0), watcher=watcher)
    events = [e for evaluation in seen for e in evaluation.events]
    first = events[0]
    assert first.alert.rule == "identity"
    assert first.type == "drift.detected"
    assert first.alert.severity == "critical"
    assert first.alert.labels == {
        "kind": "identity",
        "rule": "identity",
        "served": "served@1",
        "segment": "all",
        "pack": PACK,
    }
    assert first.alert.details["cause"] == "model_shift"
    assert "does not answer as the monitored copy would" in first.alert.summary
    persona = next(e for e in events if e.alert.labels.get("feature") == "toxic")
    assert persona.alert.details["cause"] == "model_shift"
    assert "answers of served@1 are not what the copy would say" in persona.alert.details["verdict"]
    assert persona.alert.details["witnesses"]["labels"]["finding"] == "steady"
    with database.connect() as c:
        kept = c.execute(
            text("""
                SELECT identity_evidence, identity_limit, witnesses
                FROM monitor.drift_history WHERE segment = 'all'
                ORDER BY evaluated_at DESC LIMIT 1
            """)
        ).one()
        rows = c.execute(text(first.alert.details["query"])).all()
    assert kept.identity_evidence >= kept.identity_limit > 10.0
    assert kept.witnesses["identity"]["finding"] == "moved"
    assert rows


def test_a_small_share_of_foreign_answers_is_seen(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.excess, traffic.foreign = 1.4, 0.2
    seen = traffic.minutes(25, watcher=watcher)
    rules = [e.alert.rule for evaluation in seen for e in evaluation.events]
    assert rules == ["identity"]


def test_a_new_name_for_the_same_model_is_no_model_shift(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.model = "served-renamed"
    seen = traffic.minutes(12, watcher=watcher)
    shown = next(d for d in seen[-1].drifts if (d.segment, d.window) == ("all", "15m"))
    assert shown.cause is Cause.UNDECIDED
    findings = {w.name: w.finding for w in shown.witnesses}
    assert (findings["labels"], findings["identity"]) == ("moved", "steady")


def test_too_few_answers_decide_nothing_and_say_how_many_would(traffic, settings, watcher):
    traffic.approve(settings)
    seen = traffic.minutes(1, watcher=watcher)
    shown = next(d for d in seen[-1].drifts if (d.segment, d.window) == ("all", "15m"))
    assert shown.cause is Cause.UNDECIDED
    identity = next(w for w in shown.witnesses if w.name == "identity")
    assert identity.needed is not None
    assert identity.needed > 0
    assert f"about {identity.needed} more prompts would decide" in identity.told


def test_answers_that_cannot_be_weighed_are_counted_and_vouch_for_nothing(
    traffic, settings, watcher, database
):
    traffic.approve(settings)
    traffic.reason = NotWeighed.SAMPLING_UNKNOWN
    seen = traffic.minutes(12, watcher=watcher)
    assert seen[-1].packs[0].cause is Cause.UNDECIDED
    with transaction(database) as c:
        found = tallies(c, PACK, traffic.minute - timedelta(hours=1), traffic.minute)
        reasons = c.execute(
            text("SELECT weighing, count(*) FROM monitor.weighed_answers GROUP BY weighing")
        ).all()
    assert (found["all"].n, found["all"].left_out) == (0, 72)
    assert [tuple(row) for row in reasons] == [("sampling_unknown", 72)]


def test_identity_needs_no_baseline(traffic, watcher, database):
    traffic.excess = 1.4
    seen = traffic.minutes(8, watcher=watcher)
    rules = [e.alert.rule for evaluation in seen for e in evaluation.events]
    assert rules == ["identity"]
    (alert,) = seen[-1].firing
    assert alert.details["cause"] == "model_shift"
    with database.connect() as c:
        row = c.execute(text("SELECT served, crossed FROM monitor.identity")).one()
    assert tuple(row) == ("served@1", True)


def test_a_copy_in_doubt_accuses_nobody(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    traffic.canaries = False
    with transaction(traffic.database) as c:
        traffic.run_canaries(c)
    traffic.excess = 1.4
    seen = traffic.minutes(12, watcher=watcher)
    assert {e.alert.rule for evaluation in seen for e in evaluation.events} == {"instrument"}
    assert seen[-1].packs[0].cause is Cause.INSTRUMENT_SHIFT
    # What was answered meanwhile is passed over, not held against the server later.
    traffic.canaries, traffic.excess = True, 0.0
    with transaction(traffic.database) as c:
        traffic.run_canaries(c)
    later = traffic.minutes(5, watcher=watcher)
    assert "identity" not in {e.alert.rule for evaluation in later for e in evaluation.events}


def test_a_restart_in_the_middle_changes_nothing(traffic, settings, database):
    for excess in [0.0] * 5 + [1.4] * 4:
        traffic.excess = excess
        traffic.minutes(1, watcher=Watcher(database, settings, clock=traffic.now))
    with transaction(database) as c:
        (state,) = load_identity(c, PACK).values()
        summed = c.scalar(
            text("SELECT sum(n) FROM monitor_data.identity_buckets WHERE segment = 'all'")
        )
        # The last minute is open until the next step.
    assert state.n in (summed, summed - 6)
    assert state.crossed


def test_when_weighing_is_switched_off_its_alert_ends_as_unwatched(
    traffic, settings, watcher, database
):
    traffic.excess = 1.4
    traffic.minutes(8, watcher=watcher)
    off = Watcher(database, settings_of(), clock=traffic.now)
    traffic.minutes(1, watcher=off)
    with transaction(database) as c:
        (alert,) = [a for a in list_alerts(c) if a.rule == "identity"]
    assert alert.state is AlertState.UNWATCHED
    assert "identity.share is 0" in alert.summary


def test_the_false_alarms_of_both_families_share_one_budget(traffic, settings, watcher):
    traffic.approve(settings)
    seen = traffic.minutes(2, watcher=watcher)
    streams = 2
    budget = settings.drift.average_run_length / MINUTE
    for drift in seen[-1].drifts:
        assert drift.evidence_limit == pytest.approx(np.log(2 * budget * streams))
    (state,) = seen[-1].packs[0].heard.tests.values()
    assert state.limit == pytest.approx(np.log(2 * budget))
