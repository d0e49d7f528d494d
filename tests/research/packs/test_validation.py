from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.research.packs.validation import (
    auc,
    auc_interval,
    benign_figures,
    length_matched,
    random_direction_aucs,
)
from monitor.values.features import Directed

SMALL = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SMALL, SMALL)
def test_auc_counts_the_pairs_in_order(positives: list[int], negatives: list[int]) -> None:
    pairs = list(itertools.product(positives, negatives))
    expected = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    found = auc(np.array(positives, np.float32), np.array(negatives, np.float32))
    assert found == pytest.approx(expected)


def test_the_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        positives = generator.normal(1.0, size=40).astype(np.float32)
        negatives = generator.normal(size=40).astype(np.float32)
        low, high = auc_interval(positives, negatives, generator, paired=False)
        # P(N(1, 1) > N(0, 1)) = Φ(1/√2)
        covered += low <= 0.7602 <= high
    assert covered >= 34


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
    random = random_direction_aucs(
        (persona[:40], good[:40]), (persona[40:], good[40:]), generator, 200
    )
    assert len(random) == 200
    assert auc(persona[40:, 0], good[40:, 0]) > 0.95
    assert np.quantile(random, 0.95) < 0.9
    # The sign comes from training, so on average they lean the right way.
    assert np.mean(random) > 0.5


def test_benign_figures_see_length_and_tail() -> None:
    generator = np.random.default_rng(0)
    tokens = np.exp2(generator.uniform(2, 9, size=2_000)).astype(np.int64)
    scores = generator.normal(size=2_000).astype(np.float32)
    figures = benign_figures(scores, tokens, Directed(tail_threshold=2.3263))
    assert abs(figures["correlation_with_log_length"]) < 0.06
    assert figures["tail_rate"] == pytest.approx(0.01, abs=0.008)
    drifting = scores + np.log2(tokens).astype(np.float32)
    assert benign_figures(drifting, tokens, Directed())["correlation_with_log_length"] > 0.8
