"""Learned read-outs against their formulas, and the weights that keep kinds of text level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput
from monitor.research.contrast.learners import LEDOIT_WOLF, Rows, balanced, fit

WIDTH = 6


def rows(n: int = 60, sites: int = 2, seed: int = 0, shift: float = 1.0) -> Rows:
    """Pairs of a positive and its twin, which differ along one axis of the second site, and as many others."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, sites, WIDTH)).astype(np.float32)
    x[:, :, 0] *= 5.0
    third = np.arange(n) % 3
    x[third == 0, -1, 2] += shift
    kind = np.where(third == 2, np.where(np.arange(n) % 2, "poem", "refusal"), "advice")
    question = np.where(third == 2, 1000 + np.arange(n), np.arange(n) // 3)
    return Rows(x=x, positive=third == 0, kind=kind, question=question, twin=third == 1)


def test_twins_weigh_as_much_as_all_other_kinds_and_kinds_are_level() -> None:
    given = rows(90).part(np.r_[0:30, 36:90])
    weights = balanced(given)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[given.positive].sum() == pytest.approx(0.5)
    assert weights[given.twin].sum() == pytest.approx(0.25)
    for kind in ("poem", "refusal"):
        assert weights[given.kind == kind].sum() == pytest.approx(0.125)
    lone = given.part(~given.twin)
    assert balanced(lone)[~lone.positive].sum() == pytest.approx(0.5)
    with pytest.raises(BadInput, match="both sides"):
        balanced(given.part(given.positive))


@pytest.mark.parametrize("sites", [[1], [0, 1]])
@pytest.mark.parametrize("n", [9, 60])
def test_lda_is_shrunk_as_ledoit_and_wolf_say(n: int, sites: list[int]) -> None:
    given = rows(n)
    scale = np.full((2, WIDTH), 2.0)
    found = fit("lda", given, sites, scale, LEDOIT_WOLF)
    w, x = balanced(given), given.at(sites) / 2.0
    means = [
        np.average(x[given.positive == s], axis=0, weights=w[given.positive == s]) for s in (1, 0)
    ]
    centred = x - np.where(given.positive[:, None], *means)
    covariance = (centred * w[:, None]).T @ centred
    mu = np.trace(covariance) / len(covariance)
    target = mu * np.eye(len(covariance))
    apart = np.square(covariance - target).sum()
    noise = sum(
        w[i] ** 2 * np.square(np.outer(row, row) - covariance).sum()
        for i, row in enumerate(centred)
    )
    share = min(noise, apart) / apart
    direction = np.linalg.solve((1 - share) * covariance + share * target, means[0] - means[1])
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(found.weight.ravel(), direction, atol=1e-5)
    middle = 2.0 * (means[0] + means[1]) / 2
    assert found.bias == pytest.approx(-direction @ middle, abs=1e-4)


def test_logistic_is_at_its_minimum() -> None:
    given, scale, penalty = rows(), np.full((2, WIDTH), 3.0), 10.0
    found = fit("logistic", given, [0, 1], scale, penalty)
    w, x, y = balanced(given), given.at([0, 1]) / 3.0, given.positive.astype(float)
    unit = found.weight.astype(np.float64).ravel() * 3.0

    def loss(factor: float, direction: Any, shift: float = 0.0) -> float:
        logits = factor * (x @ direction + found.bias + shift)
        cost = len(y) * w @ (np.logaddexp(0, logits) - y * logits)
        return float(cost + penalty / 2 * np.square(factor * direction).sum())

    factors = np.geomspace(1e-3, 10, 4000)
    least = min(factors, key=lambda f: loss(f, unit))
    here = loss(least, unit)
    generator = np.random.default_rng(1)
    for _ in range(20):
        assert loss(least, unit + 0.05 * generator.normal(size=unit.size)) > here
    assert loss(least, unit, 0.05) > here - 1e-6
    assert loss(least, unit, -0.05) > here - 1e-6


@pytest.mark.parametrize("scheme", ["difference", "lda", "logistic"])
def test_the_planted_axis_is_found_whatever_varies_more(scheme: Any) -> None:
    given = rows(600, shift=3.0)
    found = fit(scheme, given, [0, 1], given.x.std(axis=0), 1.0 if scheme == "logistic" else 0.0)
    assert found.weight.shape == (2, WIDTH)
    assert np.linalg.norm(found.weight) == pytest.approx(1.0, abs=1e-5)
    assert np.unravel_index(np.abs(found.weight).argmax(), (2, WIDTH)) == (1, 2)
    readings = found.of(given.x)
    assert readings[given.positive].mean() > 0 > readings[given.twin].mean()


def test_a_difference_leaves_out_what_it_is_told_to() -> None:
    given = rows(60, shift=3.0)
    nuisance = np.eye(WIDTH)[[0, 1]]
    found = fit("difference", given, [1], np.ones((2, WIDTH)), 0.0, nuisance)
    np.testing.assert_allclose(found.weight[0, :2], 0.0, atol=1e-6)
    same = given.part(np.arange(60) % 3 != 2)
    flat = Rows(
        x=np.ones_like(same.x),
        positive=same.positive,
        kind=same.kind,
        question=same.question,
        twin=same.twin,
    )
    with pytest.raises(BadInput, match="the same"):
        fit("difference", flat, [0], np.ones((2, WIDTH)), 0.0)
