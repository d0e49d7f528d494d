"""Scores given the prompt: what the prompt side alone lets a score be, and what is left of the score.

Array legend: n = prompts, k = features of the pack in its order, c = covariates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from monitor.values.arrays import Floats
from monitor.values.checks import require


class Sided(Protocol):
    """What is asked of a feature here; `Feature` and the store's are such."""

    @property
    def of_prompt(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What one feature's score is expected to be: ``intercept + weights @ covariates``."""

    intercept: float
    weights: tuple[float, ...]
    penalty: float
    """Of the ridge regression, on standardised covariates and per prompt."""
    explained: float
    """Share of the score's variance that the prompt explains in prompts that were held out."""
    n: int
    """Prompts that it was fitted on."""

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, (self.intercept, *self.weights))), "weights must be finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """The expectations that were frozen with a baseline."""

    baseline_id: str
    expectations: Mapping[int, Expectation]
    """By feature index; a feature without one is not adjusted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "expectations", MappingProxyType(dict(self.expectations)))

    def applied(self, scores: Floats, covariates: Floats) -> Floats:
        """``scores`` [n, k] minus what ``covariates`` [n, c] let expect; 0 is "as the prompt has it".

        NaN where a score or a covariate is absent, and for features that are not adjusted.
        """
        adjusted = np.full(scores.shape, np.nan, dtype=np.float32)
        given = covariates.astype(np.float64)
        for feature, one in self.expectations.items():
            expected = one.intercept + given @ np.array(one.weights)
            adjusted[:, feature] = scores[:, feature] - expected
        return adjusted


def covariates_of(
    scores: Floats, read: Sequence[Floats | None], features: Sequence[Sided]
) -> Floats:
    """The covariates [n, c] of prompts with these ``scores`` [n, k].

    ``read`` are those that the pack carries for this alone; a pack without any (None) has the scores of
    its prompt-side features stand in, and one without either has no covariates (c = 0).
    """
    own = [one for one in read if one is not None]
    if own and len(own) == len(read):
        return np.stack(own)
    return scores[:, [feature.of_prompt for feature in features]]
