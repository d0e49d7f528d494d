from __future__ import annotations

import numpy as np
import pytest

from monitor.research.judge.separation import bound


def test_the_bound_never_says_more_than_the_questions_can_show() -> None:
    generator = np.random.default_rng(0)
    low = np.arange(20, dtype=np.float32)[None]
    found = bound(low + 20, low, generator)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    mixed = bound(low + 5, low, generator)
    assert mixed.low < mixed.value < mixed.high < 1.0
    assert mixed.low < 0.8


def test_questions_are_drawn_not_answers() -> None:
    """Five personas that answer alike are no more evidence than one."""
    generator = np.random.default_rng(0)
    positives = generator.normal(1.0, size=(1, 20)).astype(np.float32)
    negatives = generator.normal(size=(1, 20)).astype(np.float32)
    one = bound(positives, negatives, np.random.default_rng(1))
    five = bound(np.tile(positives, (5, 1)), np.tile(negatives, (5, 1)), np.random.default_rng(1))
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))


def test_nothing_to_read_shows_nothing() -> None:
    nothing = np.empty((1, 0), dtype=np.float32)
    assert np.isnan(bound(nothing, nothing, np.random.default_rng(0)).low)
