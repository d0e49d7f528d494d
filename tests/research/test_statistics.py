from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from monitor.research.statistics import (
    auc,
    auc_bound,
    bootstrap,
    correlation_bound,
    correlations,
    length_matched,
    mean_bound,
    mean_interval,
    pool_auc_bound,
    random_direction_aucs,
    random_directions,
    rate_bound,
)
from monitor.values.shares import rate_limit

SMALL = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SMALL, SMALL)
def test_auc_counts_the_pairs_in_order(positives: list[int], negatives: list[int]) -> None:
    pairs = list(itertools.product(positives, negatives))
    expected = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    found = auc(np.array(positives, np.float32), np.array(negatives, np.float32))
    assert found == pytest.approx(expected)


def test_nothing_on_one_side_has_no_auc() -> None:
    assert np.isnan(auc(np.ones(3), np.ones(0)))
    assert np.isnan(auc(np.ones(0), np.ones(3)))


@pytest.mark.slow
def test_the_interval_of_an_auc_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        positives = generator.normal(1.0, size=(1, 40)).astype(np.float32)
        negatives = generator.normal(size=(1, 40)).astype(np.float32)
        found = auc_bound(positives, negatives, generator)
        # P(N(1, 1) > N(0, 1)) = Φ(1/√2)
        covered += found.low <= 0.7602 <= found.high
    assert covered >= 34


def test_a_draw_without_a_value_is_left_out() -> None:
    low, high = bootstrap(
        lambda rows: float("nan") if rows[0] == 0 else 1.0, 2, np.random.default_rng(0)
    )
    assert (low, high) == (1.0, 1.0)


def test_matches_are_distinct_and_near_in_length() -> None:
    tokens = np.array([10, 10, 40])
    pool = np.array([400, 11, 39, 9, 80])
    chosen = length_matched(tokens, pool)
    assert sorted(pool[chosen[:2]]) == [9, 11]
    assert pool[chosen[2]] == 39


def test_random_directions_see_a_strong_contrast_less_often_than_the_real_one() -> None:
    generator = np.random.default_rng(0)
    good = generator.normal(size=(60, 64)).astype(np.float32)
    persona = generator.normal(size=(60, 64)).astype(np.float32)
    persona[:, 0] += 3.0
    random = random_direction_aucs((persona[:40], good[:40]), (persona[40:], good[40:]), generator)
    assert len(random) == 100
    assert auc(persona[40:, 0], good[40:, 0]) > 0.95
    assert np.quantile(random, 0.95) < 0.9
    # The sign comes from training, so on average they lean the right way.
    assert np.mean(random) > 0.5


@pytest.mark.slow
def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        low, high = mean_interval(generator.normal(1.0, 2.0, size=(40, 1)), generator)
        held += bool(low[0] <= 1.0 <= high[0])
    assert 0.90 <= held / 200 <= 0.98


def test_a_bound_is_the_interval_with_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=20)
    found = mean_bound(values, np.random.default_rng(1))
    low, high = mean_interval(values[:, None], np.random.default_rng(1))
    assert (found.low, found.value, found.high) == (low[0], values.mean(), high[0])


def test_the_bound_never_says_more_than_the_questions_can_show() -> None:
    generator = np.random.default_rng(0)
    low = np.arange(20, dtype=np.float32)[None]
    found = auc_bound(low + 20, low, generator)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    mixed = auc_bound(low + 5, low, generator)
    assert mixed.low < mixed.value < mixed.high < 1.0
    assert mixed.low < 0.8


def test_questions_are_drawn_not_answers() -> None:
    """Five personas that answer alike are no more evidence than one."""
    generator = np.random.default_rng(0)
    positives = generator.normal(1.0, size=(1, 20)).astype(np.float32)
    negatives = generator.normal(size=(1, 20)).astype(np.float32)
    one = auc_bound(positives, negatives, np.random.default_rng(1))
    five = auc_bound(
        np.tile(positives, (5, 1)), np.tile(negatives, (5, 1)), np.random.default_rng(1)
    )
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))


def test_a_pool_is_drawn_too_and_neither_end_is_beyond_what_so_few_can_show() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(1.0, size=(1, 40)).astype(np.float32)
    pool = generator.normal(size=200).astype(np.float32)
    found = pool_auc_bound(ours, pool, generator)
    # The standard error of Hanley and McNeil (1982) for 40 and 200 at an AUC of 0.76 is 0.045.
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.045, rel=0.25)
    above = pool_auc_bound(ours + 20, pool, generator)
    assert (above.value, above.high) == (1.0, 1.0)
    assert above.low == pytest.approx(0.025 ** (1 / 40))
    below = pool_auc_bound(ours - 20, pool[:10], generator)
    assert (below.value, below.low) == (0.0, 0.0)
    assert below.high == pytest.approx(1 - 0.025 ** (1 / 10))
    five = pool_auc_bound(np.tile(ours, (5, 1)), pool, np.random.default_rng(1))
    one = pool_auc_bound(ours, pool, np.random.default_rng(1))
    assert (five.low, five.high) == pytest.approx((one.low, one.high))
    assert np.isnan(pool_auc_bound(ours, pool[:0], generator).high)


def test_nothing_to_read_shows_nothing() -> None:
    nothing = np.empty((1, 0), dtype=np.float32)
    assert np.isnan(auc_bound(nothing, nothing, np.random.default_rng(0)).low)


@pytest.mark.parametrize(("above", "low", "high"), [(0, 0.0, 0.0362), (5, 0.0164, 0.1128)])
def test_rates_have_exact_intervals(above: int, low: float, high: float) -> None:
    found = rate_bound(above, 100)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_correlation_covers_it_and_narrows() -> None:
    few, many = correlation_bound(0.5, 28), correlation_bound(0.5, 1_003)
    # tanh(atanh(0.5) ± 1.96 / 5)
    assert (few.low, few.high) == pytest.approx((0.1559, 0.7356), abs=1e-3)
    assert few.low < many.low < 0.5 < many.high < few.high
    assert np.isnan(correlation_bound(np.nan, 100).low)


@given(st.integers(1, 60), st.data())
def test_limits_are_those_of_scipy(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    exact = binomtest(count, n).proportion_ci(0.9, "exact")
    found = [rate_limit(count, n, 0.05, upper=upper) for upper in (False, True)]
    assert found == pytest.approx([exact.low, exact.high], abs=1e-6)


def test_correlations_leave_out_what_cannot_be_read() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=200)
    scores = np.stack([first, -first + 0.01 * generator.normal(size=200), np.ones(200)], axis=1)
    scores[3, 0] = np.nan
    found = correlations(scores)
    np.testing.assert_allclose(np.diag(found), 1.0)
    assert found[0, 1] < -0.99
    assert found[0, 2] == 0.0


def test_random_directions_have_length_one_and_differ() -> None:
    found = random_directions(2, 32, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)
    assert abs(found[0] @ found[1]) < 0.7
