"""A feature owns its direction: sign, turned scores, tail."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.values.features import Directed

SCORES = st.floats(-20, 20, width=32)


@given(SCORES, SCORES)
def test_a_falling_features_tail_is_the_rising_ones_mirrored(
    score: float, threshold: float
) -> None:
    rising = Directed(expected="rises", tail_threshold=threshold)
    falling = Directed(expected="falls", tail_threshold=threshold)
    assert rising.in_tail(np.array(score)) == (score > threshold)
    assert falling.in_tail(np.array(-score)) == rising.in_tail(np.array(score))
    assert falling.toward(-score) == rising.toward(score) == score
    assert (rising.sign, falling.sign) == (1, -1)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_score_at_the_threshold_and_an_absent_one_are_not_tail(precision: type) -> None:
    at = np.float32(2.3)  # more than 2.3 in double precision
    scores = np.array([[at, np.nextafter(at, np.float32(9))], [np.nan, 0.0]], dtype=precision)
    wanted = [[False, True], [False, False]]
    assert Directed(tail_threshold=2.3).in_tail(scores).tolist() == wanted
    assert Directed(expected="falls", tail_threshold=2.3).in_tail(-scores).tolist() == wanted


def test_the_threshold_of_a_latent_that_hardly_wakes_may_be_negative() -> None:
    silent_and_awake = np.array([-0.1, 4.0], dtype=np.float32)
    assert Directed(tail_threshold=-0.1).in_tail(silent_and_awake).tolist() == [False, True]
    fading = Directed(expected="falls", tail_threshold=-0.1)
    assert fading.in_tail(-silent_and_awake).tolist() == [False, True]
