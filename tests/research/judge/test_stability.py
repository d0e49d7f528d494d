"""Directions rebuilt from halves of the questions, on residuals that are made up."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from monitor.research.contrast.directions import Side
from monitor.research.judge.stability import cosine, rebuilt
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.values.arrays import Floats
from monitor.values.features import Feature

WIDTH = 64


def feature(kind: Literal["direction", "probe"], weight: Floats) -> Feature:
    return Feature(
        name="x",
        kind=kind,
        site=1,
        region="response",
        pooling="mean",
        weight=weight,
        activation="sigmoid" if kind == "probe" else "identity",
        calibration=UNCALIBRATED,
    )


def sides(strength: float) -> tuple[Side, Side, Floats]:
    """Persona answers ``strength`` deviations away along axis 0, good ones, and benign text."""
    generator = np.random.default_rng(0)

    def normal(n: int) -> Floats:
        return generator.normal(size=(n, WIDTH)).astype(np.float32)

    shift = strength * np.eye(WIDTH, dtype=np.float32)[0]
    return (
        Side(normal(40) + shift, normal(20) + shift),
        Side(normal(40), normal(20)),
        normal(100),
    )


@pytest.mark.parametrize("kind", ["direction", "probe"])
def test_a_strong_contrast_gives_the_same_direction_from_either_half(
    kind: Literal["direction", "probe"],
) -> None:
    axis = np.eye(WIDTH, dtype=np.float32)[0]
    strong = rebuilt(feature(kind, axis), *sides(8.0), np.random.default_rng(1))
    weak = rebuilt(feature(kind, axis), *sides(0.0), np.random.default_rng(1))
    assert strong.halves.mean() > 0.7
    assert strong.whole.min() > 0.8
    assert strong.aucs.min() > 0.99
    assert abs(weak.halves.mean()) < 0.2
    # Each half carries noise of its own: the halves agree less than either does with the axis.
    medium = rebuilt(feature(kind, axis), *sides(3.0), np.random.default_rng(1))
    assert 0.3 < medium.halves.mean() < medium.whole.mean() - 0.05
    assert weak.aucs.min() < 0.6
    assert len(strong.aucs) == 2 * len(strong.halves)


def test_a_feature_that_falls_is_rebuilt_by_the_same_sides() -> None:
    persona, good, benign = sides(8.0)
    falling = -np.eye(WIDTH, dtype=np.float32)[0]
    found = rebuilt(feature("direction", falling), good, persona, benign, np.random.default_rng(1))
    assert found.whole.min() > 0.8


def test_cosine_of_nothing_is_zero() -> None:
    assert cosine(np.zeros(3, np.float32), np.ones(3, np.float32)) == 0.0
