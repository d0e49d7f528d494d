"""Ridge regression of scores on what the prompt side reads, cross-fitted; frozen with a baseline.

A score moves with the topic of the question: the prompt alone explains more than half of some features'
variance. What is left once the expected score is taken off moves with the answer.

Array legend: n = prompts, k = features of the pack, c = covariates, p = penalties.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.values.adjustment import Expectation, Sided
from monitor.values.arrays import Doubles, Floats

FOLDS: Final = 5
PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Per prompt, on standardised covariates: 1 halves a coefficient."""
LEAST_EXPLAINED: Final = 0.02
"""A feature of which the prompt explains a smaller share of the variance keeps its raw score."""
FEWEST_A_COVARIATE: Final = 20
"""Prompts that a fit needs for each covariate."""


def fold_of(conversation: bytes) -> int:
    """The fold of a prompt, by the keyed hash of its conversation: all of one are held out together."""
    return zlib.crc32(conversation) % FOLDS


def fit(
    scores: Floats, covariates: Floats, folds: NDArray[np.intp], features: Sequence[Sided]
) -> tuple[dict[int, Expectation], Floats]:
    """Expectations by feature index, and the adjusted scores [n, k] of the prompts themselves.

    ``scores`` [n, k], ``covariates`` [n, c], ``folds`` [n] from 0. Each prompt's adjusted score comes from
    a fit on the other folds, so that their distribution is that of prompts to come and not of
    residuals; the penalty is the one with the smallest error over all held-out folds. Features of
    the prompt side, and those of which the prompt explains too little, have none (NaN).
    """
    adjusted = np.full(scores.shape, np.nan, dtype=np.float32)
    expectations: dict[int, Expectation] = {}
    known = np.isfinite(covariates).all(axis=1)
    for index, feature in enumerate(features):
        rows = np.flatnonzero(known & np.isfinite(scores[:, index]))
        if feature.of_prompt or rows.size < FEWEST_A_COVARIATE * (covariates.shape[1] + 1):
            continue
        y, x = scores[rows, index].astype(np.float64), covariates[rows].astype(np.float64)
        held_out = np.empty((len(PENALTIES), rows.size))
        for fold in range(FOLDS):
            out = folds[rows] == fold
            if out.all() or not out.any():
                held_out[:, out] = y[out] - y.mean()
                continue
            intercepts, weights = _ridge(x[~out], y[~out])
            held_out[:, out] = y[out] - (intercepts[:, None] + weights @ x[out].T)
        errors = (held_out**2).mean(axis=1)
        best = int(errors.argmin())
        explained = 1.0 - float(errors[best]) / float(y.var()) if y.var() > 0 else 0.0
        if explained < LEAST_EXPLAINED:
            continue
        intercepts, weights = _ridge(x, y)
        expectations[index] = Expectation(
            intercept=float(intercepts[best]),
            weights=tuple(weights[best].tolist()),
            penalty=PENALTIES[best],
            explained=explained,
            n=int(rows.size),
        )
        adjusted[rows, index] = held_out[best]
    return expectations, adjusted


def _ridge(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Intercepts [p] and weights [p, c] for every penalty, of y [n] on x [n, c]."""
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - centre) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(y))
    along = vectors.T @ (z.T @ (y - y.mean()) / len(y))
    shrunk = along / (values + np.array(PENALTIES)[:, None])
    weights = shrunk @ vectors.T / scale
    return y.mean() - weights @ centre, weights
