"""Tails that the baseline itself sets: where its last 1 %, 0.5 % and 0.1 % begin, and do more lie there now?

A pack's own tail threshold is set on the pack's texts and promises nothing about a deployment's traffic.
The thresholds here are edges of the score bins, so what lies beyond one is a sum over a histogram: exact,
additive, and known of every window that was ever stored.

Array legend: b = `SCORE_BINS` bins, e = edges between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def level_ratio(
    level: TailLevel,
    ours: tuple[int, int],
    baseline_n: int,
    confidence: float,
    repeated: float = 1.0,
) -> Bound:
    """The rate beyond ``level`` of ours, (count, prompts), over the baseline's there, see `rate_ratio`.

    The levels share the error of (1 - confidence) / 2 at each end (Bonferroni), so a rule that looks at
    all of them errs as rarely as one that looks at one.
    """
    return rate_ratio(
        ours,
        (level.count, baseline_n),
        error=(1.0 - confidence) / 2 / len(LEVELS),
        design_effect=level.design_effect,
        repeated=repeated,
    )


def tail_growth(
    histogram: Counts,
    tails: Sequence[TailLevel],
    *,
    baseline_n: int,
    sign: int,
    confidence: float,
) -> tuple[TailGrowth, ...]:
    """What a window's ``histogram`` says at each level, against the baseline at the same threshold."""
    n = int(histogram.sum())
    counts = beyond(histogram, sign)
    return tuple(
        TailGrowth(
            share=level.share,
            threshold=level.threshold,
            rate=ours / n if n else 0.0,
            baseline_rate=level.count / baseline_n,
            ratio=level_ratio(level, (ours, n), baseline_n, confidence),
        )
        for level in tails
        for ours in (int(counts[np.searchsorted(EDGES, level.threshold)]),)
    )


def repetition(counts: Iterable[int], n: float) -> float:
    """How much less ``n`` prompts beyond a threshold tell than n of different contents would; at least 1.

    ``counts`` are how many have each content: of all of them, or of some that were looked at.

        1 + (n - 1) λ        λ = Σ k (k - 1) / (K (K - 1))        K = Σ k

    Where contents come independently, each of them k times, the variance of a number of prompts is Σ k² in
    the place of Σ k; a weighted count is divided by the ratio of the two and bounded as a Poisson one (Fay and Feuer,
    "Confidence intervals for directly standardized rates", Statistics in Medicine 16, 1997). λ is the
    unbiased estimate of the probability that two prompts have one content (Simpson, "Measurement of
    diversity", Nature 163, 1949); of all of them the formula is Σ k² / Σ k.
    """
    sizes = [float(k) for k in counts]
    looked_at = sum(sizes)
    if looked_at < 2 or n < 2:
        return 1.0
    same = sum(k * (k - 1.0) for k in sizes) / (looked_at * (looked_at - 1.0))
    return 1.0 + (n - 1.0) * same


def rate_ratio(
    ours: tuple[int, int],
    theirs: tuple[int, int],
    *,
    error: float,
    design_effect: float,
    repeated: float = 1.0,
) -> Bound:
    """The ratio of two rates, each (count, prompts), with an exact bound at ``error`` on each end.

    Given the sum of both counts, ours is binomial with ``π = n ρ / (n ρ + m)``, ρ the ratio of the
    rates, n and m prompts (Przyborowski and Wilenski, Biometrika 31, 1940: exact for Poisson counts,
    conservative for binomial ones). Clopper and Pearson's interval for π (Biometrika 26, 1934), turned
    back into ρ, is the bound.

    The value adds half a count to both sides (Haldane-Anscombe) and so stays finite. Where theirs is 0
    ``high`` is infinite, where ours is 0 ``low`` is 0.

    Bounds count prompts divided by the design effect; ours by ``repeated`` where that is more, see `repetition`.
    """
    (count, n), (other, m) = ours, theirs
    if n == 0 or m == 0:
        return Bound(value=1.0, low=0.0, high=math.inf)
    own = max(design_effect, repeated)
    a, b = count / own, other / design_effect
    exposure = (m / design_effect) / (n / own)
    low = float(betaincinv(a, b + 1.0, error)) if a else 0.0
    high = float(betaincinv(a + 1.0, b, 1.0 - error)) if b else 1.0
    return Bound(
        value=m / n * (count + 0.5) / (other + 0.5),
        low=exposure * low / (1.0 - low),
        high=exposure * high / (1.0 - high) if high < 1.0 else math.inf,
    )
