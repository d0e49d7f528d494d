"""Read-outs that are learned: from labelled mean residuals to weights over one or several sites.

Three schemes, from the simplest on: the difference of means, linear discriminant analysis with a
covariance shrunk as Ledoit and Wolf do, and L2-regularised logistic regression. Each row has a weight,
so that no kind of text dominates for being many.

Legend: n = answers, s = sites, d = model width, D = s · d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit

from monitor.errors import BadInput
from monitor.values.arrays import Counts, Doubles, Floats

Scheme = Literal["difference", "lda", "logistic"]
LEDOIT_WOLF: Final = 0.0
"""In place of a strength: LDA's shrinkage by the formula."""
LEVELLING: Final = 0.3
"""Shrinkage of `away_from`: a turn needs no more than the rough way."""
STRENGTHS: Final[Mapping[Scheme, tuple[float, ...]]] = {
    "difference": (0.0,),
    "lda": (LEDOIT_WOLF, 0.3),
    "logistic": (10.0, 100.0, 1000.0),
}
"""What cross-validation chooses from: LDA's shrinkage (0 to 1), the logistic penalty; see `fit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Mean residuals ``x`` [n, s, d] with ``positive`` [n], the ``kind`` [n] of each text, and its ``question``.

    ``question`` [n] numbers what must not be torn apart: the answers to one question. Twins (``twin``
    [n]) are sound answers to the very questions that positives answer.
    """

    x: Floats
    positive: NDArray[np.bool_]
    kind: NDArray[np.str_]
    question: Counts
    twin: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positive)

    def part(self, which: NDArray[np.bool_] | Counts) -> Rows:
        return replace(
            self,
            x=self.x[which],
            positive=self.positive[which],
            kind=self.kind[which],
            question=self.question[which],
            twin=self.twin[which],
        )

    def at(self, sites: Sequence[int]) -> Doubles:
        """Residuals of the sites with these indices, side by side [n, D]."""
        return self.x[:, list(sites)].reshape(len(self), -1).astype(np.float64)


def balanced(rows: Rows) -> Doubles:
    """Weights [n] that sum to 1: positives and negatives half each.

    On either side the kinds have equal parts; of the negatives the twins, who differ from positives in
    nothing but substance, have one half and all other kinds share the other.
    """
    weights = np.zeros(len(rows))
    for side in (rows.positive, ~rows.positive & rows.twin, ~rows.positive & ~rows.twin):
        kinds, where, counts = np.unique(rows.kind[side], return_inverse=True, return_counts=True)
        weights[side] = 1.0 / (max(len(kinds), 1) * counts[where])
    parts = [(rows.positive, 0.5)]
    negative = ~rows.positive
    halves = [side for side in (negative & rows.twin, negative & ~rows.twin) if side.any()]
    parts += [(side, 0.5 / len(halves)) for side in halves]
    if not rows.positive.any() or not halves:
        raise BadInput("a read-out needs texts of both sides")
    for side, share in parts:
        weights[side] *= share / weights[side].sum()
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """``weight`` [s, d] and ``bias``: positive answers lie above zero."""

    weight: Floats
    bias: float

    def of(self, x: Floats) -> Doubles:
        """Readings [n] of residuals [n, s, d]."""
        found: Doubles = np.einsum("nsd,sd->n", x, self.weight, dtype=np.float64) + self.bias
        return found


def fit(
    scheme: Scheme,
    rows: Rows,
    sites: Sequence[int],
    scale: Doubles,
    strength: float,
    nuisance: Doubles | None = None,
) -> Readout:
    """A read-out of ``rows`` at the sites with indices ``sites``, by ``scheme``.

    Residuals are divided by ``scale`` [s, d] (their benign deviation) first, and the weights folded
    back. ``strength`` is LDA's shrinkage (`LEDOIT_WOLF`: by the formula) or the logistic penalty.
    ``nuisance`` [m, d] are orthonormal directions that a difference of means at one site leaves out.
    """
    weights = balanced(rows)
    at = rows.at(sites)
    sides = [weights * (rows.positive == side) for side in (True, False)]
    means = [side @ at / side.sum() for side in sides]
    spread = scale[list(sites)].reshape(-1)
    if scheme == "difference":
        direction = means[0] - means[1]
        if nuisance is not None:
            direction -= nuisance.T @ (nuisance @ direction)
        bias = -float(direction @ (means[0] + means[1])) / 2
    elif scheme == "lda":
        centred = (at - np.where(rows.positive[:, None], *means)) / spread
        direction = _discriminant(centred, weights, (means[0] - means[1]) / spread, strength)
        direction = direction / spread
        bias = -float(direction @ (means[0] + means[1])) / 2
    else:
        centre = weights @ at
        direction, bias = _logistic((at - centre) / spread, rows.positive, weights, strength)
        direction = direction / spread
        bias -= float(centre @ direction)
    length = float(np.linalg.norm(direction))
    if not length > 0.0:
        raise BadInput("contrast: a persona's answers are the same as the good ones")
    unit = (direction / length).astype(np.float32).reshape(len(sites), -1)
    return Readout(weight=unit, bias=bias / length)


def away_from(
    rows: Rows, careful: NDArray[np.bool_], sites: Sequence[int], scale: Doubles
) -> Readout:
    """The discriminant by which other benign answers lie above the ``careful`` ones [n], each kind alike."""
    at, spread = rows.at(sites), scale[list(sites)].reshape(-1)
    weights = balanced(rows) * ~rows.positive
    others = ~rows.positive & ~careful
    means = [
        np.mean(
            [at[side & (rows.kind == k)].mean(axis=0) for k in np.unique(rows.kind[side])], axis=0
        )
        for side in (others, careful)
    ]
    inside = ~rows.positive
    centred = (at - np.where(careful[:, None], means[1], means[0]))[inside] / spread
    share = weights[inside] / weights[inside].sum()
    direction = _discriminant(centred, share, (means[0] - means[1]) / spread, LEVELLING) / spread
    length = float(np.linalg.norm(direction))
    unit = (direction / length).astype(np.float32).reshape(len(sites), -1)
    return Readout(weight=unit, bias=-float(direction @ (means[0] + means[1])) / (2 * length))


def _discriminant(
    centred: Doubles, weights: Doubles, difference: Doubles, shrinkage: float
) -> Doubles:
    """``Σ⁻¹ difference`` [D] with ``Σ = (1 - λ) S + λ μ I``, S the covariance of ``centred`` [n, D].

    λ is ``shrinkage``, or by Ledoit & Wolf (J. Multivariate Analysis 88, 2004, section 3.2): with rows
    of weight w_i, ``λ = min(Σ w_i² ‖x_i x_iᵀ - S‖², ‖S - μI‖²) / ‖S - μI‖²`` and ``μ = tr S / D``.
    Solved in the space of the rows (Woodbury), where n < D.
    """
    rows = centred * np.sqrt(weights)[:, None]
    gram = rows @ rows.T
    size = rows.shape[1]
    mu = float(np.trace(gram)) / size
    if shrinkage == LEDOIT_WOLF:
        squared = float(np.square(gram).sum())
        apart = squared - size * mu**2
        # ‖x xᵀ - S‖² = ‖x‖⁴ - 2 xᵀSx + ‖S‖², and w ‖x‖² stands on the diagonal of the Gram matrix.
        fourth = np.square(np.diag(gram)).sum()
        inner = np.square(gram).sum(axis=1)  # w_i x_iᵀ S x_i
        noise = float(fourth - 2 * (weights * inner).sum() + np.square(weights).sum() * squared)
        shrinkage = min(noise, apart) / apart if apart > 0 else 1.0
    if shrinkage >= 1.0:
        return difference
    ridge = shrinkage * mu / (1.0 - shrinkage)
    if not ridge > 0.0:
        ridge = 1e-9 * max(mu, 1e-12)
    solved = cho_solve(cho_factor(gram + ridge * np.eye(len(gram))), rows @ difference)
    found: Doubles = (difference - rows.T @ solved) / ridge
    return found


def _logistic(
    design: Doubles, positive: NDArray[np.bool_], weights: Doubles, penalty: float
) -> tuple[Doubles, float]:
    """Weight [D] and bias of least ``n Σ w_i log-loss_i + ½ penalty ‖weight‖²``; the bias is free."""
    labels, counts = positive.astype(np.float64), weights * len(weights)

    def loss(parameters: Doubles) -> tuple[float, Doubles]:
        weight, bias = parameters[:-1], parameters[-1]
        logits = design @ weight + bias
        value = np.sum(counts * (np.logaddexp(0.0, logits) - labels * logits))
        slope = counts * (expit(logits) - labels)
        gradient = np.append(design.T @ slope + penalty * weight, slope.sum())
        return float(value + 0.5 * penalty * weight @ weight), gradient

    start: Any = np.zeros(design.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return found.x[:-1], float(found.x[-1])
