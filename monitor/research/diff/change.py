"""Did a reading change between two models on the same prompts? Paired statistics.

Legend: n = prompts (one row for each different question), k = features.
Differences are tuned minus base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import false_discovery_control, wilcoxon

from monitor.research.statistics import mean_interval
from monitor.values.arrays import Doubles, Floats

TEST: Final = (
    "one-sided Wilcoxon signed-rank test of the paired differences on the testing half, in the "
    "direction seen on the choosing half; q by Benjamini and Hochberg (1995) over all candidates"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One feature's change: ``mean`` difference with its interval, in the feature's own units.

    ``standardised`` is the mean difference over `spread`. ``p`` and ``q`` are those of `TEST`.
    """

    base: float
    tuned: float
    mean: float
    low: float
    high: float
    standardised: float
    p: float
    q: float


def spread(base: Floats, tuned: Floats) -> Doubles:
    """Deviation [k] over prompts [n, k], pooled over both models: √((s²_base + s²_tuned) / 2)."""
    both = [side.astype(np.float64).var(axis=0, ddof=1) for side in (base, tuned)]
    found: Doubles = np.sqrt((both[0] + both[1]) / 2.0)
    return found


def standardised(base: Floats, tuned: Floats) -> Doubles:
    """Mean difference [k] over `spread`; 0 where nothing varies."""
    means = mean_difference(base, tuned)
    width = spread(base, tuned)
    return np.divide(means, width, out=np.zeros_like(means), where=width > 0.0)


def mean_difference(base: Floats, tuned: Floats) -> Doubles:
    """Mean of tuned - base [k] over prompts [n, k]."""
    found: Doubles = tuned.mean(axis=0, dtype=np.float64) - base.mean(axis=0, dtype=np.float64)
    return found


def changes(
    base: Floats, tuned: Floats, signs: Doubles, generator: np.random.Generator
) -> tuple[Change, ...]:
    """The change of each feature [n, k] on prompts that had no part in choosing it.

    ``signs`` [k] is the direction that each was seen to move in elsewhere. See `TEST`.
    """
    differences = tuned.astype(np.float64) - base.astype(np.float64)
    low, high = mean_interval(differences, generator)
    p = [signed_rank(sign * column) for sign, column in zip(signs, differences.T, strict=True)]
    q = false_discovery_control(p, method="bh")
    effect = standardised(base, tuned)
    return tuple(
        Change(
            base=float(base[:, i].mean(dtype=np.float64)),
            tuned=float(tuned[:, i].mean(dtype=np.float64)),
            mean=float(differences[:, i].mean()),
            low=float(low[i]),
            high=float(high[i]),
            standardised=float(effect[i]),
            p=float(p[i]),
            q=float(q[i]),
        )
        for i in range(base.shape[1])
    )


def signed_rank(differences: Doubles) -> float:
    """p of the one-sided signed-rank test that ``differences`` [n] lie above 0; 1 if all are 0.

    Differences of 0 are left out (Wilcoxon 1945). Exact for up to 50 without ties.
    """
    present = differences[differences != 0.0]
    if present.size == 0:
        return 1.0
    return float(wilcoxon(present, alternative="greater").pvalue)


def distinct(order: Sequence[int], directions: Floats, count: int, limit: float) -> list[int]:
    """The first ``count`` of ``order`` whose unit ``directions`` [k, d] stand apart.

    One with |cosine| above ``limit`` to an earlier one says the same again and is passed over.
    """
    kept: list[int] = []
    for index in order:
        cosines = np.abs(directions[kept] @ directions[index])
        if not (cosines > limit).any():
            kept.append(index)
        if len(kept) == count:
            break
    return kept
