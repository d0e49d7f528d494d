"""How surprising an answer is to the copy that should have given it.

For a token x drawn from a law p, the entropy-centred surprise D = -log p(x) - H(p) has mean zero
whatever was asked (Var = Σ p (log p + H)²). A *bet* on another speaker is the likelihood ratio of a
tilted law q ∝ p^(1-λ), which is what p is at temperature 1/(1-λ), against p: its mean under p is
exactly 1, so products of bets are test martingales for any sequence of prompts (Ville). Another model's
tokens are less likely to p than p's own, as a hotter law's are.

Array legend: c = tilts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from monitor.values.arrays import Doubles
from monitor.values.checks import require, require_aware

TILTS: Final = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""λ of the bets. Small ones gather slowly and surely, large ones are for speakers far away. Halves of each
other, so that the powers of a law are products of its square roots."""
SLIP: Final = 1e-3
"""Share of tokens that a server may draw from the whole vocabulary, whatever top_p, top_k and min_p say: its
numerics put a token at the edge on the other side. The bets hold for any share up to this one."""
GIVEN_AWAY: Final = 0.1
"""Nats that a greedy token may lie below the most likely one and still be a tie, up to numerics."""
GREEDY_SLIP: Final = 0.01
"""Share of a greedy answer's tokens that a server's numerics may move beyond `GIVEN_AWAY`."""
GREEDY_RATES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares that the bets on greedy answers are for, one in the place of each tilt."""
WINDOW: Final = 16
"""Tokens of a stretch whose surprise is read by itself."""

Law = Literal["sampled", "greedy"]


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

    def __post_init__(self) -> None:
        require(self.tokens > 0, "surprise needs at least one token")
        require(self.log_bets.shape == (len(TILTS),), "one bet for each tilt")

    @property
    def z(self) -> float:
        """``excess`` in its own standard deviations; about N(0, 1) for the copy's own answers."""
        return self.excess / math.sqrt(self.variance) if self.variance > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityBucket:
    """What the weighed answers of one interval, segment, partition and served model add up to; additive.

    ``wagers`` [s] are the log gains of `monitor.drift.identity`.
    """

    bucket_start: datetime
    segment: str
    source: str
    served: str
    """``model@revision``, as the records name it."""
    n: int
    tokens: int
    excess: float
    variance: float
    off_support: int
    given_away: int
    wagers: Doubles

    def __post_init__(self) -> None:
        require_aware(self.bucket_start, "bucket_start")
