"""How an answer fares under another model than the copy: a registered alternative that may be the one that speaks.

With q the alternative's law of the answer and p the copy's, both at the request's own sampling parameters,
log q/p is what the answer says for the alternative. Its likelihood ratio has mean 1 under p, so it is a bet
against the copy as those of `monitor.values.surprise` are, and the sharpest one where q is what answers.

A log holds text, not tokens, so a bet caps what one token may win, and its price is taken off: min(q/p, c) / (1 + s (c - 1))
has a mean of at most 1 while a share s of the tokens is any at all (Huber; see `monitor.values.surprise`). Nobody
knows how far q is from p, so a few caps are held at once.

At temperature 0 the tokens count where the two would say different ones.

Array legend: c = `CAPS`, s = `SHARES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.checks import require, require_aware

CAPS: Final = tuple(math.exp(most) for most in (0.25, 0.75, 2.0))
"""The most that one token may win, in the order of the bets."""
SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.99)
"""Shares of answers from the alternative that are wagered on, and among which the likeliest is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likened:
    """One answer under one alternative, against the copy; in nats.

    Of a drawn answer ``excess`` and ``variance`` are of its centred surprise under the alternative's own
    law: were it the alternative's, ``excess`` would be 0 in the mean. Of a greedy one both are 0.
    """

    tokens: int
    gain: float
    """log q/p of the whole answer."""
    log_bets: Doubles
    """Of each of `CAPS` [c], as they may be staked."""
    excess: float = 0.0
    variance: float = 0.0
    drawn: bool = True

    def __post_init__(self) -> None:
        require(self.tokens > 0, "an answer has at least one token")
        require(self.log_bets.shape == (len(CAPS),), "one bet for each cap")


def _nothing() -> Doubles:
    return np.zeros(len(SHARES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What the answers of some interval say for one alternative; additive."""

    n: int = 0
    nearer: int = 0
    """Answers that are likelier under the alternative than under the copy."""
    tokens: int = 0
    """Of drawn answers among these; so are ``excess`` and ``variance``, under the alternative's law."""
    excess: float = 0.0
    variance: float = 0.0
    likelihoods: Doubles = field(default_factory=_nothing)
    """Sum of log(1 - ε + ε q/p) for each ε of `SHARES` [s]: by how much likelier the answers are when that share of
    them comes from the alternative."""
    wagers: Doubles = field(default_factory=_nothing)
    """The same of the capped bets [s]: what was won against the copy."""

    def __add__(self, other: Likeness) -> Likeness:
        return Likeness(
            n=self.n + other.n,
            nearer=self.nearer + other.nearer,
            tokens=self.tokens + other.tokens,
            excess=self.excess + other.excess,
            variance=self.variance + other.variance,
            likelihoods=self.likelihoods + other.likelihoods,
            wagers=self.wagers + other.wagers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LikenessBucket:
    """The same of one interval, segment, partition, served model and alternative."""

    bucket_start: datetime
    segment: str
    source: str
    served: str
    alternative: str
    likeness: Likeness

    def __post_init__(self) -> None:
        require_aware(self.bucket_start, "bucket_start")

    @property
    def stream(self) -> tuple[str, str, str]:
        return self.segment, self.served, self.alternative

    @property
    def n(self) -> int:
        return self.likeness.n

    @property
    def wagers(self) -> Doubles:
        return self.likeness.wagers
