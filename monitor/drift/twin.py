"""Do served answers read otherwise than the copy's own to the same questions? Valid at every look, no baseline.

Of a chosen prompt both answers are read, and D is the score of the served one minus that of the copy's. While
the served model is the copy, the two could be exchanged (`monitor.values.twin`), so given all that went before D is
as likely to be x as -x. A product of bets on it,

    Π (1 + λ (g(D) - m))        and the same of -D,        g(x) = x clipped at ± `CLIP`,

is then an e-process for every stake λ up to 1 / (`CLIP` + m), with m ≥ 0 a mean that nobody needs to hear of
(Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024). The prompts may
depend on one another as they like, and users may ask what they like: neither moves D. A few stakes, each best
for one size of shift, are held at once and averaged in both directions; the e-detector of
`monitor.drift.sequential` on them (Shiryaev-Roberts, one step a bucket) has the fleet's run length, as that of
identity has: K streams alarm at A·K.

g is taken from the buckets' bins, and is odd on them: the two bins beside 0 count as 0, so that a pair that
reads alike (at temperature 0, most do) bets on neither side.

Array legend: c = stakes in both directions, b = `SCORE_BINS` bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
from scipy.special import ndtri

from monitor.drift import discovery
from monitor.drift.histogram import CENTRES, EDGES
from monitor.drift.identity import HEADROOM
from monitor.drift.sequential import SHIFTS
from monitor.drift.tests import mean, variance
from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Bound, Drift, Window
from monitor.values.scores import Bucket
from monitor.values.twin import TwinState
from monitor.values.witnesses import Witness

CLIP: Final = 4.0
"""Deviations of the score at which a difference is clipped."""
_SPREAD: Final = 2.0
"""Variance that the stakes are best for: of two answers, each with one deviation. The test holds for any."""
_ODD: Final = np.clip(np.where(np.abs(CENTRES) < EDGES[EDGES > 0][0], 0.0, CENTRES), -CLIP, CLIP)
"""g of each bin [b]."""

Stream = tuple[int, str]
"""Feature index and segment."""


def gains(histogram: Counts, tolerance: float) -> Doubles:
    """Log gains [c] of the differences in one bucket: rising ones first. ``tolerance`` in deviations."""
    boldest = 0.9 / (CLIP + tolerance)
    stakes = [min(shift / (_SPREAD + shift**2), boldest) for shift in SHIFTS]
    rows = [np.log1p(stake * (sign * _ODD - tolerance)) for sign in (1, -1) for stake in stakes]
    won: Doubles = np.array(rows) @ histogram
    return won


# --- the detectors of one pack -------------------------------------------------------------------


def start(feature: int, segment: str, at: datetime) -> TwinState:
    """A test that has seen nothing and takes buckets that start after ``at``."""
    return TwinState(
        feature=feature,
        segment=segment,
        started_at=at,
        last_bucket=at,
        n=0,
        log_values=(-math.inf,) * (2 * len(SHIFTS)),
        process=discovery.begin(2 * len(SHIFTS), at),
    )


def taken_in(
    states: Mapping[Stream, TwinState],
    buckets: Sequence[Bucket],
    *,
    until: datetime,
    begin: datetime,
    alone: float,
    tolerance: float,
) -> dict[Stream, TwinState]:
    """The states after ``buckets``, in the order of their starts, one for each interval and stream.

    Nothing up to ``until`` is taken in again. A stream that is new begins at ``begin``. ``alone`` is the
    log evidence at which a single stream would alarm; K of them alarm at ``alone + log K``.
    """
    found = dict(states)
    for bucket in buckets:
        key = bucket.feature, bucket.segment
        if key not in found:
            found[key] = start(*key, begin)
    limit = alone + math.log(max(len(found), 1))
    for bucket in sorted(buckets, key=lambda one: one.bucket_start):
        key = bucket.feature, bucket.segment
        found[key] = _updated(found[key], bucket, limit, tolerance)
    return {
        key: replace(state, last_bucket=max(state.last_bucket, until), limit=limit)
        for key, state in found.items()
    }


def _updated(state: TwinState, bucket: Bucket, limit: float, tolerance: float) -> TwinState:
    if bucket.bucket_start <= state.last_bucket or bucket.n == 0:
        return state
    won = gains(bucket.histogram, tolerance)
    values = np.logaddexp(np.array(state.log_values), 0.0) + won
    values = np.minimum(values, limit + HEADROOM + math.log(len(values)))
    process = state.process or discovery.begin(len(won), state.last_bucket)
    return replace(
        state,
        last_bucket=bucket.bucket_start,
        n=state.n + bucket.n,
        log_values=tuple(values.tolist()),
        evidence=float(np.logaddexp.reduce(values)) - math.log(len(values)),
        process=discovery.step(process, won),
    )


# --- what vouches --------------------------------------------------------------------------------

NEAR: Final = 0.5
"""The twin vouches while the model's part of a shift is surely less than this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one window's pairs say of a shift in the score of the served answers."""

    difference: Bound
    """Mean difference, in deviations of the score."""
    vouched: bool
    """Had the model made the shift, the pairs would show it, and they do not."""
    needed: int | None
    """Pairs more that would vouch if they were as those of the window; None where none would."""


def standing(pairs: Window, shift: Bound, *, confidence: float) -> Standing:
    """``shift`` of the served scores, in the same deviations; two-sided bounds at ``confidence``.

    What users ask moves both answers alike and is not in the difference; what the model does is in it
    whole. So a shift is the users' where the difference is surely less than `NEAR` of the least that the
    shift can be.
    """
    n = pairs.n
    spread = math.sqrt(variance(pairs) / n) if n > 1 else math.inf
    middle = mean(pairs)
    reach = float(ndtri(0.5 + confidence / 2)) * spread
    difference = Bound(value=middle, low=middle - reach, high=middle + reach)
    rises = shift.value > 0
    least, most = (shift.low, difference.high) if rises else (-shift.high, -difference.low)
    room = NEAR * least - (middle if rises else -middle)
    needed = None
    if room > 0 and math.isfinite(reach):
        needed = max(1, math.ceil(n * ((reach / room) ** 2 - 1)))
    vouched = n > 1 and least > 0 and most < NEAR * least
    return Standing(difference=difference, vouched=vouched, needed=None if vouched else needed)


def witness(
    states: Sequence[TwinState],
    pairs: Mapping[int, Window],
    features: Sequence[str],
    drift: Drift | None,
    *,
    prompts: int,
    confidence: float,
) -> Witness:
    """Whether served answers read as the copy's own do, for a cause.

    ``states`` are the tests of a segment, ``pairs`` the differences of a window of it by feature index, in
    the pack's ``features``; ``drift`` is what is to be explained, of that window with its ``prompts``.
    Without a drift, and for one of a feature that reads no answer, it can only have moved.
    """
    strongest = max(states, key=lambda state: state.evidence - state.limit, default=None)
    figures: dict[str, Any] = {
        "pairs": max((window.n for window in pairs.values()), default=0),
        "evidence": _figure(strongest.evidence) if strongest else None,
        "limit": _figure(strongest.limit) if strongest else None,
    }
    if strongest is not None and strongest.crossed:
        name = features[strongest.feature]
        by = f", {mean(pairs[strongest.feature]):+.2f} SD" if strongest.feature in pairs else ""
        told = (
            f"{name} reads otherwise in served answers than in the copy's own to the same prompts{by}:"
            f" evidence {strongest.evidence:.1f}, limit {strongest.limit:.1f}"
        )
        return Witness(
            name="twin", finding="moved", told=told, figures={**figures, "feature": name}
        )
    window = pairs.get(features.index(drift.feature)) if drift is not None else None
    if drift is None or window is None:
        told = "no answer of the copy's own to the same prompts tells of it"
        return Witness(name="twin", finding="unsure", told=told, figures=figures)
    shift = _in_scores(drift)
    found = standing(window, shift, confidence=confidence)
    off = found.difference
    figures |= {
        "feature": drift.feature,
        "pairs": window.n,
        "difference": {key: _figure(getattr(off, key)) for key in ("value", "low", "high")},
        "bound": _figure(NEAR * max(shift.low, -shift.high, 0.0)),
    }
    told = (
        f"{window.n} answers of the copy's own to the same prompts: served ones lie"
        f" {off.value:+.2f} SD [{off.low:+.2f}, {off.high:+.2f}] off them, of a shift of"
        f" {shift.value:+.2f}"
    )
    if found.vouched:
        return Witness(name="twin", finding="steady", told=told, figures=figures)
    needed = None
    if found.needed is not None:
        needed = math.ceil(found.needed * max(prompts, window.n) / window.n)
        told += f"; about {needed} more prompts would decide"
    return Witness(name="twin", finding="unsure", told=told, figures=figures, needed=needed)


def _in_scores(drift: Drift) -> Bound:
    """The drift's shift in deviations of the score, as differences are, not of the baseline."""
    apart = drift.mean - drift.baseline_mean
    scale = apart / drift.shift.value if apart and drift.shift.value else 1.0
    return Bound(
        value=drift.shift.value * scale, low=drift.shift.low * scale, high=drift.shift.high * scale
    )


def _figure(number: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(f"{number:.6g}") if math.isfinite(number) else None
