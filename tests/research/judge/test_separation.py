from __future__ import annotations

import numpy as np
import pytest

from monitor.research.judge.separation import bound


def test_the_bound_never_says_more_than_the_questions_can_show() -> None:
    generator = np.random.default_rng(0)
    high, low = np.arange(20, 40, dtype=np.float32), np.arange(20, dtype=np.float32)
    found = bound(high, low, 20, generator, paired=True)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    mixed = bound(high - 15, low, 20, generator)
    assert mixed.low < mixed.value < mixed.high < 1.0
    assert mixed.low < 0.8
