"""The stated error rates hold, by simulation; bounds against what is known; prompts needed suffice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from monitor.research.gate.equivalence import (
    Errors,
    Sample,
    Verdict,
    compared_means,
    compared_tails,
    decided,
    mean_bound,
    sampled,
    tail_bound,
    together,
)
from monitor.research.gate.reading import Pairs
from monitor.research.gate.rules import Margins
from monitor.research.gate.shifts import judged
from monitor.values.arrays import Doubles
from monitor.values.features import Calibration, Feature

pytestmark = pytest.mark.slow

ALPHA = 0.05
RUNS = 600


def tolerance(runs: int) -> float:
    """Three standard deviations of a share of 5 % over so many gates."""
    return 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


TOLERANCE = tolerance(RUNS)
EVEN = Errors(low=0.05, high=0.05)
FEATURES = tuple(
    Feature(
        name=f"f{index}",
        kind="direction",
        site=0,
        region="response",
        pooling="mean",
        weight=np.ones(1, dtype=np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        expected="falls" if index == 3 else "rises",
        tail_threshold=2.3,
    )
    for index in range(8)
)
SIGNS = np.array([-1.0 if f.expected == "falls" else 1.0 for f in FEATURES])
Draw = Callable[[np.random.Generator, int], Doubles]


def gate(
    generator: np.random.Generator, harm: Draw, margins: Margins, *, n: int = 100, per: int = 1
) -> Verdict:
    """One gate over eight features that hang together; ``harm`` draws signed differences [n, 8]."""
    clusters = np.arange(n) // per
    shared = generator.normal(size=(n, 1))
    before = 0.7 * shared + 0.7 * generator.normal(size=(n, len(FEATURES)))
    pairs = Pairs(kind="model", before=before, after=before + SIGNS * harm(generator, n))
    comparisons = len(FEATURES) * (1 + (margins.tail is not None))
    errors = Errors.of(ALPHA, comparisons)
    return together(
        [
            judged(feature, index, pairs, clusters, margins, errors, 50).verdict
            for index, feature in enumerate(FEATURES)
        ]
    )


def share(
    verdict: Verdict, harm: Draw, margins: Margins, seed: int, *, runs: int = RUNS, **options: Any
) -> float:
    generator = np.random.default_rng(seed)
    return sum(gate(generator, harm, margins, **options) == verdict for _ in range(runs)) / runs


def normal(shift: float, only: int | None = None) -> Draw:
    def draw(generator: np.random.Generator, n: int) -> Doubles:
        noise = generator.normal(size=(n, 1)) + generator.normal(size=(n, len(FEATURES)))
        shifts = np.full(len(FEATURES), shift)
        if only is not None:
            shifts[:] = 0.0
            shifts[only] = shift
        return 0.4 * noise + shifts

    return draw


def exponential(shift: float, side: float) -> Draw:
    def draw(generator: np.random.Generator, n: int) -> Doubles:
        return side * 0.6 * (generator.exponential(size=(n, len(FEATURES))) - 1.0) + shift

    return draw


def conversations(shift: float, per: int) -> Draw:
    def draw(generator: np.random.Generator, n: int) -> Doubles:
        common = np.repeat(generator.normal(size=(n // per, len(FEATURES))), per, axis=0)
        return 0.5 * common + 0.1 * generator.normal(size=(n, len(FEATURES))) + shift

    return draw


def rare_persona(share_of_answers: float, height: float) -> Draw:
    """A persona in some of the answers, which all features of it show; the others stay as they are."""

    def draw(generator: np.random.Generator, n: int) -> Doubles:
        lifted = np.zeros((n, len(FEATURES)))
        lifted[:, :3] = height * (generator.random((n, 1)) < share_of_answers)
        return lifted + 0.1 * generator.normal(size=lifted.shape)

    return draw


MEANS_ONLY = Margins(shift=0.3, tail=None)
BOTH = Margins(shift=0.3, tail=0.05)


def test_without_a_change_a_gate_hardly_ever_fails_and_passes() -> None:
    assert share("fail", normal(0.0), MEANS_ONLY, 1) == 0.0
    assert share("pass", normal(0.0), MEANS_ONLY, 2, runs=150) > 0.95


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(normal(0.3), id="n"),
        pytest.param(exponential(0.3, 1.0), id="e", marks=pytest.mark.slow),
        pytest.param(exponential(0.3, -1.0), id="-e", marks=pytest.mark.slow),
    ],
)
def test_false_fail_at_the_margin_stays_below_alpha(harm: Draw) -> None:
    """Every shift is just as large as allowed: all eight tempt the gate to fail."""
    assert share("fail", harm, MEANS_ONLY, 3) <= ALPHA + TOLERANCE


@pytest.mark.parametrize(
    "feature", [pytest.param(0, id="rises", marks=pytest.mark.slow), pytest.param(3, id="falls")]
)
def test_false_pass_at_the_margin_stays_below_alpha(feature: int) -> None:
    """One shift stands at its margin, the others at nothing: the worst case for a false pass."""
    found = share("pass", normal(0.3, only=feature), MEANS_ONLY, 4)
    assert 0.5 * ALPHA <= found <= ALPHA + TOLERANCE, "and it is no wider than it need be"


@pytest.mark.slow
def test_false_pass_under_skewed_differences() -> None:
    def one(generator: np.random.Generator, n: int) -> Doubles:
        drawn = 0.1 * generator.normal(size=(n, len(FEATURES)))
        drawn[:, 0] = 0.6 * (generator.exponential(size=n) - 1.0) + 0.3
        return drawn

    # Student's t alone errs at 0.09 here.
    found = share("pass", one, MEANS_ONLY, 5, n=50, runs=2_000)
    assert found <= ALPHA + tolerance(2_000)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
def test_a_rare_persona_at_the_margin_is_no_false_pass(n: int) -> None:
    """Five answers in a hundred at six deviations: the mean's margin 0.3 and the tail's 0.05 at once."""
    assert share("pass", rare_persona(0.05, 6.0), BOTH, 6, n=n) <= ALPHA + TOLERANCE


def test_tails_guard_means_that_few_prompts_cannot_see() -> None:
    """Three answers in a hundred at ten deviations: a fifth of the samples of fifty hold none."""
    harm = rare_persona(0.03, 10.0)
    assert share("pass", harm, MEANS_ONLY, 15, n=50, runs=200) > 3 * ALPHA
    assert share("pass", harm, BOTH, 15, n=50, runs=200) == 0.0


@pytest.mark.slow
def test_conversations_are_the_draws_not_their_prompts() -> None:
    harm = conversations(0.3, 4)
    assert share("fail", harm, MEANS_ONLY, 7, n=240, per=4) <= ALPHA + TOLERANCE
    assert share("fail", harm, MEANS_ONLY, 7, n=240, per=1, runs=200) > 2 * ALPHA, (
        "the test can see it"
    )


def test_a_large_shift_fails_and_few_prompts_decide_nothing() -> None:
    assert share("fail", normal(0.8, only=2), MEANS_ONLY, 8, runs=150) > 0.99
    assert share("inconclusive", normal(0.8, only=2), MEANS_ONLY, 9, n=40, runs=150) == 1.0


def test_a_bound_on_many_symmetric_differences_is_students() -> None:
    generator = np.random.default_rng(10)
    half = generator.normal(size=500)
    values = np.concatenate([half, -half]) + 0.2
    bound = mean_bound(sampled(values, np.arange(1000)), EVEN)
    interval = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert (bound.low, bound.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert bound.value == pytest.approx(0.2)


def test_skewness_widens_towards_its_tail() -> None:
    values = np.random.default_rng(11).exponential(size=60)
    bound = mean_bound(sampled(values, np.arange(60)), EVEN)
    interval = ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert bound.high > interval.high + 0.01
    assert bound.low == pytest.approx(interval.low)
    mirrored = mean_bound(sampled(-values, np.arange(60)), EVEN)
    assert (mirrored.low, mirrored.high) == pytest.approx((-bound.high, -bound.low))


def test_repeating_every_prompt_in_its_cluster_adds_nothing() -> None:
    generator = np.random.default_rng(12)
    values, names = generator.normal(size=80), np.arange(80)
    once = sampled(values, names)
    thrice = sampled(np.repeat(values, 3), np.repeat(names, 3))
    assert thrice.clusters == once.clusters == 80
    assert thrice.deviation == pytest.approx(once.deviation)
    uneven = sampled(values, np.where(names < 40, 0, names))
    assert uneven.clusters == pytest.approx(80**2 / (40**2 + 40))


def test_tail_bounds_are_clopper_and_pearsons() -> None:
    bound = tail_bound(6, 1, 200, Errors(low=0.01, high=0.05))
    high = [binomtest(k, 200).proportion_ci(1 - 0.05, "exact") for k in (6, 1)]
    low = [binomtest(k, 200).proportion_ci(1 - 0.01, "exact") for k in (6, 1)]
    assert bound.value == pytest.approx(0.025)
    assert bound.high == pytest.approx(high[0].high - high[1].low)
    assert bound.low == pytest.approx(low[0].low - low[1].high)
    nothing = tail_bound(0, 0, 60, EVEN)
    assert nothing.high == pytest.approx(1 - 0.025 ** (1 / 60))
    assert nothing.low == pytest.approx(-nothing.high)
    assert tail_bound(60, 0, 60, EVEN).high == 1.0


@pytest.mark.parametrize(("newly", "no_longer"), [(0.06, 0.01), (0.05, 0.0), (0.10, 0.05)])
def test_tail_differences_at_the_margin_are_covered(newly: float, no_longer: float) -> None:
    generator = np.random.default_rng(13)
    draws = generator.multinomial(150, [newly, no_longer, 1 - newly - no_longer], size=4_000)
    verdicts = [decided(tail_bound(int(b), int(c), 150, EVEN), 0.05) for b, c, _ in draws]
    for wrong in ("pass", "fail"):
        assert verdicts.count(wrong) / 4_000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4_000)


@pytest.mark.parametrize(("shift", "verdict"), [(0.15, "pass"), (0.45, "fail")])
def test_the_prompts_said_to_be_needed_decide(shift: float, verdict: Verdict) -> None:
    errors = Errors.of(ALPHA, 8)
    pilot = Sample(mean=shift, deviation=0.8, skewness=0.0, clusters=50.0, n=50)
    undecided = compared_means(pilot, 0.3, errors, 50)
    assert undecided.verdict == "inconclusive"
    assert undecided.needed is not None
    generator = np.random.default_rng(14)
    names = np.arange(undecided.needed)
    won = sum(
        compared_means(
            sampled(generator.normal(shift, 0.8, len(names)), names), 0.3, errors, 50
        ).verdict
        == verdict
        for _ in range(400)
    )
    assert 0.74 <= won / 400 <= 0.86, "power is stated as 0.8"


def test_needed_counts_prompts_not_conversations() -> None:
    errors = Errors.of(ALPHA, 8)
    single = Sample(mean=0.1, deviation=0.8, skewness=0.0, clusters=40.0, n=40)
    threes = Sample(mean=0.1, deviation=0.8, skewness=0.0, clusters=40.0, n=120)
    one, three = (compared_means(pilot, 0.3, errors, 50).needed for pilot in (single, threes))
    assert one is not None
    assert three is not None
    assert three == pytest.approx(3 * one, abs=3)


def test_needed_is_none_at_the_margin_and_when_decided() -> None:
    at = Sample(mean=0.3, deviation=0.8, skewness=0.0, clusters=60.0, n=60)
    assert compared_means(at, 0.3, EVEN, 50).needed is None
    settled = Sample(mean=0.0, deviation=0.1, skewness=0.0, clusters=60.0, n=60)
    assert compared_means(settled, 0.3, EVEN, 50).needed is None
    assert compared_tails(5, 0, 100, margin=0.05, errors=EVEN, least=50).needed is None


def test_tail_prompts_needed_are_enough_and_not_many_more() -> None:
    few = compared_tails(0, 0, 60, margin=0.05, errors=EVEN, least=50)
    assert few.verdict == "inconclusive"
    assert few.needed is not None
    assert 71 <= few.needed <= 75, "0 of 72 has the exact upper bound 0.05 at one in forty"
    assert compared_tails(0, 0, few.needed, margin=0.05, errors=EVEN, least=50).verdict == "pass"


def test_no_differences_and_no_clusters() -> None:
    nothing = sampled(np.empty(0), np.empty(0, dtype=np.int64))
    assert compared_means(nothing, 0.3, EVEN, 50).verdict == "inconclusive"
    alone = mean_bound(sampled(np.ones(5), np.zeros(5, dtype=np.int64)), EVEN)
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    same = compared_means(sampled(np.zeros(60), np.arange(60)), 0.3, EVEN, 50)
    assert (same.verdict, same.bound.low, same.bound.high) == ("pass", 0.0, 0.0)
    assert together([]) == "inconclusive"
    assert together(["pass", "inconclusive", "fail"]) == "fail"
