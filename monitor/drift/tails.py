"""Tails that the baseline itself sets: where its last 1 %, 0.5 % and 0.1 % begin, and do more lie there now?

A pack's own tail threshold is set on the pack's texts and promises nothing about a deployment's traffic.
The thresholds here are edges of the score bins, so what lies beyond one is a sum over a histogram: exact,
additive, and known of every window that was ever stored.

Array legend: b = `SCORE_BINS` bins, e = edges between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.special import betaincinv

from monitor.drift.dependence import design_effect
from monitor.drift.histogram import EDGES
from monitor.values.arrays import Counts
from monitor.values.drift import Bound, TailGrowth, TailLevel

LEVELS: Final = (0.01, 0.005, 0.001)
"""Shares of the baseline's traffic, the widest first."""


def beyond(histogram: Counts, sign: int) -> Counts:
    """How many scores lie at or beyond each edge [e], counted towards the persona.

    ``sign`` is the feature's; the edges are the same on both sides of 0.
    """
    return np.cumsum(histogram[::-sign])[-2::-1]


def fewest(share: float, confidence: float) -> int:
    """Independent prompts that a baseline needs to watch its last ``share``: (1 - share)^n ≤ error."""
    return math.ceil(math.log((1.0 - confidence) / 2) / math.log1p(-share))


def levels(
    histogram: Counts, parts: Sequence[Counts], sign: int, confidence: float, effect: float = 1.0
) -> tuple[TailLevel, ...]:
    """The tail of a baseline at each of `LEVELS`, without those that it is too small for.

    A threshold is the first edge of which Clopper and Pearson's upper bound says that at most ``share``
    lies beyond, at one-sided error (1 - confidence) / 2. This is the distribution-free upper tolerance
    limit (Wilks, "Determination of sample sizes for setting tolerance limits", Annals of Mathematical
    Statistics 12, 1941) on binned scores. It errs no more often for being the first of many edges: were the true
    rate beyond it above ``share``, then so would it be beyond every nearer edge, and the outermost of those had few
    prompts by the same chance alone. Rates are at most ``share``, and less where a bin is wide.

    Numbers of prompts are divided by a design effect: the larger of ``effect`` and what ``parts`` (the
    histograms of consecutive stretches of time) show beyond this level's sample quantile or a wider one's.
    """
    error = (1.0 - confidence) / 2
    n = int(histogram.sum())
    counts = beyond(histogram, sign)
    batches = np.stack([beyond(part, sign) for part in parts]) if len(parts) else None
    sizes = [int(part.sum()) for part in parts]
    found = []
    for share in LEVELS:
        last = np.flatnonzero((counts > 0) & (counts <= share * n))
        if batches is not None and last.size:
            rate = float(counts[last[0]]) / n
            tails = batches[:, last[0]].astype(np.float64).tolist()
            effect = max(effect, float(design_effect(sizes, tails, rate * (1.0 - rate))))
        few = counts[counts < n] / effect if n else counts
        upper = betaincinv(few + 1.0, n / effect - few, 1.0 - error)
        surely = np.flatnonzero(upper <= share)
        if surely.size:
            edge = int(surely[0]) + int((counts == n).sum())
            found.append(
                TailLevel(
                    share=share,
                    threshold=float(EDGES[edge]),
                    count=int(counts[edge]),
                    design_effect=effect,
                )
            )
    return tuple(found)


def tail_growth(
    histogram: Counts,
    tails: Sequence[TailLevel],
    *,
    baseline_n: int,
    sign: int,
    confidence: float,
) -> tuple[TailGrowth, ...]:
    """What a window's ``histogram`` says at each level, against the baseline at the same threshold.

    The levels share the error of (1 - confidence) / 2 at each end (Bonferroni), so a rule that looks at
    all of them errs as rarely as one that looks at one.
    """
    n = int(histogram.sum())
    counts = beyond(histogram, sign)
    return tuple(
        TailGrowth(
            share=level.share,
            threshold=level.threshold,
            rate=ours / n if n else 0.0,
            baseline_rate=level.count / baseline_n,
            ratio=rate_ratio(
                (ours, n),
                (level.count, baseline_n),
                error=(1.0 - confidence) / 2 / len(LEVELS),
                design_effect=level.design_effect,
            ),
        )
        for level in tails
        for ours in (int(counts[np.searchsorted(EDGES, level.threshold)]),)
    )


def rate_ratio(
    ours: tuple[int, int], theirs: tuple[int, int], *, error: float, design_effect: float
) -> Bound:
    """The ratio of two rates, each (count, prompts), with an exact bound at ``error`` on each end.

    Given the sum of both counts, ours is binomial with ``π = n ρ / (n ρ + m)``, ρ the ratio of the
    rates, n and m prompts (Przyborowski and Wilenski, Biometrika 31, 1940: exact for Poisson counts,
    conservative for binomial ones). Clopper and Pearson's interval for π (Biometrika 26, 1934), turned
    back into ρ, is the bound.

    The value adds half a count to both sides (Haldane-Anscombe) and so stays finite. Where theirs is 0
    ``high`` is infinite, where ours is 0 ``low`` is 0.
    """
    (count, n), (other, m) = ours, theirs
    if n == 0 or m == 0:
        return Bound(value=1.0, low=0.0, high=math.inf)
    exposure = m / n
    a, b = count / design_effect, other / design_effect
    low = float(betaincinv(a, b + 1.0, error)) if a else 0.0
    high = float(betaincinv(a + 1.0, b, 1.0 - error)) if b else 1.0
    return Bound(
        value=exposure * (count + 0.5) / (other + 0.5),
        low=exposure * low / (1.0 - low),
        high=exposure * high / (1.0 - high) if high < 1.0 else math.inf,
    )
