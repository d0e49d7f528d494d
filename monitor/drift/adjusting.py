"""Ridge regression of scores on what the prompt side reads, cross-fitted; frozen with a baseline.

A score moves with the topic of the question: the prompt alone explains more than half of some features'
variance. What is left once the expected score is taken off moves with the answer.

Array legend: n = prompts, k = features of the pack, c = covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.values.adjustment import Expectation, Sided
from monitor.values.arrays import Floats
from monitor.values.ridge import cross_fitted, ridge

LEAST_EXPLAINED: Final = 0.02
"""A feature of which the prompt explains a smaller share of the variance keeps its raw score."""
FEWEST_A_COVARIATE: Final = 20
"""Prompts that a fit needs for each covariate."""


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
        found = cross_fitted(x, y, folds[rows])
        if found.explained < LEAST_EXPLAINED:
            continue
        (intercept,), (weights,) = ridge(x, y, (found.penalty,))
        expectations[index] = Expectation(
            intercept=float(intercept),
            weights=tuple(weights.tolist()),
            penalty=found.penalty,
            explained=found.explained,
            n=int(rows.size),
        )
        adjusted[rows, index] = found.residuals
    return expectations, adjusted
