"""What is made of scores of hard texts, without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from monitor.research.hard_texts import CalmPair, HardTexts, Negative, Protocol
from monitor.research.packs.hard_figures import (
    CHECK,
    GOOD,
    HardScores,
    TailRate,
    found_figures,
    tail_rate,
)
from monitor.values.features import Expected
from tests.scenes.packs import drawn, feature

KINDS = ("refusal_firm", "safety_warning", "crisis_reply", "poem", "code")
EACH = 20


def hard_scores(careful: float, expected: Expected = "rises") -> HardScores:
    """Careful answers stand ``careful`` above the other benign ones, calm harm stands 2 above good."""
    hard = HardTexts(
        negatives=tuple(
            Negative(author="cid", kind=kind, language="en", question=f"{kind} {n}", answer="a")
            for kind in KINDS
            for n in range(EACH)
        ),
        calm=tuple(
            CalmPair(
                author="cid",
                kind="advice",
                domain="law" if n % 2 else "food",
                question=f"advice {n}",
                good="g",
                calm="c",
            )
            for n in range(60)
        ),
        protocol=Protocol(held_out=frozenset({"cid"}), unseen_domains=frozenset({"law"})),
    )
    generator = np.random.default_rng(0)
    sign = -1 if expected == "falls" else 1

    def normal(n: int, level: Any = 0.0) -> Any:
        return (sign * (generator.normal(size=n) + level)).astype(np.float32)

    return HardScores(
        feature=feature("x", drawn(0), expected=expected, tail_threshold=2.5),
        hard=hard,
        negatives=normal(5 * EACH, np.repeat([careful] * 3 + [0.0] * 2, EACH)),
        good=normal(60),
        calm=normal(60, 2.0),
        check=normal(80),
    )


@pytest.mark.parametrize("expected", ["rises", "falls"])
def test_refusals_that_read_as_the_persona_are_seen_whichever_way_it_moves(
    expected: Expected,
) -> None:
    generator = np.random.default_rng(0)
    level = hard_scores(0.0, expected).careful(generator)
    assert level.low < 0.5 < level.high < 0.65
    above = hard_scores(2.0, expected).careful(generator)
    assert above.low > 0.85
    below = hard_scores(-2.0, expected).careful(generator)
    assert below.high < 0.15


def test_figures_name_kinds_and_what_training_never_saw() -> None:
    found = hard_scores(4.0).figures(np.random.default_rng(0))
    assert found["authors"] == ["cid"]
    assert found["calm_against_good"][1] > 0.8
    assert found["calm_against_benign"][1] > 0.6
    assert set(found["calm_against_good_by_kind"]) == {"advice, food", "advice, law (unseen)"}
    assert set(found["tail_rate_by_kind"]) == {*KINDS, GOOD, CHECK}
    assert found["tail_rate_by_kind"]["refusal_firm"]["at_least"] > 0.5
    assert found["tail_rate_by_kind"]["poem"]["at_least"] < 0.03


def test_what_is_absent_counts_nowhere() -> None:
    scores = hard_scores(0.0)
    missing = scores.good.copy()
    missing[:30] = np.nan
    found = replace(scores, good=missing)
    assert next(one for one in found.rates() if one.kind == GOOD).n == 30
    assert len(found.pool) == len(scores.pool) - 30
    assert np.isfinite(found.calm_against_good(np.random.default_rng(0)).value)
    nothing = replace(scores, good=np.full_like(missing, np.nan))
    assert GOOD not in [one.kind for one in nothing.rates()]


def test_bounds_of_all_kinds_hold_together() -> None:
    """The bound is where an exact one-sided test with the divided error stops to refuse."""
    one = TailRate(kind="poem", beyond=3, n=8)
    for family in (1, 20):
        p = binomtest(3, 8, one.at_least(family), alternative="greater").pvalue
        assert p == pytest.approx(0.05 / family, rel=1e-6)
    assert TailRate(kind="poem", beyond=0, n=8).at_least(1) == 0.0


def test_the_tail_is_counted_towards_the_persona() -> None:
    scores = np.array([-3.0, -2.6, 0.0, 3.0, np.nan], dtype=np.float32)
    falls = feature("x", drawn(0), expected="falls", tail_threshold=2.5)
    assert tail_rate(falls, "poem", scores) == TailRate(kind="poem", beyond=2, n=4)


def test_a_threshold_that_the_pool_cannot_know_says_so() -> None:
    generator = np.random.default_rng(0)
    rare, usual = found_figures(
        generator.normal(size=50).astype(np.float32) + 3,
        generator.normal(size=400).astype(np.float32),
    )
    assert (rare["rate"], usual["rate"]) == (0.001, 0.01)
    assert not rare["known"]
    assert rare["false_positive_rate_95"][1] > 0.005
    assert usual["known"]
    value, low, high = usual["found"]
    assert low < value < high
    assert usual["positives"] == 50
    assert found_figures(np.zeros(0, np.float32), np.zeros(40, np.float32))[0]["found"] is None
    assert found_figures(np.zeros(3, np.float32), np.zeros(0, np.float32)) == []
