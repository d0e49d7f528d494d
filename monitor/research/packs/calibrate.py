"""Calibration: the benign mean and deviation of a reading as functions of the tokens pooled.

Legend: n = benign readings, m = knots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from monitor.errors import BadInput
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.features import Calibration

UNCALIBRATED: Final = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
"""Scores equal readings: what a feature has before it was calibrated on benign text."""
LEAST_READINGS: Final = 30
READINGS_PER_KNOT: Final = 20
SMOOTHNESS: Final = 2.0
FLOOR: Final = 0.2
"""Least deviation at a knot, as a share of the overall one: a thin knot must not blow scores up."""


def fit_calibration(readings: Floats, tokens: Counts) -> Calibration:
    """Fit `Calibration` to benign ``readings`` [n] pooled over ``tokens`` [n].

    Mean: least squares in the hat basis of knots at powers of two (linear in log2(tokens) between
    them), with a penalty on second differences (a P-spline of degree 1; Eilers & Marx 1996).
    Deviation: the squared residuals in the same basis, weighted by 1/variance² over a few rounds,
    which is the Gaussian likelihood's scoring step. Raises `BadInput` with fewer than
    `LEAST_READINGS` finite readings, or when they do not vary.
    """
    present = np.isfinite(readings) & (tokens >= 1)
    values, counts = readings[present].astype(np.float64), tokens[present]
    if values.size < LEAST_READINGS:
        raise BadInput(f"calibration needs {LEAST_READINGS} benign readings, found {values.size}")
    scale = float(values.std())
    if not scale > 0.0:
        raise BadInput("calibration: the benign readings are all the same")
    knots = _knots(counts)
    basis = _hat_basis(np.log2(counts.astype(np.float64)), np.log2(knots))
    means = _smoothed(basis, values, np.ones_like(values))
    residuals: Doubles = np.square(values - basis @ means)
    variances: Doubles = np.full(knots.size, float(residuals.mean()))
    for _ in range(5):
        weights: Doubles = 1.0 / np.square(basis @ variances)
        level = _smoothed(basis, residuals, weights / weights.mean())
        variances = np.maximum(level, FLOOR**2 * float(residuals.mean()))
    # The penalty and the floor bias the level a little; benign scores shall have deviation one.
    variances = variances * float(np.mean(residuals / (basis @ variances)))
    return Calibration(
        tokens=tuple(knots.tolist()),
        means=tuple(means.tolist()),
        deviations=tuple(np.sqrt(variances).tolist()),
    )


def tail_threshold(scores: Floats, rate: float, kinds: Sequence[slice] = ()) -> float:
    """What a share ``rate`` of benign ``scores`` exceeds, they and each of ``kinds`` among them that has
    `1 / rate` scores: a kind of text that is rare here may be common elsewhere. Scores are turned towards the persona.
    """

    def threshold(some: Floats) -> float:
        return float(np.quantile(some.astype(np.float64), 1.0 - rate))

    groups = [group[np.isfinite(group)] for group in (scores[kind] for kind in kinds)]
    able = [group for group in groups if len(group) * rate >= 1.0]
    return max(map(threshold, [scores[np.isfinite(scores)], *able]))


def _knots(tokens: Counts) -> Doubles:
    """Powers of two within the data, each with `READINGS_PER_KNOT` readings in its neighbourhood."""
    logs = np.log2(tokens.astype(np.float64))
    candidates = np.arange(np.floor(logs.min()), np.ceil(logs.max()) + 1)
    near = [int(np.sum(np.abs(logs - candidate) <= 0.5)) for candidate in candidates]
    chosen = [c for c, n in zip(candidates, near, strict=True) if n >= READINGS_PER_KNOT]
    return np.exp2(np.array(chosen or [np.round(np.median(logs))], dtype=np.float64))


def _hat_basis(at: Doubles, knots: Doubles) -> Doubles:
    """Linear interpolation weights [n, m] of positions ``at`` between ``knots``, held outside."""
    return np.stack([np.interp(at, knots, row) for row in np.eye(knots.size)], axis=1)


def _smoothed(basis: Doubles, values: Doubles, weights: Doubles) -> Doubles:
    m = basis.shape[1]
    bend = np.diff(np.eye(m), n=2, axis=0) if m >= 3 else np.zeros((0, m))
    weighted = basis * weights[:, None]
    penalised = weighted.T @ basis + SMOOTHNESS * bend.T @ bend + 1e-9 * np.eye(m)
    return np.linalg.solve(penalised, weighted.T @ values).astype(np.float64)
