"""Ridge regression, cross-fitted: how much of one reading others explain in rows that were held out.

Array legend: n = rows, c = covariates, p = penalties.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.values.arrays import Doubles

FOLDS: Final = 5
PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Per row, on standardised covariates: 1 halves a coefficient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossFit:
    """``residuals`` [n]: of each row, by the fit on the other folds with the best ``penalty``.

    ``explained`` is the share of the variance that is gone from them: below 0 where the covariates say
    nothing.
    """

    residuals: Doubles
    penalty: float
    explained: float


def fold_of(group: bytes) -> int:
    """The fold of a row, by what names its group: all of one group are held out together."""
    return zlib.crc32(group) % FOLDS


def cross_fitted(x: Doubles, y: Doubles, folds: NDArray[np.intp]) -> CrossFit:
    """``y`` [n] on ``x`` [n, c] by ``folds`` [n] from 0; the penalty is the one of the smallest held-out error."""
    held_out = np.empty((len(PENALTIES), len(y)))
    for fold in range(FOLDS):
        out = folds == fold
        if out.all() or not out.any():
            held_out[:, out] = y[out] - y.mean()
            continue
        intercepts, weights = ridge(x[~out], y[~out], PENALTIES)
        held_out[:, out] = y[out] - (intercepts[:, None] + weights @ x[out].T)
    errors = (held_out**2).mean(axis=1)
    best = int(errors.argmin())
    return CrossFit(
        residuals=held_out[best],
        penalty=PENALTIES[best],
        explained=1.0 - float(errors[best]) / float(y.var()) if y.var() > 0 else 0.0,
    )


def ridge(x: Doubles, y: Doubles, penalties: tuple[float, ...]) -> tuple[Doubles, Doubles]:
    """Intercepts [p] and weights [p, c] for every penalty, of y [n] on x [n, c]."""
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - centre) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(y))
    along = vectors.T @ (z.T @ (y - y.mean()) / len(y))
    shrunk = along / (values + np.array(penalties)[:, None])
    weights = shrunk @ vectors.T / scale
    return y.mean() - weights @ centre, weights
