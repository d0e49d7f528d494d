"""The promised run length, by simulation: seeds are fixed, tolerances stated.

Run lengths are cut at five times the promise, which only lowers their mean; the mean of the runs must
reach the promise. The detector that always fires has run length 1 and delay 1, the one that never
fires an endless delay: both ends are asserted.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import reduce

import numpy as np
import pytest

from monitor.drift import sequential
from monitor.drift.baseline import capture
from monitor.drift.sequential import (
    MEAN_MARGIN,
    detector,
    evidence,
    pass_over,
    start,
    threshold,
    update,
)
from monitor.values.drift import BaselineStream

PROMISED = 60
HORIZON = 5 * PROMISED
PER_BUCKET = 20
LIMIT = math.log(PROMISED)
BEFORE_ALL = datetime(2026, 2, 28, tzinfo=UTC)


def independent(random, n):
    return random.normal(size=n)


@pytest.fixture
def baseline_of(window_of):
    def make(draw, random, n, *, per_bucket=PER_BUCKET):
        pieces = [window_of(draw(random, per_bucket), at=i) for i in range(n // per_bucket)]
        whole = capture(
            pieces,
            baseline_id="b",
            pack_id="p",
            name="n",
            start=pieces[0].start,
            end=pieces[-1].end,
            created_at=pieces[-1].end,
            fingerprint={},
            min_n=100,
        )
        return whole.streams[0, "all"]

    return make


@pytest.fixture
def run_length(bucket_of):
    """Buckets until the alarm, or the horizon."""

    def run(bets, draw, random, *, horizon=HORIZON):
        begin = BEFORE_ALL
        state = start("b", 0, "all", begin)
        for step in range(horizon):
            state = update(state, bucket_of(draw(random, PER_BUCKET), at=step), bets)
            if evidence(state, bets) >= bets.limit:
                return step + 1
        return horizon

    return run


def mean_run(baseline_of, run_length, draw, *, moved=None, n=2_000, runs=40, tempered=True):
    lengths = []
    for seed in range(runs):
        random = np.random.default_rng(seed)
        stream = baseline_of(draw, random, n)
        if not tempered:
            stream = BaselineStream(window=stream.window)
        bets = detector(stream, limit=LIMIT, streams=1)
        lengths.append(run_length(bets, moved or draw, random))
    return float(np.mean(lengths))


def test_the_run_length_holds_at_the_edge_of_the_margin(window_of, run_length):
    """A baseline known all but exactly, traffic at the worst that still counts as the same."""
    random = np.random.default_rng(1)
    exact = BaselineStream(window=window_of(random.normal(size=2_000_000)))
    bets = detector(exact, limit=LIMIT, streams=1)

    def worst(random, n):
        return random.normal(size=n) + MEAN_MARGIN

    lengths = [run_length(bets, worst, np.random.default_rng(seed)) for seed in range(60)]
    assert np.mean(lengths) >= PROMISED
    # It is a bet, not a wall: some of these runs do end.
    assert np.mean([length < HORIZON for length in lengths]) > 0.1


@pytest.mark.parametrize("n", [500, 2_000])
def test_the_run_length_holds_with_an_estimated_baseline(n, baseline_of, run_length):
    assert mean_run(baseline_of, run_length, independent, n=n) >= PROMISED


def test_the_run_length_holds_with_dependent_prompts(baseline_of, run_length, clustered):
    assert mean_run(baseline_of, run_length, clustered) >= PROMISED


def test_without_tempering_dependent_prompts_would_break_it(baseline_of, run_length, clustered):
    assert mean_run(baseline_of, run_length, clustered, tempered=False) < PROMISED


@pytest.mark.slow
def test_a_fleet_of_correlated_streams_keeps_the_promise(window_of, bucket_of):
    """Ten features of the same prompts, correlated 0.5, each baseline estimated from 2000."""
    streams = 10
    limit = threshold(timedelta(minutes=PROMISED), streams, timedelta(minutes=1))
    begin = BEFORE_ALL
    lengths = []
    for seed in range(20):
        random = np.random.default_rng(seed)

        def scores(n, random=random):
            shared = random.normal(size=n)
            return (shared + random.normal(size=(streams, n))) / math.sqrt(2)

        bets = [
            detector(BaselineStream(window=window_of(row)), limit=limit, streams=streams)
            for row in scores(2_000)
        ]
        states = [start("b", feature, "all", begin) for feature in range(streams)]
        length = HORIZON
        for step in range(HORIZON):
            rows = scores(PER_BUCKET)
            states = [
                update(state, bucket_of(row, at=step), bet)
                for state, row, bet in zip(states, rows, bets, strict=True)
            ]
            if any(evidence(s, b) >= limit for s, b in zip(states, bets, strict=True)):
                length = step + 1
                break
        lengths.append(length)
    assert np.mean(lengths) >= PROMISED


@pytest.mark.parametrize(("shift", "longest"), [(0.3, 60), (0.5, 15), (1.0, 6), (-1.0, 6)])
def test_a_moved_mean_is_noticed_soon(shift, longest, baseline_of, run_length):
    def moved(random, n):
        return random.normal(size=n) + shift

    delay = mean_run(baseline_of, run_length, independent, moved=moved, runs=20)
    assert 1.0 <= delay <= longest


def test_rare_strong_scores_are_noticed(baseline_of, run_length):
    def rare(random, n):
        return np.where(random.random(n) < 0.06, 4.0, random.normal(size=n))

    assert mean_run(baseline_of, run_length, independent, moved=rare, runs=20) <= 40


def test_dependence_costs_delay_and_no_more(baseline_of, run_length, clustered):
    def moved(random, n):
        return clustered(random, n) + 1.0

    assert mean_run(baseline_of, run_length, clustered, moved=moved, runs=20) <= 15


def test_evidence_falls_again_once_traffic_is_back(baseline_of, bucket_of):
    random = np.random.default_rng(9)
    bets = detector(baseline_of(independent, random, 2_000), limit=LIMIT, streams=1)
    state = start("b", 0, "all", BEFORE_ALL)
    for step in range(2_000):
        state = update(state, bucket_of(random.normal(size=PER_BUCKET) + 1, at=step), bets)
    assert evidence(state, bets) > bets.limit
    for step in range(2_000, 2_400):
        state = update(state, bucket_of(random.normal(size=PER_BUCKET), at=step), bets)
    assert evidence(state, bets) < bets.limit


def test_a_bucket_is_taken_once(baseline_of, bucket_of):
    random = np.random.default_rng(10)
    bets = detector(baseline_of(independent, random, 1_000), limit=LIMIT, streams=1)
    begin = start("b", 0, "all", BEFORE_ALL)
    buckets = [bucket_of(random.normal(size=PER_BUCKET), at=step) for step in range(6)]
    once = reduce(lambda state, bucket: update(state, bucket, bets), buckets, begin)
    assert once.steps == 6
    assert reduce(lambda state, bucket: update(state, bucket, bets), buckets, once) == once
    assert update(once, bucket_of([], at=9), bets) == once
    over = pass_over(begin, buckets[3].bucket_start)
    rest = reduce(lambda state, bucket: update(state, bucket, bets), buckets, over)
    assert rest.steps == 2
    assert pass_over(once, begin.last_bucket) == once


def test_cusum_is_an_e_detector_below_shiryaev_roberts(baseline_of, bucket_of):
    random = np.random.default_rng(11)
    stream = baseline_of(independent, random, 2_000)
    roberts = detector(stream, limit=LIMIT, streams=1)
    cusum = detector(stream, limit=LIMIT, streams=1, kind="cusum")
    one = two = start("b", 0, "all", BEFORE_ALL)
    for step in range(100):
        bucket = bucket_of(random.normal(size=PER_BUCKET) + 0.4 * (step > 80), at=step)
        one, two = update(one, bucket, roberts), update(two, bucket, cusum)
        assert evidence(two, cusum) <= evidence(one, roberts) + 1e-9
    assert evidence(two, cusum) >= LIMIT


def test_nothing_seen_is_no_evidence_and_silent_features_bet_nothing(window_of, bucket_of):
    silent = BaselineStream(window=window_of(np.zeros(1_000)))
    bets = detector(silent, limit=LIMIT, streams=1)
    state = start("b", 0, "all", BEFORE_ALL)
    assert evidence(state, bets) == 0.0
    for step in range(HORIZON):
        state = update(state, bucket_of(np.zeros(PER_BUCKET), at=step), bets)
    # Without a bet the recursion would count its steps, and alarm for having run long.
    assert evidence(state, bets) < 0.0
    assert math.isfinite(evidence(state, bets))


def test_the_threshold_is_the_run_length_times_the_streams():
    minute = timedelta(minutes=1)
    assert threshold(timedelta(days=30), 1, minute) == pytest.approx(math.log(43_200))
    assert threshold(timedelta(days=30), 640, minute) == pytest.approx(math.log(43_200 * 640))
    with pytest.raises(ValueError, match="at least one stream"):
        threshold(timedelta(days=30), 0, minute)
    assert sequential.BASELINE_RISK <= 0.01
