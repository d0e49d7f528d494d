"""Is what was said what the copy would have said? A test without a baseline, valid at every look.

Of every answer the replay gives bets against the copy (`monitor.values.surprise`): likelihood ratios E
of tilted laws, E[E | all before] ≤ 1 while the served model is the copy, whatever is asked and by whom.
When a share ε of the answers comes from another model, the best wager on one answer is

    log(1 - ε + ε E),    E a mean over tilts

and wagers add up over answers, partitions and buckets (a betting e-process: Shafer, JRSS A 184, 2021;
Waudby-Smith and Ramdas, JRSS B 86, 2024). Nobody knows ε, so a few are held at once and their
processes averaged. By Ville's inequality the average ever exceeds 1/α with probability at most α.

**Which tilts.** When every answer is another model's, small tilts gather what large ones would lose, so E of the
largest share is the mean over all. When few are, the others' E must be as near to 1 as can be, and what wins is the answer
that stands out: E is the mean over `STAND_OUT` then. Any fixed mean of bets is as valid as each of them. A tilt smaller than these
is not staked on alone: texts in languages that the tokenizer splits into many small pieces are a little more
surprising read back than drawn, which is what a small tilt gathers.

The alarm is the e-detector of `monitor.drift.sequential` on the same wagers (Shiryaev-Roberts, one step
a bucket), so that its average run length is the fleet's, and so that it forgets what lies long behind.
While K streams are tested, one alarms at A·K: their average is an e-detector whatever the dependence
between them, also when a stream (a served model, a segment) joins later, for it joins with nothing won.

**Numerics.** A served model and its copy never compute the same. With at most ``tolerance`` nats a token
between their log-probabilities in the mean, a bet of tilt λ gains at most λ · tolerance a token by it
(to first order, E grows as the excess does), which is taken off before the wager.

**Odd answers.** A log holds text, and a tokenizer that splits it otherwise than the model said it does so to many
tokens of the same answer. The price of single odd tokens (`monitor.values.surprise`) does not cover those where the law
is sharp. Such an answer wins nothing where the server's token count differs; where it is the same and the law is
not sharp, the lower price of `OTHER_COUNTED` is paid. Where the law is sharp and there is no count the mean of all
bets is capped at `MOST`, and its price taken off: E' = min(E, MOST) / (1 - s + s MOST), s = `OTHER_ANSWERS`, has a
mean of at most 1 while s of the answers are any at all (Huber, as for tokens). Of greedy
answers a larger share of tokens may be given away then (`GREEDY_RETOLD`).

**What vouches.** No alarm is not "the same model". The mean centred surprise of a window's answers is 0
for the copy, with a variance that is known, so it has a confidence interval; the served model is
vouched for only while the whole interval lies within a stated distance of 0, and that of its greedy
answers, where there are any, within its own (`Standing.vouched`).

Array legend: c = tilts, s = `SHARES`, n = answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import numpy as np
from scipy.special import betaincinv, ndtri

from monitor.drift import discovery
from monitor.values.arrays import Doubles
from monitor.values.drift import Bound
from monitor.values.likeness import LikenessBucket
from monitor.values.surprise import (
    GREEDY_RETOLD,
    MOST,
    OTHER_ANSWERS,
    TILTS,
    IdentityBucket,
    IdentityState,
    Surprise,
    Tally,
    greedy_bets,
)

SHARES: Final = (0.003, 0.01, 0.05, 0.2, 0.9)
"""Shares of foreign answers that the wagers are best for."""
STAND_OUT: Final = slice(2, 4)
"""Of `TILTS`: the bets on single answers that are unlike the copy's, of the shares below the largest."""
GREEDY_WITHIN: Final = 0.05
"""Answers at temperature 0 vouch while fewer of their tokens than this are surely given away."""
HEADROOM: Final = math.log(20.0)
"""Evidence is held at this much over the limit, so that it can fall again once the copy answers."""


def wagers(surprise: Surprise, tolerance: float) -> Doubles:
    """Log gains [s] of one answer; ``tolerance`` in nats a token."""
    bets = surprise.staked
    if surprise.law == "sampled":
        bets = bets - np.array(TILTS) * tolerance * surprise.tokens
    elif surprise.unchecked:
        bets = greedy_bets(surprise.given_away, surprise.tokens, GREEDY_RETOLD)
    gain = np.full(len(SHARES), evidence(bets))
    if surprise.unchecked:
        gain[:] = bounded(gain[0])
    elif surprise.law == "sampled":
        gain[:-1] = evidence(bets[STAND_OUT])
    shares = np.array(SHARES)
    gains: Doubles = np.logaddexp(np.log1p(-shares), np.log(shares) + gain)
    return gains


def bounded(gain: float) -> float:
    """The log ``gain`` of an unchecked answer, at the price by which `OTHER_ANSWERS` of them may be any at all."""
    return min(gain, math.log(MOST)) - math.log1p(OTHER_ANSWERS * (MOST - 1))


def evidence(total: Doubles) -> float:
    """Log of the average of what stands at the logs ``total``: an e-process of its shares, or a bet of its tilts."""
    return float(np.logaddexp.reduce(total)) - math.log(len(total))


def step(values: Doubles, gains: Doubles) -> Doubles:
    """The Shiryaev-Roberts values (logs [s]) after one bucket whose wagers sum to ``gains`` [s]."""
    return np.asarray(np.logaddexp(values, 0.0) + gains, dtype=np.float64)


# --- the detectors of one pack -------------------------------------------------------------------

Stream = tuple[str, str, str]
"""Segment, served model, and the alternative that is bet on; empty: none by name."""


def start(
    segment: str, served: str, at: datetime, *, alternative: str = "", shares: int = len(SHARES)
) -> IdentityState:
    """A test that has seen nothing and takes buckets that start after ``at``."""
    return IdentityState(
        segment=segment,
        served=served,
        started_at=at,
        last_bucket=at,
        n=0,
        log_values=(-math.inf,) * shares,
        alternative=alternative,
        process=discovery.begin(shares, at),
    )


def taken_in(
    states: Mapping[Stream, IdentityState],
    buckets: Sequence[IdentityBucket | LikenessBucket],
    *,
    until: datetime,
    begin: datetime,
    alone: float,
) -> dict[Stream, IdentityState]:
    """The states after ``buckets``, in the order of their starts, one for each interval and stream.

    Nothing up to ``until`` is taken in again. A stream that is new begins at ``begin``. ``alone`` is the
    log evidence at which a single stream would alarm; K of them alarm at ``alone + log K``, those that bet on
    alternatives among them.
    """
    found = dict(states)
    for bucket in buckets:
        if bucket.stream not in found:
            segment, served, name = bucket.stream
            found[bucket.stream] = start(
                segment, served, begin, alternative=name, shares=len(bucket.wagers)
            )
    limit = alone + math.log(max(len(found), 1))
    for bucket in sorted(buckets, key=lambda one: one.bucket_start):
        found[bucket.stream] = _updated(found[bucket.stream], bucket, limit)
    return {
        key: replace(state, last_bucket=max(state.last_bucket, until), limit=limit)
        for key, state in found.items()
    }


def _updated(
    state: IdentityState, bucket: IdentityBucket | LikenessBucket, limit: float
) -> IdentityState:
    if bucket.bucket_start <= state.last_bucket or bucket.n == 0:
        return state
    values = step(np.array(state.log_values), bucket.wagers)
    values = np.minimum(values, limit + HEADROOM + math.log(len(values)))
    process = state.process or discovery.begin(len(values), state.last_bucket)
    return replace(
        state,
        last_bucket=bucket.bucket_start,
        n=state.n + bucket.n,
        log_values=tuple(values.tolist()),
        evidence=evidence(values),
        process=discovery.step(process, bucket.wagers),
    )


# --- what vouches --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the answers of one window say of the served model."""

    surprise: Bound | None
    """Mean centred surprise in nats a token; None where nothing was drawn."""
    given_away: Bound | None
    """Share of greedy tokens that were not the most likely ones; None where nothing was greedy."""
    vouched: bool
    """Something was weighed, and all of it lies within: answers of one law do not vouch for another's."""
    needed: int | None
    """Answers more that would vouch if they were as those of the window; None where none would."""


def standing(tally: Tally, *, confidence: float, within: float) -> Standing:
    """``within``: nats a token; two-sided bounds at ``confidence``."""
    drawn = (
        mean_surprise(tally.excess, tally.variance, tally.tokens, confidence)
        if tally.tokens
        else None
    )
    greedy = _given_away(tally, confidence) if tally.greedy_tokens else None
    inside = [-within < drawn.low and drawn.high < within] if drawn else []
    inside += [greedy.high < GREEDY_WITHIN] if greedy else []
    vouched = bool(inside) and all(inside)
    return Standing(
        surprise=drawn,
        given_away=greedy,
        vouched=vouched,
        needed=None if vouched else _needed(tally, drawn, within),
    )


def mean_surprise(excess: float, variance: float, tokens: int, confidence: float) -> Bound:
    """Of the sums over ``tokens`` drawn tokens, in nats a token, with its two-sided bounds."""
    mean = excess / tokens
    reach = float(ndtri(0.5 + confidence / 2)) * math.sqrt(variance) / tokens
    return Bound(value=mean, low=mean - reach, high=mean + reach)


def _given_away(tally: Tally, confidence: float) -> Bound:
    """Clopper and Pearson's interval."""
    k, n, risk = tally.given_away, tally.greedy_tokens, (1 - confidence) / 2
    return Bound(
        value=k / n,
        low=0.0 if k == 0 else float(betaincinv(k, n - k + 1, risk)),
        high=1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - risk)),
    )


def _needed(tally: Tally, drawn: Bound | None, within: float) -> int | None:
    """The interval's half width falls as 1/√n, and must become what is left beside the mean."""
    if drawn is None or tally.n == 0:
        return None
    room = within - abs(drawn.value)
    if room <= 0:
        return None
    factor = ((drawn.high - drawn.value) / room) ** 2
    return max(1, math.ceil(tally.n * (factor - 1)))
