"""How much less n prompts tell than n independent ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

FEWEST_BATCHES: Final = 12
"""Fewer batches say too little about dependence."""
COARSENINGS: Final = (1, 2, 4, 8)


def design_effect(counts: Sequence[int], totals: Sequence[float], variance: float) -> float:
    """How much more the means of consecutive batches scatter than independent prompts would make them.

        deff = Σ_j n_j (m_j - m)² / ((J - 1) s²)

    over J batches with n_j prompts and mean m_j (the ratio of mean squares of a one-way analysis of
    variance; Kish 1965), s² the variance of single prompts. Computed for the batches given and for
    2, 4 and 8 of them joined, as long as twelve remain, and the largest counts: dependence that
    outlasts a batch (long conversations, hours of the day) shows in the longer ones only, as in the
    method of batch means (Flegal and Jones, Annals of Statistics 38, 2010). At least 1; 1 when there
    are too few batches to tell.
    """
    n, total = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if variance <= 0.0:
        return 1.0
    largest = 1.0
    for joined in COARSENINGS:
        size = n.size // joined
        if size < FEWEST_BATCHES:
            break
        some = n[: size * joined].reshape(size, joined).sum(axis=1)
        sums = total[: size * joined].reshape(size, joined).sum(axis=1)
        centre = sums.sum() / some.sum()
        between = float((some * (sums / some - centre) ** 2).sum()) / (size - 1)
        largest = max(largest, between / variance)
    return largest
