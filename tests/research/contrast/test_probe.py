from __future__ import annotations

import numpy as np
import pytest

from monitor.research.contrast.probe import PENALTY, fit_probe


def test_a_probe_finds_the_shifted_dimension_whatever_the_scale() -> None:
    generator = np.random.default_rng(0)
    scale = np.exp(generator.normal(size=40))
    negative = (generator.normal(size=(80, 40)) * scale + 5.0).astype(np.float32)
    positive = (generator.normal(size=(80, 40)) * scale + 5.0).astype(np.float32)
    positive[:, 7] += 3.0 * scale[7]
    weight, bias = fit_probe(positive[:60], negative[:60], scale)
    assert int(np.argmax(np.abs(weight * scale))) == 7
    held = np.concatenate([positive[60:], negative[60:]]) @ weight + bias
    right = (held > 0) == (np.arange(40) < 20)
    assert right.mean() > 0.8


def test_the_solution_is_stationary() -> None:
    generator = np.random.default_rng(1)
    positive = generator.normal(1.0, size=(30, 5)).astype(np.float32)
    negative = generator.normal(0.0, size=(30, 5)).astype(np.float32)
    weight, bias = fit_probe(positive, negative, np.ones(5))
    rows = np.concatenate([positive, negative]).astype(np.float64)
    labels = np.repeat([1.0, 0.0], 30)
    slope = 1 / (1 + np.exp(-(rows @ weight + bias))) - labels
    # The gradient of the penalised loss, by hand.
    np.testing.assert_allclose(rows.T @ slope + PENALTY * weight, 0.0, atol=0.02)
    assert slope.sum() == pytest.approx(0.0, abs=0.02)
