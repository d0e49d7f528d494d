"""A window against its baseline: did the centre move, did the shape change, did the tail grow?

Every figure comes with a bound, because an alert needs an effect whose *lower* bound passes its
threshold: a p-value flags everything on large samples and nothing on small ones. All bounds are
two-sided at ``confidence`` (each end errs with probability at most (1 - confidence) / 2), account
for the baseline being a sample too, and count prompts at their effective number: n divided by the
baseline's design effect (Kish, "Survey Sampling", 1965), since prompts of one conversation or one
hour are no independent draws.

Array legend: b = `SCORE_BINS` bins, g = groups of bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri, stdtrit

from monitor.drift.histogram import CENTRES, deciles, grouped
from monitor.drift.tails import level_ratio, rate_ratio, repetition, tail_growth
from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import (
    UNKNOWN,
    BaselineStream,
    Bound,
    Drift,
    TailGrowth,
    TailLevel,
    Window,
)
from monitor.values.witnesses import Cause

NOTHING_KNOWN = Bound(value=0.0, low=-math.inf, high=math.inf)


def mean(window: Window) -> float:
    """The mean score; 0 of an empty window."""
    return window.total / window.n if window.n else 0.0


def variance(window: Window) -> float:
    """Unbiased variance of the scores; 0 below two prompts or below rounding."""
    if window.n < 2:
        return 0.0
    centre = window.total / window.n
    spread = (window.total_squares - window.n * centre**2) / (window.n - 1)
    rounding = 1e-12 * max(1.0, window.total_squares / window.n)
    return spread if spread > rounding else 0.0


def tail_rate(window: Window) -> float:
    """Share of prompts in the tail, 0 of an empty window; NaN where it is not known."""
    if window.tail_count is None:
        return math.nan
    return window.tail_count / window.n if window.n else 0.0


def mean_shift(
    window: Window,
    baseline: Window,
    *,
    confidence: float,
    design_effect: float = 1.0,
    shape: tuple[float, float] | None = None,
) -> Bound:
    """Standardised mean shift ``Δ = (m_w - m_b) / s_b`` (Glass) with its confidence interval.

    The interval is ``Δ ± t_ν sqrt(V)`` with the delta-method variance

        V = s_w² / (s_b² n_w)  +  (1 + Δ γ + Δ² (κ - 1) / 4) / n_b

    where γ and κ are skewness and kurtosis of the baseline (from its histogram; 0 and 3 give Bonett,
    "Confidence intervals for standardized linear contrasts of means", Psychological Methods 13,
    2008, for one standardiser), n are effective numbers, and ν is Welch and Satterthwaite's number
    of degrees of freedom of the two summands. Neither equal variances nor normal scores are assumed.

    Where every baseline score is the same, s_b is taken as 1: the shift is then in deviations of
    the pack's calibration. Fewer than two effective prompts on either side: nothing is known, the
    bounds are infinite.
    """
    n_w, n_b = window.n / design_effect, baseline.n / design_effect
    if n_w < 2 or n_b < 2:
        return NOTHING_KNOWN
    scale = math.sqrt(variance(baseline)) or 1.0
    delta = (mean(window) - mean(baseline)) / scale
    skewness, kurtosis = shape or _shape(baseline.histogram)
    own = variance(window) / (scale**2 * n_w)
    theirs = variance(baseline) / (scale**2 * n_b)
    theirs *= max(1.0 + delta * skewness + delta**2 * (kurtosis - 1.0) / 4.0, 0.0)
    total = own + theirs
    if total <= 0.0:
        return Bound(value=delta, low=delta, high=delta)
    freedom = total**2 / (own**2 / (n_w - 1) + theirs**2 / (n_b - 1))
    reach = float(stdtrit(freedom, (1.0 + confidence) / 2)) * math.sqrt(total)
    return Bound(value=delta, low=delta - reach, high=delta + reach)


def _shape(histogram: Counts) -> tuple[float, float]:
    """Skewness and kurtosis of the binned scores; a normal's where there is no spread."""
    weights = histogram / histogram.sum()
    deviations = CENTRES - weights @ CENTRES
    squares = deviations * deviations
    spread = float(weights @ squares)
    if spread <= 0.0:
        return 0.0, 3.0
    skewness = float(weights @ (squares * deviations)) / spread**1.5
    return skewness, float(weights @ (squares * squares)) / spread**2


def tail_ratio(
    window: Window, baseline: Window, *, confidence: float, design_effect: float = 1.0
) -> Bound:
    """Rate of tail prompts over the baseline's rate, see `rate_ratio`; `UNKNOWN` where a tail is."""
    if window.tail_count is None or baseline.tail_count is None:
        return UNKNOWN
    return rate_ratio(
        (window.tail_count, window.n),
        (baseline.tail_count, baseline.n),
        error=(1.0 - confidence) / 2,
        design_effect=design_effect,
    )


def ks_bound(distance: float, n_window: float, n_baseline: float, confidence: float) -> float:
    """What the KS distance is at least, at one-sided level (1 - confidence) / 2.

    Each empirical distribution is within ``sqrt(ln(2/α) / 2n)`` of its own with probability 1 - α
    (Dvoretzky, Kiefer and Wolfowitz 1956 with Massart's constant, Annals of Probability 18, 1990);
    the triangle inequality takes both off the observed distance.
    """
    if n_window <= 0 or n_baseline <= 0:
        return 0.0
    depth = math.log(2.0 / ((1.0 - confidence) / 4)) / 2
    return max(distance - math.sqrt(depth / n_window) - math.sqrt(depth / n_baseline), 0.0)


def psi_bound(
    window: Counts, baseline: Counts, *, confidence: float, design_effect: float = 1.0
) -> Bound:
    """PSI of two grouped histograms [g], and what it is at least; ``high`` is infinite.

        low = PSI - bias - sqrt(Q² + z² V)     at one-sided level (1 - confidence) / 2

    ``bias`` is the second-order bias of the plug-in estimate, which is (g - 1)(1/n + 1/m) without
    drift; Q is the distance of the null's χ²_{g-1} (1/n + 1/m) quantile from its mean (Yurdakul and
    Naranjo, "Statistical properties of the population stability index", Journal of Risk Model
    Validation 14, 2020); V is the delta-method variance, which rules once there is drift.
    """
    ours, theirs, g = int(window.sum()), int(baseline.sum()), window.size
    if g < 2 or ours == 0 or theirs == 0:
        return Bound(value=0.0, low=0.0, high=math.inf)
    n, m = ours / design_effect, theirs / design_effect
    p = (window + 0.5) / (ours + 0.5 * g)
    q = (baseline + 0.5) / (theirs + 0.5 * g)
    ratio = p / q
    inverse = 1.0 / ratio
    log_ratio = np.log(ratio)
    value = float((p - q) @ log_ratio)
    # Σ (1 + q/p)(1 - p) and Σ (1 + p/q)(1 - q), multiplied out: p and q each sum to one.
    bias = 0.5 * ((g + float(inverse.sum()) - 2.0) / n + (g + float(ratio.sum()) - 2.0) / m)
    by_window = log_ratio + 1.0 - inverse
    by_baseline = log_ratio - 1.0 + ratio
    spread = float(p @ by_window**2 - (p @ by_window) ** 2) / n
    spread += float(q @ by_baseline**2 - (q @ by_baseline) ** 2) / m
    error = (1.0 - confidence) / 2
    null = (float(chdtri(g - 1, error)) - (g - 1)) * (1.0 / n + 1.0 / m)
    reach = math.sqrt(null**2 + float(ndtri(error)) ** 2 * max(spread, 0.0))
    return Bound(value=value, low=max(value - bias - reach, 0.0), high=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """One stream of a baseline, with what every comparison would compute anew."""

    stream: BaselineStream
    sign: int
    """1 where the persona raises the score, -1 where it lowers it."""
    tails: tuple[TailLevel, ...]
    shape: tuple[float, float]
    """Skewness and kurtosis."""
    groups: NDArray[np.intp]
    grouped: Counts
    distribution: Doubles
    """Share of the scores up to each bin's end [b]."""


def reference(
    stream: BaselineStream, sign: int = 1, tails: tuple[TailLevel, ...] | None = None
) -> Reference:
    """The stream of a feature that moves to the side of ``sign``, made ready for `compare`.

    ``tails`` are for a stream that was captured without any.
    """
    histogram = stream.window.histogram
    groups = deciles(histogram)
    return Reference(
        stream=stream,
        sign=sign,
        tails=(stream.tails if tails is None else tails) or (),
        shape=_shape(histogram),
        groups=groups,
        grouped=grouped(histogram, groups),
        distribution=np.cumsum(histogram) / max(stream.window.n, 1),
    )


def _ks(window: Window, against: Reference) -> float:
    """Largest distance between the two distributions, on the edges of the score bins."""
    shares = np.cumsum(window.histogram) / max(window.n, 1)
    return float(np.abs(shares - against.distribution).max()) if window.n else 0.0


def _tails(window: Window, against: Reference, confidence: float) -> tuple[TailGrowth, ...]:
    return tail_growth(
        window.histogram,
        against.tails,
        baseline_n=against.stream.window.n,
        sign=against.sign,
        confidence=confidence,
    )


def compare(
    window: Window,
    against: Reference,
    *,
    confidence: float,
    feature: str,
    pack_id: str,
    baseline_id: str,
    pooled: bool,
    window_name: str,
    evidence: float,
    evidence_limit: float,
    now: datetime,
) -> Drift:
    """All figures of one window against one stream of the baseline; see the functions above.

    The cause is left open: it takes the figures of other streams too, see `monitor.drift.cause`.
    """
    baseline, effect = against.stream.window, against.stream.design_effect
    stability = psi_bound(
        grouped(window.histogram, against.groups),
        against.grouped,
        confidence=confidence,
        design_effect=effect,
    )
    distance = _ks(window, against)
    return Drift(
        baseline_id=baseline_id,
        pack_id=pack_id,
        feature=feature,
        segment=window.segment,
        window=window_name,
        window_start=window.start,
        window_end=window.end,
        n=window.n,
        baseline_n=baseline.n,
        pooled_baseline=pooled,
        mean=mean(window),
        baseline_mean=mean(baseline),
        shift=mean_shift(
            window, baseline, confidence=confidence, design_effect=effect, shape=against.shape
        ),
        psi=stability.value,
        psi_low=stability.low,
        ks=distance,
        ks_low=ks_bound(distance, window.n / effect, baseline.n / effect, confidence),
        tail_rate=tail_rate(window),
        baseline_tail_rate=tail_rate(baseline),
        tail_ratio=tail_ratio(
            window,
            baseline,
            confidence=confidence,
            design_effect=against.stream.tail_design_effect,
        ),
        tails=_tails(window, against, confidence),
        evidence=evidence,
        evidence_limit=evidence_limit,
        cause=Cause.UNKNOWN,
        evaluated_at=now,
    )


Contents = Callable[[float, int], Sequence[tuple[bytes, float]]]
"""Given a threshold and how many prompts of a window lie beyond it: of all of them, or of many, what stands for
the content, and the score; both counted towards the persona."""


def of_contents(
    drift: Drift,
    against: Reference,
    contents: Contents,
    *,
    tail_threshold: float,
    confidence: float,
) -> Drift:
    """The comparison, with the lower bounds of tails that grew taken over contents and not over prompts.

    One exchange that comes a hundred times is one witness: see `repetition`. ``contents`` is asked at most
    once, and only where some tail surely grew; the pack's own begins behind ``tail_threshold``.
    """
    n, stream = drift.n, against.stream
    rates = {level.threshold: level.rate for level in drift.tails if level.ratio.low > 1.0}
    of_pack = drift.tail_ratio.low > 1.0
    if of_pack:
        rates[tail_threshold] = drift.tail_rate
    if not rates:
        return drift
    nearest = min(rates)
    found = contents(nearest, round(rates[nearest] * n))

    def repeated(threshold: float) -> float:
        alike = Counter(content for content, score in found if score >= threshold)
        return repetition(alike.values(), rates[threshold] * n)

    known = {level.threshold: level for level in against.tails}
    tails = [
        replace(
            one,
            ratio=level_ratio(
                known[one.threshold],
                (round(one.rate * n), n),
                drift.baseline_n,
                confidence,
                repeated(one.threshold),
            ),
        )
        if one.ratio.low > 1.0
        else one
        for one in drift.tails
    ]
    if not of_pack:
        return replace(drift, tails=tuple(tails))
    ratio = rate_ratio(
        (round(drift.tail_rate * n), n),
        (stream.window.tail_count or 0, stream.window.n),
        error=(1.0 - confidence) / 2,
        design_effect=stream.tail_design_effect,
        repeated=repeated(tail_threshold),
    )
    return replace(drift, tails=tuple(tails), tail_ratio=ratio)


def with_raw(drift: Drift, raw: Window, against: Reference, *, confidence: float) -> Drift:
    """The comparison of scores given the prompt, with what the raw scores of the window say beside it.

    What the prompts let expect is the raw score less the one given them. Its own bound is narrower than
    that of the raw score, of which it is a part, and that one is taken.
    """
    stream = against.stream
    shift = mean_shift(
        raw,
        stream.window,
        confidence=confidence,
        design_effect=stream.design_effect,
        shape=against.shape,
    )
    scale = math.sqrt(variance(stream.window)) or 1.0
    expected = shift.value - (drift.mean - drift.baseline_mean) / scale
    return replace(
        drift,
        adjusted=True,
        raw_mean=mean(raw),
        raw_baseline_mean=mean(stream.window),
        raw_shift=shift,
        expected_shift=Bound(
            value=expected,
            low=expected - (shift.value - shift.low),
            high=expected + (shift.high - shift.value),
        ),
    )
