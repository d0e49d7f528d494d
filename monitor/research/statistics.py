"""The statistics of research: separation, intervals, matching. Each is spelled here and nowhere else.

Intervals are 95 % unless something else is said. A bootstrap draws what is independent (questions, not
their answers) and cannot see past its sample; where that matters an exact interval stands beside it.

Legend: n, m = texts, q = questions, k = columns, d = model width, r = random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy.stats import rankdata

from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Bound
from monitor.values.shares import rate_limit

ROUNDS: Final = 1_000
"""Of a bootstrap."""
DIRECTIONS: Final = 100
"""Random ones beside a real one, where reading them costs nothing."""
TAILS: Final = (0.025, 0.975)


def auc(positives: Floats | Doubles, negatives: Floats | Doubles) -> float:
    """P(positive > negative) + ½ P(equal), over all pairs: the Mann-Whitney U over n·m; NaN without one."""
    n, m = len(positives), len(negatives)
    if not n * m:
        return float("nan")
    ranks = rankdata(np.concatenate([positives, negatives]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def bootstrap(
    statistic: Callable[[Counts], float | Doubles], n: int, generator: np.random.Generator
) -> tuple[Any, Any]:
    """Percentile bootstrap interval (Efron 1979) of ``statistic``, which is given n drawn row numbers.

    Draws for which it is NaN are left out. The shape of each end is that of the statistic.
    """
    drawn: Any = [statistic(rows) for rows in generator.integers(n, size=(ROUNDS, n))]
    low, high = np.nanquantile(drawn, TAILS, axis=0)
    return low, high


def mean_interval(
    values: Floats | Doubles, generator: np.random.Generator
) -> tuple[Doubles, Doubles]:
    """Bootstrap interval [k], [k] of the mean of ``values`` [n, k]; rows are drawn."""
    return bootstrap(lambda rows: values[rows].mean(axis=0), len(values), generator)


def mean_bound(values: Doubles, generator: np.random.Generator) -> Bound:
    """The mean of ``values`` [n] with its bootstrap interval."""
    low, high = mean_interval(values, generator)
    return Bound(value=float(values.mean()), low=float(low), high=float(high))


def auc_bound(positives: Floats, negatives: Floats, generator: np.random.Generator) -> Bound:
    """AUC of ``positives`` over ``negatives`` [p, q], its interval by drawing questions.

    Column j of both belongs to question j. Where all pairs are in order the bootstrap says [1, 1]. So
    the lower end is never above what q questions without an error can show (`rate_limit`). Without a
    question all is NaN.
    """
    q = positives.shape[1]
    if q == 0:
        return Bound(value=np.nan, low=np.nan, high=np.nan)

    def of(rows: Counts) -> float:
        return auc(positives[:, rows].ravel(), negatives[:, rows].ravel())

    low, high = bootstrap(of, q, generator)
    most = rate_limit(q, q, TAILS[0], upper=False)
    return Bound(value=of(np.arange(q)), low=min(float(low), most), high=float(high))


def pool_auc_bound(positives: Floats, pool: Floats, generator: np.random.Generator) -> Bound:
    """AUC of ``positives`` [p, q] over a ``pool`` [m] of other texts, its interval by drawing both.

    Column j of the positives belongs to question j and is drawn whole. Neither end is beyond what the
    smaller number of the two can show (`rate_limit`): all in order, the bootstrap would know it all.
    Without a positive or a pool all is NaN.
    """
    q, m = positives.shape[1], len(pool)
    if not q * m:
        return Bound(value=np.nan, low=np.nan, high=np.nan)
    others = generator.integers(m, size=(ROUNDS, m))
    turn = iter(others)
    low, high = bootstrap(
        lambda rows: auc(positives[:, rows].ravel(), pool[next(turn)]), q, generator
    )
    n = min(q, m)
    return Bound(
        value=auc(positives.ravel(), pool),
        low=min(float(low), rate_limit(n, n, TAILS[0], upper=False)),
        high=max(float(high), rate_limit(0, n, TAILS[0], upper=True)),
    )


def rate_bound(count: int, n: int) -> Bound:
    """The rate of ``count`` of n with its exact interval."""
    low, high = (rate_limit(count, n, TAILS[0], upper=upper) for upper in (False, True))
    return Bound(value=count / n, low=low, high=high)


def correlation_bound(value: float, n: int) -> Bound:
    """A correlation over n > 3 texts with its interval by Fisher's z; NaN stays NaN."""
    z, reach = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)), 1.96 / np.sqrt(max(n - 3, 1))
    return Bound(value=value, low=float(np.tanh(z - reach)), high=float(np.tanh(z + reach)))


def correlations(scores: Floats | Doubles) -> Doubles:
    """Pearson correlations [k, k] over the texts [n] that every column has; 0 where one is constant."""
    present = scores[np.isfinite(scores).all(axis=1)].astype(np.float64)
    centred = present - present.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    found: Doubles = unit.T @ unit
    np.fill_diagonal(found, 1.0)
    return found


def present_mean(values: Floats | Doubles) -> float:
    """The mean of what is finite; NaN where nothing is."""
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")


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


def random_directions(count: int, width: int, generator: np.random.Generator) -> Floats:
    """Directions [r, d] of length one, uniform on the sphere."""
    drawn = generator.standard_normal((count, width))
    units: Floats = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return units


def random_composites(
    count: int, lengths: Sequence[float], width: int, generator: np.random.Generator
) -> Floats:
    """Directions [r, sites · d], uniform on the sphere of each site's length: `random_directions` at one
    site of length one."""
    parts = [np.float32(length) * random_directions(count, width, generator) for length in lengths]
    return np.concatenate(parts, axis=1)


def random_direction_aucs(
    train: tuple[Floats, Floats],
    held_out: tuple[Floats, Floats],
    generator: np.random.Generator,
) -> Doubles:
    """Held-out AUCs [r] of `DIRECTIONS` random directions on residuals (persona [n, d], good [n, d]).

    Each direction gets the same favour as the real one: its sign is chosen on the training pairs.
    """
    width = train[0].shape[1]
    directions = generator.standard_normal((DIRECTIONS, width))
    signs = np.sign(directions @ (train[0].mean(axis=0) - train[1].mean(axis=0)))
    directions *= np.where(signs == 0, 1.0, signs)[:, None]
    positives, negatives = (residuals @ directions.T for residuals in held_out)
    return np.array([auc(positives[:, i], negatives[:, i]) for i in range(DIRECTIONS)])
