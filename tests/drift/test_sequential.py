"""The promised run length, by simulation: scenarios, seeds and bounds stand in `simulation.py`.

The mean of the runs must reach the promise, and a change must be noticed within the stated delay; the
figures of docs/drift.md are those that are measured here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from monitor.drift import sequential
from monitor.drift.sequential import (
    MEAN_MARGIN,
    detector,
    evidence,
    pass_over,
    standing,
    start,
    threshold,
    update,
)
from monitor.values.drift import BaselineStream
from tests.drift.simulation import (
    BEFORE_ALL,
    HORIZON,
    LIMIT,
    PER_BUCKET,
    PROMISED,
    SCENARIOS,
    TOLERANCE,
    Scenario,
    baseline_of,
    bucket_of,
    independent,
    introduction,
    mean_run,
    row,
    run_length,
    window_of,
)

PAGE = (Path(__file__).parents[2] / "docs" / "drift.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_run_lengths_and_delays_keep_their_bounds(scenario: Scenario) -> None:
    assert scenario.at_least <= mean_run(scenario) <= scenario.at_most


def test_the_page_tells_the_constants_of_the_simulation() -> None:
    assert introduction() in " ".join(PAGE.split())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_page_tells_what_is_measured(scenario: Scenario) -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {scenario.name} |")]
    assert len(lines) == 1, f"docs/drift.md needs the row: {row(scenario, mean_run(scenario))}"
    told = float(lines[0].split("|")[2])
    assert told == pytest.approx(mean_run(scenario), rel=TOLERANCE, abs=0.1)


def test_the_page_has_no_row_that_is_not_measured() -> None:
    table = PAGE.partition("mean run, or delay, in buckets |\n|---|---|\n")[2].partition("\n\n")[0]
    names = [line.split("|")[1].strip() for line in table.splitlines()]
    assert names == [scenario.name for scenario in SCENARIOS]


def test_the_run_length_holds_at_the_edge_of_the_margin():
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


@pytest.mark.slow
def test_a_fleet_of_correlated_streams_keeps_the_promise():
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


def test_evidence_falls_again_once_traffic_is_back():
    random = np.random.default_rng(9)
    bets = detector(baseline_of(independent, random, 2_000), limit=LIMIT, streams=1)
    state = start("b", 0, "all", BEFORE_ALL)
    for step in range(2_000):
        state = update(state, bucket_of(random.normal(size=PER_BUCKET) + 1, at=step), bets)
    assert evidence(state, bets) > bets.limit
    for step in range(2_000, 2_400):
        state = update(state, bucket_of(random.normal(size=PER_BUCKET), at=step), bets)
    assert evidence(state, bets) < bets.limit


def test_a_bucket_is_taken_once():
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


def test_cusum_is_an_e_detector_below_shiryaev_roberts():
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


def test_nothing_seen_is_no_evidence_and_silent_features_bet_nothing():
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


def test_bets_on_a_tail_that_is_not_known_sit_out():
    """Neither a baseline nor a bucket of unknown tail moves them; bets on the mean go on."""
    random = np.random.default_rng(11)
    stream = baseline_of(independent, random, 2_000)
    known = detector(stream, limit=LIMIT, streams=1)
    blind = detector(
        replace(stream, window=replace(stream.window, tail_count=None)), limit=LIMIT, streams=1
    )
    buckets = [bucket_of(np.full(20, 4.0), at=at) for at in range(5)]
    unknown = [replace(bucket, tail_count=None) for bucket in buckets]

    def seen(buckets, against):
        return reduce(
            lambda state, bucket: update(state, bucket, against),
            buckets,
            start("b", 0, "all", BEFORE_ALL),
        )

    means = 2 * len(sequential.SHIFTS)
    assert seen(buckets, blind).log_values[:means] == seen(buckets, known).log_values[:means]
    assert evidence(seen(buckets, blind), blind) >= LIMIT
    # A bet that sits out only counts the steps at which it might have begun.
    assert np.exp(seen(unknown, known).log_values[means:]) == pytest.approx(5.0)
    assert np.exp(seen(buckets, blind).log_values[means:]) == pytest.approx(5.0)
    tail_only = np.isfinite(blind.log_weights[means:])
    assert not tail_only.any()


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(size=n)


def long_tailed(random: np.random.Generator, n: int) -> np.ndarray:
    """Variance 1, of which 1 % of the scores, far out on both sides, make two thirds."""
    far = random.random(n) < 0.01
    return np.where(far, np.where(random.random(n) < 0.5, 8.0, -8.0), 0.6 * random.normal(size=n))


@pytest.mark.parametrize("draw", [normal, long_tailed])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("shift", [0.1, 0.25, 0.5, 1.0, 2.0])
def test_a_change_of_any_size_is_bet_on_almost_as_well_as_by_who_knew_it(draw, shift, direction):
    """Growth of evidence per prompt, against the best stake that the boldest bet leaves room for."""
    scores = draw(np.random.default_rng(12), 400_000)
    bets = detector(BaselineStream(window=window_of(scores)), limit=LIMIT, streams=1)
    changed = window_of(scores + direction * (MEAN_MARGIN + shift)).histogram / scores.size
    mean_bets = [gains for gains in bets.bin_gains if gains.any() and gains @ changed > 0]
    boldest = np.expm1(min(mean_bets, key=np.min))
    best = max(np.log1p(share * boldest) @ changed for share in np.linspace(0.02, 1.0, 99))
    assert max(gains @ changed for gains in mean_bets) > 0.98 * best


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_bet_on_the_opposite_is_told_apart(sign):
    random = np.random.default_rng(11)
    bets = detector(baseline_of(independent, random, 2_000), limit=LIMIT, streams=1)
    for moved in (1, -1):
        state = start("b", 0, "all", BEFORE_ALL)
        assert standing(state, bets, sign).toward == 0.0
        for step in range(20):
            scores = random.normal(size=PER_BUCKET) + moved
            state = update(state, bucket_of(scores, at=step), bets)
        found = standing(state, bets, sign)
        assert found.whole == evidence(state, bets) >= LIMIT
        assert found.toward <= found.whole
        # A rise fills the feature's tail too, whichever side its sign says.
        assert (found.toward >= LIMIT) is (moved == sign or moved == 1)
