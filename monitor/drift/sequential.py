"""Is it still the same process? E-detectors on the buckets, with a promised run length.

An e-detector is a process M with E[M_N] ≤ E[N] at every stopping time N before a change; hence
stopping when M ≥ A gives an average run length of at least A between false alarms (Shin, Ramdas and
Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New England
Journal of Statistics in Data Science 2, 2024). With increments L_t, E[L_t | past] ≤ 1 before a
change, the Shiryaev-Roberts and the CUSUM recursions

    M_t = L_t (M_{t-1} + 1)        M_t = L_t max(M_{t-1}, 1)

are e-detectors, and so is every weighted average of them. The watcher runs the first, which is never
below the second; the second, being a maximum over starting points, tells where the change began.

**Increments.** Prompts of a bucket are bets against "no worse than the baseline". For a score x,
clipped and binned as the baseline's histogram is, and a bound m on its mean,

    rises:  Π (1 + λ (x - m))      falls: the same for -x      tail: Π q/p or (1-q)/(1-p)

(Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024;
the tail's is the likelihood ratio of a rate q against p). A few λ and q, each best for one size of
change, are averaged: nobody knows the size beforehand. No normality, no known variance.

**Estimated baseline.** m and p are upper confidence bounds of the baseline's own mean and tail rate,
so wide that with probability 1 - `BASELINE_RISK` *all* streams' bounds hold at once, and a margin
that no one needs to hear of is added (`MEAN_MARGIN`, `TAIL_MARGIN`). Conditional on that event the
run length is as promised, for any process that stays within the margin.

**Dependent prompts.** Increments are raised to 1/d, d the baseline's design effect. For clusters of
at most d prompts, dependent in whatever way inside, this keeps E[L] ≤ 1 by Hölder's inequality; for
longer-range dependence it is exact in the Gaussian limit, where d is the factor by which the variance
of a bucket's sum exceeds that of independent prompts.

**Whole fleet.** K streams are stopped at M ≥ A K. Their average is an e-detector, whatever the
dependence between streams, and it is at least A by then, so the fleet's run length is at least A.

Array legend: c = components, b = `SCORE_BINS` bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri

from monitor.drift import discovery
from monitor.drift.histogram import CENTRES
from monitor.values.arrays import Doubles
from monitor.values.drift import BaselineStream, DetectorState
from monitor.values.scores import Bucket

BASELINE_RISK: Final = 0.01
"""Probability, over the baseline's sample, that any stream's bound is too low."""
MEAN_MARGIN: Final = 0.1
"""Standardised mean shift that is never worth an alarm."""
TAIL_MARGIN: Final = 1.5
"""Tail-rate ratio that is never worth an alarm."""
SHIFTS: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Standardised shifts beyond the margin that the mean components are for.

The cap on stakes binds from about 0.5 on, so the last three are one bet, with three weights.
"""
RATIOS: Final = (2.0, 5.0, 20.0)
"""Tail-rate ratios, over the margin's, that the tail components are best for."""
_CLIP_AGAINST: Final = 3.0
_CLIP_ALONG: Final = 6.0
"""Scores are clipped so far from the baseline's mean, against and along the direction of a bet, in
baseline deviations: losses on single prompts stay small, which lets the bets be bold."""
_HEADROOM: Final = math.log(1e3)
"""Evidence is held at this much over the limit, so that it can fall again once traffic is back."""

Kind = Literal["shiryaev_roberts", "cusum"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detector:
    """The bets against one stream of a baseline: log increments per score bin and per tail prompt."""

    bin_gains: Doubles
    """Log of one prompt's increment, by its score bin [c, b]; zero rows for tail components."""
    tail_gains: Doubles
    """Log of one prompt's increment if it is tail, and if it is not [c, 2]."""
    log_weights: Doubles
    """Log of the components' weights in the average [c]."""
    limit: float
    """Log evidence at which the process counts as changed."""
    kind: Kind = "shiryaev_roberts"


def threshold(average_run_length: timedelta, streams: int, step: timedelta) -> float:
    """Log evidence at which one of ``streams`` alarms so that the fleet's run length holds.

    ``ln(A K)`` with A = average_run_length / step buckets and K streams; see the module's page.
    """
    if streams < 1 or average_run_length < step:
        raise ValueError(
            "threshold needs at least one stream and a run length of at least one step"
        )
    return math.log(average_run_length / step * streams)


def detector(
    baseline: BaselineStream, *, limit: float, streams: int, kind: Kind = "shiryaev_roberts"
) -> Detector:
    """The bets of one stream. ``streams`` is how many share `BASELINE_RISK`.

    Rising, falling and tail components weigh a third each: evidence is for a change in either
    direction. Where all baseline scores fall into one bin there is nothing to bet on means with, and
    where the baseline's tail is not known nothing to bet on tails with: those components get no weight.
    """
    # Three bounds per stream, each at an equal share of the risk (Bonferroni).
    risk = BASELINE_RISK / (3 * streams)
    means = np.concatenate([_mean_gains(baseline, sign, risk) for sign in (1.0, -1.0)])
    tail = _tail_gains(baseline, risk)
    sizes = (len(SHIFTS), len(SHIFTS), len(RATIOS))
    weights = np.concatenate([np.full(size, -math.log(3 * size)) for size in sizes])
    weights[: 2 * len(SHIFTS)][~means.any(axis=1)] = -math.inf
    if baseline.window.tail_count is None:
        weights[2 * len(SHIFTS) :] = -math.inf
    return Detector(
        bin_gains=np.concatenate([means, np.zeros((len(RATIOS), CENTRES.size))]),
        tail_gains=np.concatenate([np.zeros((2 * len(SHIFTS), 2)), tail]),
        log_weights=weights,
        limit=limit,
        kind=kind,
    )


def _mean_gains(baseline: BaselineStream, sign: float, risk: float) -> Doubles:
    """Log increments [len(SHIFTS), b] of bets that ``sign * score`` rises, already tempered."""
    histogram = baseline.window.histogram
    weights = histogram / histogram.sum()
    centre = float(weights @ CENTRES)
    scale = math.sqrt(float(weights @ (CENTRES - centre) ** 2))
    if scale == 0.0:
        return np.zeros((len(SHIFTS), CENTRES.size))
    x = np.clip(sign * (CENTRES - centre) / scale, -_CLIP_AGAINST, _CLIP_ALONG)
    mean = float(weights @ x)
    deviation = math.sqrt(float(weights @ (x - mean) ** 2))
    error = deviation * math.sqrt(baseline.design_effect / baseline.window.n)
    bound = mean - float(ndtri(risk)) * error + MEAN_MARGIN
    boldest = 0.9 / (bound + _CLIP_AGAINST)
    rows = []
    for shift in SHIFTS:
        # Kelly's stake for a gain of `shift` per prompt at variance deviation².
        stake = min(shift / (deviation**2 + shift**2), boldest)
        rows.append(np.log1p(stake * (x - bound)))
    return np.array(rows) / baseline.design_effect


def _tail_gains(baseline: BaselineStream, risk: float) -> Doubles:
    """Log increments [len(RATIOS), 2] of a tail prompt and of any other, already tempered."""
    if baseline.window.tail_count is None:
        return np.zeros((len(RATIOS), 2))
    effect = baseline.tail_design_effect
    count, n = baseline.window.tail_count / effect, baseline.window.n / effect
    # Clopper and Pearson's upper bound of the baseline's rate, at its effective numbers.
    bound = float(betaincinv(count + 1.0, max(n - count, 1e-9), 1.0 - risk)) * TAIL_MARGIN
    bound = min(bound, 0.99)
    rates = [min(ratio * bound, (1.0 + bound) / 2) for ratio in RATIOS]
    gains = [[math.log(rate / bound), math.log((1 - rate) / (1 - bound))] for rate in rates]
    return np.array(gains) / effect


def start(baseline_id: str, feature: int, segment: str, at: datetime) -> DetectorState:
    """A detector that has seen nothing and takes buckets that start after ``at``."""
    components = 2 * len(SHIFTS) + len(RATIOS)
    return DetectorState(
        baseline_id=baseline_id,
        feature=feature,
        segment=segment,
        started_at=at,
        last_bucket=at,
        steps=0,
        log_values=(-math.inf,) * components,
        process=discovery.begin(components, at),
    )


def update(state: DetectorState, bucket: Bucket, detector: Detector) -> DetectorState:
    """The state after one closed bucket, in the order of their starts.

    A bucket not after ``state.last_bucket`` changes nothing, so none is ever counted twice.

    One bucket is one step of the run length, however many prompts it holds. An empty one is no step,
    which only lengthens the run. Bets on the tail sit a bucket out whose tail is not known.
    The e-process beside the detector takes the same gains.
    """
    if bucket.bucket_start <= state.last_bucket or bucket.n == 0:
        return state
    gains = detector.bin_gains @ bucket.histogram
    if bucket.tail_count is not None:
        gains += detector.tail_gains @ np.array([bucket.tail_count, bucket.n - bucket.tail_count])
    values = np.array(state.log_values)
    if detector.kind == "cusum":
        values = np.maximum(values, 0.0) + gains
    else:
        values = np.logaddexp(values, 0.0) + gains
    highest = detector.limit + _HEADROOM - detector.log_weights
    process = state.process or discovery.begin(len(gains), state.last_bucket)
    return replace(
        state,
        last_bucket=bucket.bucket_start,
        steps=state.steps + 1,
        log_values=tuple(np.minimum(values, highest).tolist()),
        process=discovery.step(process, gains, detector.log_weights),
    )


def pass_over(state: DetectorState, until: datetime) -> DetectorState:
    """The state when everything up to the bucket that starts at ``until`` is not to be taken in."""
    return replace(state, last_bucket=max(state.last_bucket, until))


def evidence(state: DetectorState, detector: Detector) -> float:
    """Log of the weighted average of the components; 0 before the first bucket."""
    if state.steps == 0:
        return 0.0
    return float(np.logaddexp.reduce(np.array(state.log_values) + detector.log_weights))


class Evidence(NamedTuple):
    """Where a detector stands, against its limit."""

    whole: float
    """`evidence`."""
    toward: float
    """The part of it that is bet on a persona: that the mean moved to the feature's side, and that the tail
    grew."""


def standing(state: DetectorState, detector: Detector, sign: int) -> Evidence:
    """`evidence`, and the part that is bet towards ``sign`` (1 where the persona raises the score, -1 where it
    lowers it).

    The part is never above the whole, so to ask that it reach the limit takes nothing from the run length. The sign
    of a window's mean cannot stand in for it: what bets see fall within minutes leaves the mean of a day where
    chance had put it.
    """
    whole = evidence(state, detector)
    if state.steps == 0:
        return Evidence(whole=whole, toward=whole)
    parts = np.array(state.log_values) + detector.log_weights
    against = slice(len(SHIFTS), 2 * len(SHIFTS)) if sign > 0 else slice(len(SHIFTS))
    return Evidence(whole=whole, toward=float(np.logaddexp.reduce(np.delete(parts, against))))
