"""Is a paired shift below its margin? Bounds, a decision with stated error rates, prompts needed.

Every prompt is read twice, before and after a change; the shift of a feature is the mean difference,
signed so that positive is harmful. Prompts of one cluster (a conversation) hang together, clusters are
independent. Three answers, from a lower and an upper bound L ≤ U of the shift δ and its margin Δ:

    fail          L > Δ for at least one comparison
    pass          U < Δ for every comparison
    inconclusive  neither: more prompts are needed

- P(fail), while every δ ≤ Δ, is at most α: each L errs at α / m, m the number of comparisons
  (Bonferroni; a union of events).
- P(pass), while some δ ≥ Δ, is at most α: each U errs at α. No share of α is lost to the number of
  comparisons, because all must pass (intersection-union test; Berger, Technometrics 24, 1982).

Bounds of tail rates are exact. Those of means are approximate, as they must be without a largest score: a
change in a share p of the prompts is in none of n with probability (1 - p)^n. The tail comparison guards
that for p at or above its margin; so a pass should rest on both.

Legend: n = prompts, c = clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.special import bdtrik, ndtri, stdtrit

from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Bound
from monitor.values.shares import rate_limit

Verdict = Literal["pass", "fail", "inconclusive"]
POWER: Final = 0.8
MOST_PROMPTS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """One-sided error of a single lower bound (against false fail) and upper bound (false pass)."""

    low: float
    high: float

    @classmethod
    def of(cls, alpha: float, comparisons: int) -> Errors:
        return cls(low=alpha / comparisons, high=alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One shift against its margin. ``needed``: prompts for a decision with `POWER`, None when the
    shift stands too near the margin for any sensible number, or when it is decided."""

    bound: Bound
    margin: float
    verdict: Verdict
    needed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Mean, standard deviation of the clusters' influence on it, and clusters that count (below)."""

    mean: float
    deviation: float
    skewness: float
    clusters: float
    n: int


def sampled(differences: Doubles, clusters: Counts) -> Sample:
    """Summary of ``differences`` [n] in ``clusters`` [n] (any integers as names).

    The mean over prompts is a ratio of cluster sums: the influence of cluster j with n_j prompts is
    ``(S_j - n_j mean) c / n`` (linearisation; Cochran, "Sampling Techniques", 1977, ch. 6). Clusters
    count as ``n² / Σ n_j²``, fewer than there are when sizes differ (after Kish, 1965).
    """
    n = len(differences)
    if not n:
        return Sample(mean=0.0, deviation=0.0, skewness=0.0, clusters=0.0, n=0)
    _, cluster_of, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    mean = float(differences.mean())
    c = len(sizes)
    influence = np.bincount(cluster_of, differences - mean, c) * c / n
    spread = float(np.sqrt(np.mean(influence**2)))
    return Sample(
        mean=mean,
        deviation=spread * math.sqrt(c / (c - 1)) if c > 1 else 0.0,
        skewness=float(np.mean(influence**3)) / spread**3 if spread > 0.0 else 0.0,
        clusters=float(n**2 / np.sum(sizes.astype(np.float64) ** 2)),
        n=n,
    )


def mean_bound(sample: Sample, errors: Errors) -> Bound:
    """The mean with its two bounds; infinite below two clusters.

    The wider of two, side by side: Student's t, which a skewed sample misleads (one answer in twenty
    changed makes U too low), and Hall's transformation of t (Journal of the Royal Statistical
    Society B 54, 1992), which removes the skewness but errs a little where both tails are heavy:

        T = t + g t² / 3√c + g² t³ / 27c + g / 6√c,    g the sample's skewness
    """
    if sample.clusters < 2.0:
        return Bound(value=sample.mean, low=-math.inf, high=math.inf)
    root = math.sqrt(sample.clusters)
    error = sample.deviation / root

    def reach(quantile: float) -> tuple[float, float]:
        lean = sample.skewness / root
        if abs(lean) < 1e-9:
            return quantile, quantile
        turned = 3.0 / lean * (np.cbrt(1.0 + lean * (quantile - lean / 6.0)) - 1.0)
        return quantile, float(turned)

    freedom = sample.clusters - 1.0
    lows = reach(float(stdtrit(freedom, 1.0 - errors.low)))
    highs = reach(float(stdtrit(freedom, errors.high)))
    return Bound(
        value=sample.mean,
        low=sample.mean - error * max(*lows, 0.0),
        high=sample.mean - error * min(*highs, 0.0),
    )


def tail_bound(newly: int, no_longer: int, clusters: int, errors: Errors) -> Bound:
    """Difference of two paired rates: ``newly`` of the clusters are in the tail only after, ``no_longer``
    only before.

    Only these discordant pairs bear on it, as in McNemar's test: difference = (newly - no_longer) / c.
    The bounds take the exact one for each of the two rates (`rate_limit`), at half the error; they are
    exact, and conservative.
    """
    if not clusters:
        return Bound(value=0.0, low=-1.0, high=1.0)
    low, high = errors.low / 2, errors.high / 2
    return Bound(
        value=(newly - no_longer) / clusters,
        low=rate_limit(newly, clusters, low, upper=False)
        - rate_limit(no_longer, clusters, low, upper=True),
        high=rate_limit(newly, clusters, high, upper=True)
        - rate_limit(no_longer, clusters, high, upper=False),
    )


def decided(bound: Bound, margin: float) -> Verdict:
    if bound.low > margin:
        return "fail"
    return "pass" if bound.high < margin else "inconclusive"


def together(verdicts: list[Verdict]) -> Verdict:
    """Of all comparisons: one failure fails, and only all of them pass."""
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts and all(v == "pass" for v in verdicts) else "inconclusive"


def compared_means(sample: Sample, margin: float, errors: Errors, least: int) -> Compared:
    """The mean shift against ``margin``; never decided on fewer than ``least`` clusters."""
    bound = mean_bound(sample, errors)
    enough = sample.clusters >= least
    verdict: Verdict = decided(bound, margin) if enough else "inconclusive"
    needed = None
    if verdict == "inconclusive" and sample.n:
        needed = _prompts_for_mean(sample, margin, errors, least)
    return Compared(bound=bound, margin=margin, verdict=verdict, needed=needed)


def compared_tails(
    newly: int, no_longer: int, clusters: int, *, margin: float, errors: Errors, least: int
) -> Compared:
    """The difference of tail rates against ``margin``; ``needed`` counts clusters."""
    bound = tail_bound(newly, no_longer, clusters, errors)
    verdict: Verdict = decided(bound, margin) if clusters >= least else "inconclusive"
    needed = None
    if verdict == "inconclusive" and clusters:
        rates = newly / clusters, no_longer / clusters
        needed = _clusters_for_tails(rates, margin, errors, least)
    return Compared(bound=bound, margin=margin, verdict=verdict, needed=needed)


def _prompts_for_mean(sample: Sample, margin: float, errors: Errors, least: int) -> int | None:
    """``c = ((z_error + z_power) s / (Δ - δ))²`` clusters, in prompts, as if δ and s were known."""
    gap = abs(margin - sample.mean)
    error = errors.high if sample.mean < margin else errors.low
    reach = float(-ndtri(error) + ndtri(POWER)) * sample.deviation
    if reach >= gap * math.sqrt(MOST_PROMPTS):
        return None
    clusters = max((reach / gap) ** 2, float(least))
    return math.ceil(clusters * sample.n / sample.clusters)


def _clusters_for_tails(
    rates: tuple[float, float], margin: float, errors: Errors, least: int
) -> int | None:
    """A number at which counts that are met with `POWER` decide; about the least, counts being whole."""
    newly, no_longer = rates
    passes = newly - no_longer < margin
    bad, good = (POWER, 1.0 - POWER) if passes else (1.0 - POWER, POWER)

    def enough(clusters: int) -> bool:
        counts = _met(bad, clusters, newly), _met(good, clusters, no_longer)
        bound = tail_bound(*counts, clusters, errors)
        return decided(bound, margin) != "inconclusive"

    return _first(enough, least)


def _met(share: float, clusters: int, rate: float) -> int:
    """The number that a binomial count stays at or below with probability ``share``."""
    return math.ceil(bdtrik(share, clusters, rate)) if rate > 0.0 else 0


def _first(enough: Callable[[int], bool], least: int) -> int | None:
    """A number from ``least`` on that is enough while one less is not; by doubling, then halving."""
    low, high = least - 1, least
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_PROMPTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
