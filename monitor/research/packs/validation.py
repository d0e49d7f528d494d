"""Does a feature separate a persona from good answers that it has not seen? Figures for the report.

Legend: n, m = prompts, d = model width, r = random directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.features import Directed

BOOTSTRAP_ROUNDS = 1_000


def auc(positives: Floats | Doubles, negatives: Floats | Doubles) -> float:
    """P(positive > negative) + ½ P(equal), over all pairs: the Mann-Whitney U over n·m."""
    n, m = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def auc_interval(
    positives: Floats,
    negatives: Floats,
    generator: np.random.Generator,
    *,
    paired: bool,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `auc`; ``paired``: questions are drawn, not answers."""
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        ours = generator.integers(len(positives), size=len(positives))
        theirs = ours if paired else generator.integers(len(negatives), size=len(negatives))
        values.append(auc(positives[ours], negatives[theirs]))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def length_matched(tokens: Counts, pool_tokens: Counts) -> Counts:
    """For each of ``tokens`` [n] the index of a distinct member of the pool [m] nearest in length.

    As `nearest`, by the logarithms.
    """
    return nearest(np.log(np.maximum(tokens, 1)), np.log(np.maximum(pool_tokens, 1)))


def nearest(wanted: Doubles, pool: Doubles) -> Counts:
    """For each of ``wanted`` [n] the index of a distinct member of ``pool`` [m] nearest in value.

    Greedy in rising order; n ≤ m.
    """
    free = list(range(len(pool)))
    chosen = np.zeros(len(wanted), dtype=np.int64)
    for index in np.argsort(wanted, kind="stable"):
        best = min(free, key=lambda candidate: (abs(pool[candidate] - wanted[index]), candidate))
        free.remove(best)
        chosen[index] = best
    return chosen


def random_direction_aucs(
    train: tuple[Floats, Floats],
    held_out: tuple[Floats, Floats],
    generator: np.random.Generator,
    count: int = 100,
) -> Doubles:
    """Held-out AUCs [r] of random directions on residuals (persona [n, d], good [n, d]).

    Each direction gets the same favour as the real one: its sign is chosen on the training pairs.
    """
    width = train[0].shape[1]
    directions = generator.standard_normal((count, width))
    signs = np.sign(directions @ (train[0].mean(axis=0) - train[1].mean(axis=0)))
    directions *= np.where(signs == 0, 1.0, signs)[:, None]
    positives, negatives = (residuals @ directions.T for residuals in held_out)
    return np.array([auc(positives[:, i], negatives[:, i]) for i in range(count)])


def benign_figures(scores: Floats, tokens: Counts, feature: Directed) -> dict[str, Any]:
    """What benign text not used for calibration scores: level, spread, length dependence, tail rate."""
    present = np.isfinite(scores)
    values, counts = scores[present].astype(np.float64), tokens[present]
    logs = np.log2(np.maximum(counts, 1))
    return {
        "n": int(values.size),
        "mean": rounded(values.mean()),
        "deviation": rounded(values.std(ddof=1)),
        "correlation_with_log_length": rounded(np.corrcoef(values, logs)[0, 1]),
        "tail_rate": rounded(np.mean(feature.in_tail(values))),
    }


def rounded(value: float | np.floating[Any]) -> float:
    """Four digits: a report is read by people."""
    return round(float(value), 4)
