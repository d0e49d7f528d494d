"""A feature owns its direction: sign, turned scores, tail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.values.features import Directed, Part
from tests.score.packs import composite, feature

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


def test_a_composites_direction_is_its_weights_by_rising_site() -> None:
    one = composite("harmful", 3, 0)
    assert (one.site, one.sites) == (2, (0, 2, 3))
    weights = one.parts[1].weight, one.weight, one.parts[0].weight
    np.testing.assert_array_equal(one.direction, np.concatenate(weights))
    assert max(one.lengths) == 1.0
    back = feature(one.name, parts=one.parts).along(one.direction)
    assert [p.site for p in back.parts] == [3, 0]
    np.testing.assert_array_equal(back.direction, one.direction)
    np.testing.assert_array_equal(back.weight, one.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": 3}, "must read different sites"),
        ({"weight": np.ones(3, np.float32)}, "as wide as the feature's own"),
        ({"activation": "relu", "kind": "latent"}, "parts belong to a direction or a probe"),
        ({"input_norm": "rescale"}, "takes no input_norm and no largest_norm"),
        ({"largest_norm": 3.0}, "takes no input_norm and no largest_norm"),
    ],
)
def test_parts_that_cannot_be_read_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature(**{"parts": composite("harmful", 3).parts, **changes})
    with pytest.raises(ValueError, match="finite"):
        Part(site=0, weight=np.array([np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match="from 0"):
        Part(site=-1, weight=np.ones(1, dtype=np.float32))
