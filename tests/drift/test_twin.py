"""Tests of the paired difference: fair while both answers are one model's, whatever is asked."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitor.drift.histogram import histogram_of
from monitor.drift.twin import gains, standing, start, taken_in, witness
from monitor.values.drift import Bound, Window
from monitor.values.scores import Bucket
from tests.alert.drifts import drift
from tests.drift.twin_simulation import PROMISED, alarms, apart

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NAMES = ("toxic", "assistant")


def window(values: np.ndarray, feature: int = 0) -> Window:
    return Window(
        feature=feature,
        segment="all",
        start=NOW,
        end=NOW + timedelta(hours=1),
        n=len(values),
        total=float(values.sum()),
        total_squares=float((values**2).sum()),
        histogram=histogram_of(values),
        tail_count=0,
    )


def bucket(values: np.ndarray, minute: int, feature: int = 0) -> Bucket:
    return Bucket(
        bucket_start=NOW + minute * MINUTE,
        bucket_seconds=60,
        feature=feature,
        segment="all",
        source="*",
        n=len(values),
        total=float(values.sum()),
        total_squares=float((values**2).sum()),
        histogram=histogram_of(values),
        tail_count=0,
    )


def stepped(*buckets: Bucket, states=None, alone=10.0):
    return taken_in(
        states or {}, buckets, until=NOW, begin=NOW - MINUTE, alone=alone, tolerance=0.1
    )


def test_a_bet_on_either_answer_is_fair_whatever_the_size_of_the_difference():
    sizes = np.concatenate([np.linspace(0.01, 30.0, 400), [0.0]])
    for size in sizes:
        both = [gains(histogram_of(np.array([one])), 0.0) for one in (size, -size)]
        means = np.exp(both).mean(axis=0)
        assert means == pytest.approx(np.ones_like(means), abs=1e-12)
    assert (gains(histogram_of(np.array([0.0, 0.1, -0.1])), 0.1) < 0).all()


def test_while_the_copy_serves_users_may_change_topic_and_nothing_alarms_too_soon():
    """Topics wander by the hour, conversations hang together: alarms come no sooner than promised."""
    for tolerance in (0.0, 0.1):
        assert alarms(0.0, tolerance=tolerance).mean() >= PROMISED


def test_topics_move_the_feature_and_not_its_difference():
    served, twin = apart(np.random.default_rng(3), 4_000, begin=0.0, shift=0.0)
    early, late = served[:1_000], served[-1_000:]
    assert abs(late.mean() - early.mean()) > 0.5
    assert abs((served - twin)[-1_000:].mean()) < 0.15


def test_another_model_is_found_in_either_direction():
    for shift in (1.0, -1.0):
        assert np.median(alarms(shift, tolerance=0.1)) <= 30


def test_states_grow_by_buckets_and_never_take_one_twice():
    random = np.random.default_rng(1)
    first = stepped(bucket(random.normal(2.0, 1.4, 20), 1), bucket(random.normal(size=20), 1, 1))
    assert {key: state.n for key, state in first.items()} == {(0, "all"): 20, (1, "all"): 20}
    assert first[0, "all"].limit == pytest.approx(10.0 + math.log(2))
    again = stepped(bucket(random.normal(2.0, 1.4, 20), 1), states=first)
    assert again[0, "all"].n == 20
    later = stepped(*(bucket(random.normal(2.0, 1.4, 20), n) for n in range(2, 9)), states=first)
    assert later[0, "all"].crossed
    assert not later[1, "all"].crossed
    assert later[0, "all"].evidence <= later[0, "all"].limit + math.log(20.0 * 10) + 1e-9


def test_evidence_falls_again_once_the_copy_answers():
    random = np.random.default_rng(2)
    states = stepped(*(bucket(random.normal(2.0, 1.4, 20), n) for n in range(1, 20)))
    assert states[0, "all"].crossed
    after = stepped(*(bucket(random.normal(0.0, 1.4, 20), n) for n in range(20, 60)), states=states)
    assert not after[0, "all"].crossed


SHIFT = Bound(value=0.8, low=0.7, high=0.9)


@pytest.mark.parametrize(
    ("mean", "n", "vouched"), [(0.0, 400, True), (0.0, 20, False), (0.8, 400, False)]
)
def test_the_twin_vouches_only_where_it_would_have_shown_the_shift(mean, n, vouched):
    values = np.random.default_rng(5).normal(size=n)
    values = (values - values.mean()) * 1.4 + mean
    found = standing(window(values), SHIFT, confidence=0.99)
    assert found.vouched is vouched
    if not vouched and mean == 0.0:
        more = n + found.needed
        again = np.resize(values, more)
        assert standing(window(again - again.mean()), SHIFT, confidence=0.99).difference.high < 0.4
    if mean:
        assert found.needed is None


def test_a_shift_that_may_be_none_is_not_explained():
    found = standing(window(np.zeros(50)), Bound(value=0.1, low=-0.1, high=0.3), confidence=0.99)
    assert not found.vouched


def test_the_witness_says_what_it_saw():
    random = np.random.default_rng(7)
    same, other = random.normal(0.0, 1.4, 400), random.normal(0.9, 1.4, 400)
    quiet = start(0, "all", NOW)
    seen = drift(shift=(0.7, 0.9), mean=0.8, baseline_mean=0.0)
    steady = witness([quiet], {0: window(same)}, NAMES, seen, prompts=4_000, confidence=0.99)
    assert steady.finding == "steady"
    assert "400 answers of the copy's own to the same prompts" in steady.told
    assert steady.figures["bound"] == pytest.approx(0.35)
    few = same[:20] - same[:20].mean()
    thin = witness([quiet], {0: window(few)}, NAMES, seen, prompts=200, confidence=0.99)
    assert (thin.finding, thin.needed is not None) == ("unsure", True)
    crossed = replace(quiet, evidence=20.0, limit=15.0)
    moved = witness([crossed], {0: window(other)}, NAMES, seen, prompts=4_000, confidence=0.99)
    assert moved.finding == "moved"
    assert moved.figures["feature"] == "toxic"
    assert "evidence 20.0, limit 15.0" in moved.told
    nothing = witness([], {}, NAMES, None, prompts=0, confidence=0.99)
    assert (nothing.finding, nothing.figures["evidence"]) == ("unsure", None)


def test_the_shift_is_compared_in_deviations_of_the_score():
    """The baseline's deviation is 2: a shift of 0.4 of it is 0.8 of the score's."""
    seen = drift(shift=(0.35, 0.45), mean=1.8, baseline_mean=1.0)
    values = np.random.default_rng(5).normal(size=400) * 1.4
    found = witness(
        [], {0: window(values - values.mean())}, NAMES, seen, prompts=400, confidence=0.99
    )
    assert found.figures["bound"] == pytest.approx(0.35)
