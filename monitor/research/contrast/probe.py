"""A logistic probe on pooled residuals. Legend: n = answers, d = model width."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from monitor.values.arrays import Doubles, Floats

PENALTY = 1.0
"""L2 on the standardised weights, for the mean loss times n: a hundred texts in hundreds of dimensions
are always separable, and without it the weights have no end."""


def fit_probe(positive: Floats, negative: Floats, scale: Doubles) -> tuple[Floats, float]:
    """Weight [d] and bias of ``P(positive) = sigmoid(x @ weight + bias)``.

    L2-regularised logistic regression by L-BFGS on residuals divided by ``scale`` [d] (their benign
    deviation), folded back into the weight. The bias is not penalised. Deterministic.
    """
    rows = np.concatenate([positive, negative]).astype(np.float64)
    centre = rows.mean(axis=0)
    design = (rows - centre) / scale
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        weight, bias = parameters[:-1], parameters[-1]
        logits = design @ weight + bias
        value = np.sum(np.logaddexp(0.0, logits) - labels * logits)
        slope = expit(logits) - labels
        gradient = np.append(design.T @ slope + PENALTY * weight, slope.sum())
        return float(value + 0.5 * PENALTY * weight @ weight), gradient

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B")
    weight = found.x[:-1] / scale
    return weight.astype(np.float32), float(found.x[-1] - centre @ weight)
