"""Bounds are judged by simulation: how often each end errs, against its nominal rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2, norm

from monitor.drift.histogram import deciles, grouped, grouped_psi, histogram_of, ks, psi
from monitor.drift.tests import (
    compare,
    ks_bound,
    mean_shift,
    psi_bound,
    reference,
    tail_ratio,
    variance,
)
from monitor.values.drift import BaselineStream

CONFIDENCE = 0.95
RUNS = 1_500
# Each end may err in 2.5 % of the runs; 3.7 % is that and three standard errors of 1500 runs.
MOST_ERRORS = 0.037

FAMILIES = {
    "normal": lambda random, n: random.normal(size=n),
    "skewed": lambda random, n: random.gamma(1.5, size=n) - 1.5,
    "heavy": lambda random, n: random.standard_t(6, size=n),
}
SIZES = [
    (200, 1_000, 0.0),
    pytest.param(200, 500, 1.0, marks=pytest.mark.slow),
    pytest.param(1_000, 1_000, 0.3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m", "shift"), SIZES)
def test_no_bound_errs_more_often_than_it_says(family, n, m, shift, window_of):
    draw, random = FAMILIES[family], np.random.default_rng(17)
    crowd = draw(random, 1_000_000)
    deviation, threshold = crowd.std(), float(np.quantile(crowd, 0.99))
    moved = crowd + shift * deviation
    true_ratio = (moved > threshold).mean() / 0.01
    there, here = histogram_of(moved), histogram_of(crowd)
    errors = dict.fromkeys(("shift low", "shift high", "tail low", "tail high", "psi", "ks"), 0)
    for _ in range(RUNS):
        baseline = window_of(draw(random, m), tail=threshold)
        window = window_of(draw(random, n) + shift * deviation, tail=threshold)
        found = mean_shift(window, baseline, confidence=CONFIDENCE)
        errors["shift low"] += found.low > shift
        errors["shift high"] += found.high < shift
        ratio = tail_ratio(window, baseline, confidence=CONFIDENCE)
        errors["tail low"] += ratio.low > true_ratio
        errors["tail high"] += ratio.high < true_ratio
        groups = deciles(baseline.histogram)
        true_psi = grouped_psi(grouped(there, groups), grouped(here, groups))
        ours, theirs = grouped(window.histogram, groups), grouped(baseline.histogram, groups)
        errors["psi"] += psi_bound(ours, theirs, confidence=CONFIDENCE).low > true_psi
        distance = ks(window.histogram, baseline.histogram)
        errors["ks"] += ks_bound(distance, n, m, CONFIDENCE) > ks(there, here)
    rates = {name: count / RUNS for name, count in errors.items()}
    # Skewed means lean at n = 200; the lower end, which alerts rest on, must still hold.
    loose = {"shift high": 0.05} if family == "skewed" else {}
    assert all(rate <= loose.get(name, MOST_ERRORS) for name, rate in rates.items()), rates


def test_bounds_are_not_idle(window_of):
    """The trivial bounds, which never err, would pass the test above and find nothing."""
    random = np.random.default_rng(3)
    found = {"shift": 0, "tail": 0, "psi": 0, "ks": 0}
    for _ in range(200):
        baseline = window_of(random.normal(size=2_000))
        half = window_of(random.normal(size=500) + 0.5)
        rare = window_of(np.concatenate([random.normal(size=980), np.full(40, 4.0)]))
        groups = deciles(baseline.histogram)
        ours, theirs = grouped(half.histogram, groups), grouped(baseline.histogram, groups)
        found["shift"] += mean_shift(half, baseline, confidence=0.99).low > 0.3
        found["tail"] += tail_ratio(rare, baseline, confidence=0.99).low > 2.0
        found["psi"] += psi_bound(ours, theirs, confidence=0.99).low > 0.05
        found["ks"] += ks_bound(ks(half.histogram, baseline.histogram), 500, 2_000, 0.99) > 0.05
    assert found["shift"] > 180
    assert found["tail"] > 160
    assert found["psi"] > 140
    assert found["ks"] > 140


def test_a_rare_persona_shows_in_the_tail_and_not_in_the_centre(window_of):
    """4 % of the answers at +4 is a mean shift of 0.16: below every shift threshold that ships."""
    random = np.random.default_rng(4)
    baseline = window_of(random.normal(size=5_000), tail=3.0)
    window = window_of(
        np.where(random.random(2_000) < 0.04, 4.0, random.normal(size=2_000)), tail=3.0
    )
    assert mean_shift(window, baseline, confidence=0.99).low < 0.3
    assert tail_ratio(window, baseline, confidence=0.99).low > 10.0


@pytest.mark.parametrize("design_effect", [1.0, 3.4])
def test_dependent_prompts_need_the_design_effect(design_effect, window_of, clustered):
    """Conversations of five prompts, correlated 0.6: the true design effect is 1 + 4·0.6 = 3.4."""
    random = np.random.default_rng(5)
    wrong = 0
    for _ in range(RUNS):
        baseline = window_of(clustered(random, 1_000))
        window = window_of(clustered(random, 300))
        found = mean_shift(window, baseline, confidence=CONFIDENCE, design_effect=design_effect)
        wrong += not found.low <= 0.0 <= found.high
    if design_effect == 1.0:
        assert wrong / RUNS > 0.2, "the simulation no longer shows why the design effect is needed"
    else:
        assert wrong / RUNS <= 0.07


def test_the_shift_is_measured_in_baseline_deviations(window_of):
    random = np.random.default_rng(6)
    baseline = window_of(2.0 + 3.0 * random.normal(size=100_000))
    window = window_of(3.5 + random.normal(size=100_000))
    found = mean_shift(window, baseline, confidence=0.99)
    assert found.value == pytest.approx(0.5, abs=0.02)
    # The textbook case: V = s_w²/(s_b² n) + (1 + Δ²/2)/m.
    expected = norm.ppf(0.995) * math.sqrt((1 / 9 + 1 + 0.5**2 / 2) / 100_000)
    assert found.high - found.value == pytest.approx(expected, rel=0.02)


def test_constant_scores_fall_back_on_the_calibrations_deviation(window_of):
    silent = window_of(np.zeros(1_000))
    assert variance(silent) == 0.0
    same = mean_shift(window_of(np.zeros(500)), silent, confidence=0.99)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    moved = mean_shift(window_of(np.full(500, 0.7)), silent, confidence=0.99)
    assert moved.low == pytest.approx(0.7)


def test_too_little_is_no_evidence(window_of):
    one, many = window_of([5.0]), window_of(np.random.default_rng(7).normal(size=1_000))
    for window, baseline in ((one, many), (many, one)):
        found = mean_shift(window, baseline, confidence=0.99)
        assert (found.low, found.high) == (-math.inf, math.inf)
    empty = window_of([])
    found = tail_ratio(empty, many, confidence=0.99)
    assert (found.value, found.low, found.high) == (1.0, 0.0, math.inf)
    assert ks_bound(1.0, 0, 100, 0.99) == 0.0


def test_two_prompts_on_each_side_are_the_fewest_that_say_something(window_of):
    two, four = window_of([0.0, 1.0]), window_of([0.0, 1.0, 2.0, 3.0])
    for window, baseline, effect in ((two, two, 1.0), (two, four, 1.0), (four, four, 2.0)):
        found = mean_shift(window, baseline, confidence=0.99, design_effect=effect)
        assert math.isfinite(found.low)
        assert math.isfinite(found.high)
    # Four prompts that count as fewer than two.
    found = mean_shift(four, four, confidence=0.99, design_effect=2.1)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_one_prompt_has_no_variance(window_of):
    assert variance(window_of([5.0])) == 0.0
    assert variance(window_of([0.0, 1.0])) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "m"), [(400_000, 4_000), (4_000, 400_000), (4_000, 4_000)])
@pytest.mark.parametrize("moved", [0.12, 0.3])
def test_a_small_baseline_and_a_small_window_widen_psi_each_by_its_own_size(n, m, moved):
    """The formula of the docstring, its derivatives by central differences."""
    base = np.array([0.1, 0.4, 0.3, 0.2])
    window, baseline = (
        np.int64(n * (base + moved * np.array([1, -1, 1, -1]) / 4)),
        np.int64(m * base),
    )
    shares = [(side + 0.5) / (side.sum() + 2.0) for side in (window, baseline)]

    def stability(p, q):
        return float(np.sum((p - q) * np.log(p / q)))

    step, bias, spread = 1e-4, 0.0, 0.0
    for side, size in enumerate((n, m)):
        first, second = np.zeros(4), np.zeros(4)
        for group in range(4):
            beside = []
            for sign in (-1, 0, 1):
                both = [share.copy() for share in shares]
                both[side][group] += sign * step
                beside.append(stability(*both))
            first[group] = (beside[2] - beside[0]) / (2 * step)
            second[group] = (beside[2] - 2 * beside[1] + beside[0]) / step**2
        share = shares[side]
        bias += float(second @ (share * (1 - share))) / (2 * size)
        spread += float(share @ first**2 - (share @ first) ** 2) / size
    null = (chi2.ppf(0.975, 3) - 3) * (1 / n + 1 / m)
    reach = math.sqrt(null**2 + norm.ppf(0.975) ** 2 * spread)

    found = psi_bound(window, baseline, confidence=0.95)
    assert found.value == pytest.approx(stability(*shares))
    assert found.low == pytest.approx(found.value - bias - reach, rel=1e-3)
    assert found.low > 0.0


def test_zero_tail_counts_stay_finite_where_something_is_known(window_of):
    without, three = window_of(np.zeros(1_000)), window_of([4.0] * 3 + [0.0] * 997)
    none_before = tail_ratio(three, without, confidence=0.95)
    assert none_before.value == pytest.approx(7.0)
    # All three of three tail prompts are ours: π ≥ 0.025^(1/3).
    share = 0.025 ** (1 / 3)
    assert none_before.low == pytest.approx(share / (1 - share))
    assert none_before.high == math.inf
    none_now = tail_ratio(without, three, confidence=0.95)
    assert none_now.low == 0.0
    assert none_now.high == pytest.approx((1 - share) / share)
    neither = tail_ratio(without, without, confidence=0.95)
    assert (neither.value, neither.low, neither.high) == (1.0, 0.0, math.inf)


def test_a_comparison_carries_all_its_figures(window_of):
    random = np.random.default_rng(8)
    baseline, window = window_of(random.normal(size=4_000)), window_of(random.normal(size=900) + 1)
    given = {
        "confidence": 0.99,
        "feature": "toxic",
        "pack_id": "p",
        "baseline_id": "b",
        "pooled": False,
        "window_name": "15m",
        "evidence": 1.5,
        "evidence_limit": 9.0,
        "now": window.end,
    }
    drift = compare(window, reference(BaselineStream(window=baseline)), **given)
    assert (drift.n, drift.baseline_n, drift.window, drift.segment) == (900, 4_000, "15m", "all")
    assert drift.shift.low < drift.shift.value < drift.shift.high
    assert 0 < drift.psi_low < drift.psi
    assert drift.psi == pytest.approx(psi(window.histogram, baseline.histogram))
    assert drift.ks == pytest.approx(ks(window.histogram, baseline.histogram))
    assert 0 < drift.ks_low < drift.ks
    assert drift.mean == pytest.approx(1.0, abs=0.1)
    # Dependence widens every bound and moves no estimate.
    wider = compare(
        window,
        reference(BaselineStream(window=baseline, design_effect=4.0, tail_design_effect=4.0)),
        **given,
    )
    assert wider.shift.value == drift.shift.value
    assert wider.shift.low < drift.shift.low
    assert wider.psi_low < drift.psi_low
    assert wider.ks_low < drift.ks_low
    assert wider.tail_ratio.low < drift.tail_ratio.low


def test_tail_rates_are_shares_of_the_prompts(window_of):
    baseline = window_of([9.0] * 10 + [0.0] * 990)
    given = {
        "confidence": 0.99,
        "feature": "toxic",
        "pack_id": "p",
        "baseline_id": "b",
        "pooled": False,
        "window_name": "15m",
        "evidence": 1.5,
        "evidence_limit": 9.0,
        "now": baseline.end,
    }
    against = reference(BaselineStream(window=baseline))
    drift = compare(window_of([9.0] * 30 + [0.0] * 570), against, **given)
    assert (drift.tail_rate, drift.baseline_tail_rate) == (0.05, 0.01)
    assert compare(window_of([]), against, **given).tail_rate == 0.0
