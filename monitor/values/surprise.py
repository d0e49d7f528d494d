"""How surprising an answer is to the copy that should have given it.

For a token x drawn from a law p, the entropy-centred surprise D = -log p(x) - H(p) has mean zero
whatever was asked (Var = Σ p (log p + H)²). A *bet* on another speaker is the likelihood ratio of a
tilted law q ∝ p^(1-λ), which is what p is at temperature 1/(1-λ), against p: its mean under p is
exactly 1, so products of bets are test martingales for any sequence of prompts (Ville). Another model's
tokens are less likely to p than p's own, as a hotter law's are.

A log holds text, not tokens, so a bet on one token is capped at c, and its price is taken off (Huber, Annals of
Mathematical Statistics 36, 1965): with m the mean of min(q/p, c) under p, min(q/p, c) / ((1 - s) m + s c) has a mean
of at most 1 under every mixture (1 - s) p + s r, whatever r is.

Array legend: c = tilts.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.checks import frozen, require, require_aware
from monitor.values.evidence import EProcess
from monitor.values.likelihood import Likelihood
from monitor.values.likeness import Likened

TILTS: Final = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""λ of the bets. Small ones gather slowly and surely, large ones are for speakers far away. Halves of each
other, so that the powers of a law are products of its square roots."""
OTHER_TOKENS: Final = 0.01
"""Share of tokens that need not be what the model said, whatever they are: a log holds text, and the tokenizer may
split it otherwise. The bets hold for any share up to this one."""
OTHER_COUNTED: Final = 0.002
"""The same where the server counted as many tokens as there are, and the law is not sharp: what is split otherwise then
has as many tokens by chance, and each is merely unlikely. Measured, with each topic alone, in `benchmarks.identity`."""
CAPS: Final = tuple(math.exp(min(max(8 * tilt, 0.25), 1.5)) for tilt in TILTS)
"""The most that a bet of each tilt may win on one token. Without a cap one odd token could win whatever it likes;
with it `OTHER_TOKENS` of them cost a price (Huber's robust test)."""
OTHER_ANSWERS: Final = 0.01
"""Share of unchecked answers that need not be what the model said in any token: odd tokens come together, in answers
of rare words, names and mixed languages. The wagers on such answers hold for any share up to this one."""
MOST: Final = 100.0
"""The most that an unchecked answer may win (log MOST nats), for which `OTHER_ANSWERS` of them cost a price."""
SLIP: Final = 1e-3
"""Share of tokens that a server may draw from the whole vocabulary, whatever top_p, top_k and min_p say: its
numerics put a token at the edge on the other side. The bets hold for any share up to this one."""
GIVEN_AWAY: Final = 0.1
"""Nats that a greedy token may lie below the most likely one and still be a tie, up to numerics."""
GREEDY_SLIP: Final = 0.01
"""Share of a greedy answer's tokens that a server's numerics may move beyond `GIVEN_AWAY`."""
GREEDY_RETOLD: Final = 0.05
"""The same of an unchecked answer, whose text the tokenizer may have split otherwise: two to four tokens of 48 in one
answer in five, as measured."""
GREEDY_RATES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares that the bets on greedy answers are for, one in the place of each tilt."""
WINDOW: Final = 16
"""Tokens of a stretch whose surprise is read by itself."""

Law = Literal["sampled", "greedy"]
Said = Literal["record", "settings", "baseline"]
_SAID: Final[Mapping[Said, str]] = {"record": "", "settings": "_assumed", "baseline": "_estimated"}


def greedy_bets(given_away: int, tokens: int, slip: float) -> Doubles:
    """Log bets [c] on shares of tokens given away, against at most ``slip`` of them."""
    rates = np.maximum(GREEDY_RATES, slip)
    gained = given_away * np.log(rates / slip)
    lost = (tokens - given_away) * np.log((1 - rates) / (1 - slip))
    bets: Doubles = gained + lost
    return bets


class NotWeighed(enum.StrEnum):
    """Why an answer of the chosen share was not weighed; the values are stable and stand in SQL and metrics.

    What is left out is counted and never guessed at. None of the reasons depends on how likely the answer
    was but `OTHER_TOKENS`, which leaves out rather surprising answers: the bets stay fair.
    """

    NO_ANSWER = "no_answer"
    SAMPLING_UNKNOWN = "sampling_unknown"
    """Neither the record nor ``identity.temperature`` says how it was drawn, and no approved baseline
    estimated it."""
    STEERED = "steered"
    """A grammar, a schema, a bias or a forced call changed the law."""
    STOP_SEQUENCE = "stop_sequence"
    """It may have ended in a stop sequence, which no log holds."""
    TOOL_CALLS = "tool_calls"
    """A parser took the calls apart; the template's spelling of them need not be the model's."""
    REASONING_MISSING = "reasoning_missing"
    MEDIA = "media"
    """The prompt held images, audio or files."""
    CUT = "cut"
    """Longer than ``replay.max_tokens``."""
    STAND_IN = "stand_in"
    """The chat template has no form for a part of it."""
    OTHER_TOKENS = "other_tokens"
    """The server counted other numbers of tokens."""
    REPEATED = "repeated"
    """The same question again in one chunk: the answer may be no draw of its own. Of equal questions the first
    counts, not the first of each answer: that would keep rare answers and drop common ones."""
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surprise:
    """One answer under the copy's law. Sums are in nats; ``log_bets`` [c] are those of `TILTS`.

    Of a greedy answer ``excess`` is the log-probability given away against the most likely tokens, there
    is no variance, and the bets are on the share of tokens beyond `GIVEN_AWAY`, against `GREEDY_SLIP`.
    """

    law: Law
    tokens: int
    excess: float
    variance: float
    peak: float
    """The largest z of `WINDOW` tokens in a row (of the whole answer where it is shorter)."""
    off_support: int
    """Tokens that the stated parameters could not have drawn."""
    given_away: int
    """Tokens of a greedy answer that were not the most likely one, by more than `GIVEN_AWAY`."""
    log_bets: Doubles
    """The end of the answer is bet on as well: see `monitor.replay.surprise`."""
    counted_bets: Doubles | None = None
    """The same [c] at the price of `OTHER_COUNTED`, not of `OTHER_TOKENS`; None of a greedy answer, whose bets have no price."""
    said_by: Said = "record"
    """Who says temperature and top_p: where the record does not, the settings, or the baseline's estimate."""
    likelihood: Likelihood | None = None
    """Of an answer whose law is the baseline's estimate, for the next baseline."""
    likened: Mapping[str, Likened] = field(default_factory=dict)
    """By name, the alternatives that weighed it too (``identity.alternatives``)."""
    sharp: bool = False
    """Its law is: an odd token looks next to impossible (`monitor.values.prompts.Sampling.sharp`)."""
    counted: bool = False
    """The server counted as many tokens as the text is split into."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "likened", frozen(self.likened))
        require(self.tokens > 0, "surprise needs at least one token")
        for bets in (self.log_bets, self.counted_bets):
            require(bets is None or bets.shape == (len(TILTS),), "one bet for each tilt")

    @property
    def unchecked(self) -> bool:
        """Nothing says that its tokens are those that were drawn, and any that is not looks next to impossible."""
        return self.sharp and not self.counted

    @property
    def staked(self) -> Doubles:
        """The bets [c] at the price of the odd tokens that such an answer may have."""
        if self.counted_bets is not None and self.counted and not self.sharp:
            return self.counted_bets
        return self.log_bets

    @property
    def z(self) -> float:
        """``excess`` in its own standard deviations; about N(0, 1) for the copy's own answers."""
        return self.excess / math.sqrt(self.variance) if self.variance > 0 else 0.0


Weighed = Surprise | Likelihood | NotWeighed
"""What became of an answer that was to be weighed. A `Likelihood` alone: its law is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the answers of some interval add up to; additive."""

    n: int = 0
    """Answers weighed."""
    left_out: int = 0
    """Answers of the chosen share that were not; see `NotWeighed`."""
    tokens: int = 0
    """Of answers that were drawn; ``excess``, ``variance`` and ``off_support`` are of these."""
    excess: float = 0.0
    variance: float = 0.0
    off_support: int = 0
    counted_tokens: int = 0
    """Of drawn answers of which the server counted as many tokens; ``counted_excess`` and ``counted_variance`` are of these."""
    counted_excess: float = 0.0
    counted_variance: float = 0.0
    greedy_tokens: int = 0
    """Of answers at temperature 0; ``given_away`` is of these."""
    given_away: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            n=self.n + other.n,
            left_out=self.left_out + other.left_out,
            tokens=self.tokens + other.tokens,
            excess=self.excess + other.excess,
            variance=self.variance + other.variance,
            off_support=self.off_support + other.off_support,
            counted_tokens=self.counted_tokens + other.counted_tokens,
            counted_excess=self.counted_excess + other.counted_excess,
            counted_variance=self.counted_variance + other.counted_variance,
            greedy_tokens=self.greedy_tokens + other.greedy_tokens,
            given_away=self.given_away + other.given_away,
        )

    @property
    def z(self) -> float:
        """``excess`` in its standard deviations; NaN where nothing was drawn."""
        return self.excess / math.sqrt(self.variance) if self.variance > 0 else math.nan


def outcome_of_weighing(weighed: Weighed) -> str:
    """As it stands in SQL and metrics: ``sampled``, ``greedy``, or why the answer was not weighed.

    ``sampled_assumed`` and ``greedy_assumed`` where the settings said how it was drawn, ``sampled_estimated``
    where the baseline did.
    """
    if isinstance(weighed, NotWeighed):
        return weighed.value
    if isinstance(weighed, Likelihood):
        return NotWeighed.SAMPLING_UNKNOWN.value
    return f"{weighed.law}{_SAID[weighed.said_by]}"


def tally_of(surprise: Surprise) -> Tally:
    """One answer's."""
    if surprise.law == "greedy":
        return Tally(n=1, greedy_tokens=surprise.tokens, given_away=surprise.given_away)
    drawn = Tally(
        n=1,
        tokens=surprise.tokens,
        excess=surprise.excess,
        variance=surprise.variance,
        off_support=surprise.off_support,
    )
    if not surprise.counted:
        return drawn
    return replace(
        drawn,
        counted_tokens=drawn.tokens,
        counted_excess=drawn.excess,
        counted_variance=drawn.variance,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityBucket:
    """What the chosen answers of one interval, segment, partition and served model add up to; additive.

    ``wagers`` [s] are the summed log gains of `monitor.drift.identity`.
    """

    bucket_start: datetime
    segment: str
    source: str
    served: str
    """``model@revision``, as the records name it."""
    tally: Tally
    wagers: Doubles

    def __post_init__(self) -> None:
        require_aware(self.bucket_start, "bucket_start")

    @property
    def stream(self) -> tuple[str, str, str]:
        return self.segment, self.served, ""

    @property
    def n(self) -> int:
        return self.tally.n


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityState:
    """Where one test of a served model in a segment stands; stored whole, one row each."""

    segment: str
    served: str
    started_at: datetime
    last_bucket: datetime
    """Start of the last bucket taken in: those up to and including it are never taken again."""
    n: int
    """Answers taken in since ``started_at``."""
    log_values: tuple[float, ...]
    """Log of the e-detector of each share that is wagered on, in their order."""
    alternative: str = ""
    """Which registered model is bet on; empty: none by name (`monitor.drift.identity`)."""
    evidence: float = 0.0
    """Log of their average; 0 before the first answer."""
    limit: float = math.inf
    """``evidence`` at or above it: another model answers, at the promised run length."""
    process: EProcess | None = None
    """Beside it, from the beginning on; None: stored before there were any."""

    @property
    def stream(self) -> tuple[str, str, str]:
        return self.segment, self.served, self.alternative

    @property
    def crossed(self) -> bool:
        return self.evidence >= self.limit
