"""Scores given the prompt, from the baseline to the alert, on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text

from monitor.adjusting import GivenThePrompt
from monitor.store.baselines import load_baseline
from monitor.store.buckets import roll_up
from monitor.store.database import transaction
from monitor.watcher import Watcher
from tests.traffic import MINUTE, Traffic, feature, settings_of

pytestmark = pytest.mark.slow

TOPICS = np.array([-1.0, 0.0, 2.0])
USUAL, STORM = (0.6, 0.35, 0.05), (0.3, 0.2, 0.5)


class Topics(Traffic):
    """Prompts of three topics, which move what is read of the answer; a worker adjusts what it may."""

    features = (feature("toxic"), replace(feature("topic"), region="prompt", tags=("watch-only",)))

    def __init__(self, database):
        super().__init__(database)
        self.shares = USUAL
        self.adjusts = True
        self.given = GivenThePrompt(self.pack, self.features, settings_of().drift)

    def scores(self, per_minute, shift, rare):
        topic = TOPICS[self.random.choice(3, size=per_minute, p=self.shares)]
        answer = topic + shift[0] + self.random.normal(size=per_minute)
        return np.stack([answer, topic + 0.1 * self.random.normal(size=per_minute)], axis=1)

    def adjusted(self, prompts):
        with transaction(self.database) as c:
            self.given.look(c)
        if not self.adjusts:
            return prompts, {}
        rows = self.given.adjusted(prompts)
        by, buckets = self.given.baseline_id, self.given.buckets(rows)
        return list(rows), {"adjusted_by": by, "adjusted_buckets": buckets}


@pytest.fixture
def traffic(database):
    return Topics(database)


@pytest.fixture
def settings():
    return settings_of()


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def of_toxic(seen, window="15m"):
    (found,) = [d for d in seen.drifts if (d.feature, d.window) == ("toxic", window)]
    return found


def told(evaluations):
    return [e.alert for seen in evaluations for e in seen.events if e.type == "drift.detected"]


def test_a_baseline_freezes_what_the_prompt_explains(traffic, settings, database):
    traffic.minutes(60)
    made = traffic.approve(settings)
    with transaction(database) as c:
        kept = load_baseline(c, made.baseline_id)
    assert set(kept.expectations) == {0}, "the prompt side itself is not adjusted"
    assert kept.expectations == made.expectations
    assert 0.3 < kept.expectations[0].explained < 0.6
    assert set(kept.adjusted) == {(0, "all")}
    raw, given = (one[0, "all"].window for one in (kept.streams, kept.adjusted))
    assert given.n == raw.n == 3_600
    assert abs(given.total / given.n) < 0.05
    assert given.total_squares / given.n == pytest.approx(1.0, abs=0.1)
    assert raw.total_squares / raw.n > 1.5


def test_a_storm_of_one_topic_is_not_told(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.minutes(20, watcher=watcher)
    traffic.shares = STORM
    seen = traffic.minutes(30, watcher=watcher)
    assert told(seen) == []
    drift = of_toxic(seen[-1])
    assert drift.adjusted
    assert drift.raw_shift.low > 0.5
    assert abs(drift.shift.value) < 0.1
    # What is asked explains it, and says that the users changed.
    assert drift.expected_shift.low > 0.5
    (asked,) = (one for one in drift.witnesses if one.name == "prompt_side")
    assert asked.finding == "moved"
    assert (drift.mean, drift.raw_mean) == (pytest.approx(0, abs=0.15), pytest.approx(0.7, abs=0.2))


def test_a_persona_in_the_storm_is_told_with_both_readings(traffic, settings, watcher, database):
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.shares = STORM
    traffic.minutes(20, watcher=watcher)
    (alert, *_) = told(traffic.minutes(20, shift=(0.8, 0.0), watcher=watcher))
    assert "given the prompt" in alert.summary
    assert alert.details["adjusted"] is True
    assert alert.details["raw_shift"]["value"] > alert.details["shift"]["value"] - 1
    with transaction(database) as c:
        row = c.execute(
            text("""
                SELECT adjusted, raw_shift, shift FROM monitor.drift_history
                WHERE feature = 'toxic' AND window_name = '15m' ORDER BY evaluated_at DESC LIMIT 1
            """)
        ).one()
    assert row.adjusted
    assert row.raw_shift > 0.5 < row.shift


def test_a_persona_without_a_storm_leaves_the_prompt_side_where_it_was(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    seen = traffic.minutes(30, shift=(0.8, 0.0), watcher=watcher)
    drift = of_toxic(seen[-1])
    assert drift.shift.low > 0.3
    assert abs(drift.expected_shift.value) < 0.1
    (asked,) = (one for one in drift.witnesses if one.name == "prompt_side")
    assert asked.finding != "moved"


def test_with_adjusting_off_the_raw_scores_are_watched(traffic, settings, database):
    traffic.minutes(60)
    traffic.approve(settings)
    off = settings.model_copy(update={"drift": settings.drift.model_copy(update={"adjust": False})})
    watcher = Watcher(database, off, clock=traffic.now)
    traffic.shares = STORM
    seen = traffic.minutes(20, watcher=watcher)
    assert told(seen)
    assert not of_toxic(seen[-1]).adjusted
    assert "given the prompt" not in told(seen)[0].summary


def test_a_baseline_captured_with_adjusting_off_adjusts_nothing(traffic, settings):
    traffic.minutes(60)
    off = settings.model_copy(update={"drift": settings.drift.model_copy(update={"adjust": False})})
    made = traffic.approve(off)
    assert made.expectations == made.adjusted == {}


def test_while_most_prompts_are_not_adjusted_the_raw_scores_are_watched(traffic, settings, watcher):
    """After an approval, and beside workers of the release before: nothing goes unwatched."""
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.adjusts = False
    seen = traffic.minutes(15, watcher=watcher)
    assert not of_toxic(seen[-1]).adjusted
    assert of_toxic(seen[-1]).n == 15 * 60
    traffic.adjusts = True
    seen = traffic.minutes(15, watcher=watcher)
    assert [of_toxic(one).adjusted for one in seen] == [False] * 7 + [True] * 8


def test_rolled_up_hours_hold_both_and_never_mix_them(traffic, settings, watcher, database):
    traffic.minutes(60)
    made = traffic.approve(settings)
    traffic.minutes(90)
    with transaction(database) as c:
        while roll_up(c, traffic.now()):
            pass
        raw, given = (
            c.execute(text(f"SELECT sum(n) AS n, count(DISTINCT lineage_id) AS lineages FROM {view}"
                           " WHERE feature = 'toxic' AND segment = 'all'")).one()
            for view in ("monitor.feature_windows", "monitor.adjusted_windows")
        )  # fmt: skip
        names = c.scalars(text("SELECT DISTINCT baseline_id FROM monitor.adjusted_windows")).all()
        row = c.execute(
            text("""
                SELECT count(*) AS n, count(adjusted) AS adjusted, avg(adjusted) AS mean
                FROM monitor.feature_scores WHERE feature = 'toxic' AND adjusted_by IS NOT NULL
            """)
        ).one()
    assert (raw.n, given.n) == (150 * 60, 90 * 60)
    assert (raw.lineages, given.lineages) == (1, 1)
    assert names == [made.baseline_id]
    assert (row.n, row.adjusted) == (90 * 60, 90 * 60)
    assert abs(row.mean) < 0.1
    assert of_toxic(watcher.step(), "1h").n == 60 * 60


def test_another_baseline_begins_a_series_of_its_own(traffic, settings, database):
    traffic.minutes(60)
    first = traffic.approve(settings)
    traffic.minutes(30)
    second = traffic.approve(settings, last=80 * MINUTE)
    traffic.minutes(5)
    with transaction(database) as c:
        rows = c.execute(
            text("""
                SELECT adjusted_by, count(*) AS n FROM monitor.feature_scores
                WHERE feature = 'toxic' AND adjusted_by IS NOT NULL GROUP BY adjusted_by
            """)
        ).all()
    assert {row.adjusted_by: row.n for row in rows} == {
        first.baseline_id: 30 * 60,
        second.baseline_id: 5 * 60,
    }
