from __future__ import annotations

import numpy as np
import pytest

from monitor.research.packs.tails import tail, texts_needed


def test_the_threshold_leaves_at_most_the_rate_above_it() -> None:
    scores = np.arange(400, dtype=np.float32)
    found = tail(scores, 0.01)
    assert (found.threshold, found.above, found.n) == (395.0, 4, 400)
    assert np.sum(scores > found.threshold) == 4
    assert found.interval[0] < 0.01 < found.interval[1]
    assert found.known


def test_a_rate_that_so_few_texts_cannot_tell_is_not_known() -> None:
    found = tail(np.arange(400, dtype=np.float32), 0.001)
    assert (found.threshold, found.above) == (399.0, 0)
    assert not found.known
    # Of 400 independent texts none above: the rate may be 0.9 % (1 - 0.025^(1/400)).
    assert found.interval[1] == pytest.approx(1 - 0.025 ** (1 / 400))
    assert tail(np.arange(texts_needed(0.001), dtype=np.float32), 0.001).known


def test_the_interval_covers_the_true_rate_of_the_threshold() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = tail(generator.uniform(size=200).astype(np.float32), 0.01)
        covered += found.interval[0] <= 1 - found.threshold <= found.interval[1]
    assert 0.91 <= covered / 300 <= 0.99


def test_absent_scores_are_left_out() -> None:
    scores = np.array([1.0, np.nan, 2.0, 3.0], dtype=np.float32)
    assert tail(scores, 0.5).n == 3
