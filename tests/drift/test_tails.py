"""Tails that the baseline itself sets: thresholds with a guarantee, counts off the histogram, exact ratios."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from monitor.drift.baseline import levels_not_watched
from monitor.drift.histogram import EDGES, histogram_of
from monitor.drift.tails import (
    LEVELS,
    beyond,
    fewest,
    levels,
    rate_ratio,
    repetition,
    tail_growth,
)
from monitor.drift.tests import Reference, compare, of_contents, reference
from monitor.values.arrays import Doubles
from monitor.values.drift import Bound, Drift, TailLevel, Window
from tests.drift.drafts import draft
from tests.drift.simulation import baseline_of_scores
from tests.drift.simulation import window_of as simulated_window

CONFIDENCE = 0.99
ERROR = (1 - CONFIDENCE) / 2
Windows = Callable[..., Window]


def test_counts_beyond_every_edge_are_those_of_the_scores() -> None:
    scores = np.random.default_rng(1).standard_t(3, size=5_000)
    histogram = histogram_of(scores)
    np.testing.assert_array_equal(EDGES, -EDGES[::-1], "both sides need the same thresholds")
    np.testing.assert_array_equal(beyond(histogram, 1), [(scores >= edge).sum() for edge in EDGES])
    np.testing.assert_array_equal(beyond(histogram, -1), [(-scores > edge).sum() for edge in EDGES])


@pytest.mark.parametrize("share", LEVELS)
def test_a_threshold_is_the_first_edge_that_is_surely_passed_by_no_more_than_its_share(
    share: float,
) -> None:
    """An exact order-statistic bound: with so few beyond, the true rate is above ``share`` by bad luck only."""
    n = 20_000
    histogram = histogram_of(np.random.default_rng(2).normal(size=n))
    (level,) = (one for one in levels(histogram, (), 1, CONFIDENCE) if one.share == share)
    counts = beyond(histogram, 1)
    index = int(np.flatnonzero(level.threshold == EDGES)[0])
    assert level.count == counts[index]
    assert binom.cdf(counts[index], n, share) <= ERROR < binom.cdf(counts[index - 1], n, share)


def test_a_baseline_too_small_for_a_level_does_not_watch_it() -> None:
    assert [fewest(share, CONFIDENCE) for share in LEVELS] == [528, 1_058, 5_296]
    for n, watched in ((527, ()), (528, (0.01,)), (5_295, LEVELS[:2]), (5_296, LEVELS)):
        found = levels(histogram_of(np.zeros(n)), (), 1, CONFIDENCE)
        assert tuple(level.share for level in found) == watched
    # A tail that reaches beyond the last edge has no threshold either.
    assert levels(histogram_of(np.full(9_000, 30.0)), (), 1, CONFIDENCE) == ()


def test_the_guarantee_holds_whatever_edge_is_chosen() -> None:
    """Over baselines drawn anew, a threshold whose true rate is above its share is as rare as stated."""
    random = np.random.default_rng(3)
    true = dict.fromkeys(LEVELS, 0)
    runs = 400
    for _ in range(runs):
        scores = random.standard_t(4, size=6_000)
        for level in levels(histogram_of(scores), (), 1, CONFIDENCE):
            true[level.share] += bool(_t4_beyond(level.threshold) > level.share)
    assert max(true.values()) <= binom.ppf(0.999, runs, ERROR)


def _t4_beyond(threshold: float) -> float:
    from scipy.stats import t

    return float(t.sf(threshold, 4))


def test_dependence_in_the_tail_asks_for_more_prompts(window_of: Windows) -> None:
    """Conversations that reach the tail as a whole: the threshold lies further out, and says why."""
    random = np.random.default_rng(4)
    scores = np.repeat(random.normal(size=1_200), 10)
    parts = [window_of(some, at=i) for i, some in enumerate(np.split(scores, 60))]
    own = {one.share: one for one in draft(parts).streams[0, "all"].tails or ()}
    taken = {one.share: one for one in levels(histogram_of(scores), (), 1, CONFIDENCE)}
    assert own[0.01].design_effect > 4
    assert taken[0.01].design_effect == 1.0
    assert own[0.01].threshold > taken[0.01].threshold
    assert 0.001 not in own


def test_a_falling_feature_has_its_tail_below(window_of: Windows) -> None:
    scores = np.where(np.arange(8_000) % 200 == 0, -9.0, 0.0)
    parts = [window_of(some, at=i) for i, some in enumerate(np.array_split(scores, 30))]
    falls, rises = (
        draft(parts, expected=way).streams[0, "all"].tails for way in ("falls", "rises")
    )
    assert falls is not None
    assert rises is not None
    assert (falls[0].count, rises[0].count) == (40, 0)


def test_levels_that_are_not_watched_are_named(window_of: Windows) -> None:
    parts = [window_of(np.random.default_rng(i).normal(size=50), at=i) for i in range(24)]
    assert levels_not_watched(draft(parts)) == {0.001: (0,)} | {
        share: (0,)
        for share in LEVELS[:2]
        if share not in {one.share for one in draft(parts).streams[0, "all"].tails or ()}
    }


def test_growth_is_the_rate_against_the_baselines_at_the_same_threshold() -> None:
    level = TailLevel(share=0.001, threshold=3.5, count=5, design_effect=1.0)
    now = histogram_of([4.0] * 12 + [0.0] * 1_188)
    (found,) = tail_growth(now, (level,), baseline_n=10_000, sign=1, confidence=CONFIDENCE)
    assert (found.share, found.threshold) == (0.001, 3.5)
    assert (found.rate, found.baseline_rate) == (0.01, 0.0005)
    assert 3 < found.ratio.low < 20 < found.ratio.high
    mirrored = histogram_of([-4.0] * 12 + [0.0] * 1_188)
    (other,) = tail_growth(mirrored, (level,), baseline_n=10_000, sign=-1, confidence=CONFIDENCE)
    assert other == found
    (wider,) = tail_growth(
        now,
        (TailLevel(share=0.001, threshold=3.5, count=5, design_effect=3.0),),
        baseline_n=10_000,
        sign=1,
        confidence=CONFIDENCE,
    )
    assert wider.ratio.low < found.ratio.low


def test_prompts_of_one_content_tell_as_much_as_one() -> None:
    assert repetition([], 0) == repetition([1], 1) == repetition([1] * 40, 40) == 1.0
    assert repetition([72], 72) == pytest.approx(72)
    sizes = [1, 2, 3, 10]
    assert repetition(sizes, sum(sizes)) == pytest.approx(sum(k * k for k in sizes) / sum(sizes))


def test_a_part_of_the_prompts_tells_how_often_contents_repeat() -> None:
    random = np.random.default_rng(3)
    drawn = random.integers(50, size=4_000)
    whole = repetition(np.bincount(drawn), 4_000)
    parts = [repetition(np.bincount(some), 4_000) for some in np.array_split(drawn, 20)]
    assert np.mean(parts) == pytest.approx(whole, rel=0.1)


def test_ours_alone_is_divided_by_its_repeats() -> None:
    ours, theirs = (72, 7_200), (20, 20_000)

    def found(effect: float = 1.0, repeated: float = 1.0) -> Bound:
        return rate_ratio(ours, theirs, error=0.005, design_effect=effect, repeated=repeated)

    assert found(repeated=1.0).low > 5
    assert found(repeated=72.0).low < 0.1
    assert found(repeated=72.0).high > found().high
    assert found(repeated=72.0).value == found().value
    assert found(effect=4.0, repeated=3.0) == found(effect=4.0)
    assert found(effect=4.0, repeated=8.0).low < found(effect=4.0).low


def compared(scores: Doubles, against: Reference) -> Drift:
    window = simulated_window(scores, tail=3.0)
    return compare(
        window,
        against,
        confidence=CONFIDENCE,
        feature="toxic",
        pack_id="p",
        baseline_id="b",
        pooled=False,
        window_name="1h",
        evidence=0.0,
        evidence_limit=math.inf,
        now=window.end,
    )


def test_contents_are_asked_for_only_where_a_tail_surely_grew() -> None:
    random = np.random.default_rng(4)
    against = reference(baseline_of_scores(random.normal(size=10_000)))
    asked: list[tuple[float, int]] = []

    def seen(scores: Doubles, *, same: bool) -> Drift:
        def contents(threshold: float, count: int) -> list[tuple[bytes, float]]:
            asked.append((threshold, count))
            far = enumerate(scores[scores >= threshold].tolist())
            return [(b"one" if same else str(i).encode(), score) for i, score in far]

        made = compared(scores, against)
        return of_contents(made, against, contents, tail_threshold=3.0, confidence=CONFIDENCE)

    quiet = random.normal(size=1_000)
    assert seen(quiet, same=True) == compared(quiet, against)
    assert asked == []
    storm = np.concatenate([quiet, np.full(100, 4.0)])
    before, one = compared(storm, against), seen(storm, same=True)
    assert before.tail_ratio.low > 3
    assert asked == [
        (min(level.threshold for level in before.tails), pytest.approx(100, abs=20))
    ], "once, for the nearest of all thresholds"
    assert one.tail_ratio.low < 1 < one.tail_ratio.value == before.tail_ratio.value
    assert all(level.ratio.low < 1 for level in one.tails)
    assert [level.rate for level in one.tails] == [level.rate for level in before.tails]
    assert seen(storm, same=False) == before
