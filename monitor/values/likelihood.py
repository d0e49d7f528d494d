"""How likely answers are under laws of many temperatures and top_p, where nobody says which it was.

Array legend: g = temperatures × top_p, the temperatures outermost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.checks import require, require_aware
from monitor.values.prompts import Sampling

TEMPERATURES: Final = (
    *(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05),
    *(1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0),
)
"""What servers are set to, and near enough to one another for a parabola between them."""
TOP_PS: Final = (1.0, 0.99, 0.98, 0.95, 0.92, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
GRID: Final = len(TEMPERATURES) * len(TOP_PS)
INTERVAL: Final = timedelta(minutes=10)
"""Of the sums that are kept. What is kept of a partition and served model in it is about 2 KiB, whatever the traffic."""


LEAST_VARIANCE: Final = 1e-6
"""Of an answer's surprise, in nats²: a law that leaves no chance has none."""
MOST_SQUARE: Final = 16.0
"""The most that one answer's z² counts. Text that is split otherwise than it was drawn holds tokens that top_p never leaves. Uncapped,
one such answer in a hundred raised the mean, which is 1 under one law, to 3.7."""


def squares_of(excess: Doubles, variance: Doubles) -> Doubles:
    """z² [g] of one answer's centred surprise; ``excess`` and ``variance`` [g] are its sums."""
    found: Doubles = np.minimum(excess**2 / np.maximum(variance, LEAST_VARIANCE), MOST_SQUARE)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """One answer under each law of the grid."""

    tokens: int
    logs: Doubles
    """Log-likelihoods [g]."""
    squares: Doubles
    """z² [g] of its centred surprise (`squares_of`): 1 in the mean under the law that it was drawn by."""

    def __post_init__(self) -> None:
        require(self.tokens > 0, "a likelihood needs at least one token")
        for name in ("logs", "squares"):
            require(getattr(self, name).shape == (GRID,), f"{name}: one number for each law")


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihoods:
    """What those of several answers add up to; additive."""

    n: int = 0
    tokens: int = 0
    logs: Doubles = field(default_factory=lambda: np.zeros(GRID))
    squares: Doubles = field(default_factory=lambda: np.zeros(GRID))

    def __add__(self, other: Likelihoods | Likelihood) -> Likelihoods:
        return Likelihoods(
            n=self.n + (other.n if isinstance(other, Likelihoods) else 1),
            tokens=self.tokens + other.tokens,
            logs=self.logs + other.logs,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LawBucket:
    """Sums of one `INTERVAL`, partition and served model; additive."""

    bucket_start: datetime
    source: str
    served: str
    """``model@revision``, as the records name it."""
    sums: Likelihoods

    def __post_init__(self) -> None:
        require_aware(self.bucket_start, "bucket_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedLaw:
    """Temperature and top_p that a baseline's answers were drawn with, and how far they may be off."""

    temperature: float
    """The likeliest; ``low`` and ``high`` bound it."""
    low: float
    high: float
    top_p: float
    """The likeliest; ``top_p_high`` is the largest that is likely enough."""
    top_p_high: float
    spread: float
    """Mean z² of the answers under the likeliest law: 1 where one law drew them all."""
    n: int
    """Answers that it rests on."""
    tokens: int

    def __post_init__(self) -> None:
        require(0.0 < self.low <= self.temperature <= self.high, "temperature: outside its bounds")
        require(0.0 < self.top_p <= self.top_p_high <= 1.0, "top_p: outside its bounds")

    def __str__(self) -> str:
        bounds = f"{self.low:.3g} to {self.high:.3g}"
        cut = f"{self.top_p:g}"
        if self.top_p_high > self.top_p:
            cut += f" (up to {self.top_p_high:g})"
        return f"temperature {self.temperature:.3g} ({bounds}), top_p {cut}, from {self.n} answers"

    def likeliest(self, said: Sampling) -> Sampling:
        """How the answer was drawn whose record says ``said``: what its surprise is measured by."""
        return replace(said, temperature=self.temperature, top_p=self.top_p)

    def least_favourable(self, said: Sampling) -> Sampling:
        """The upper end of what is likely: what bets stand on, see `monitor.drift.law`."""
        return replace(said, temperature=self.high, top_p=self.top_p_high)

    def entry(self) -> dict[str, Any]:
        """As the store holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLaw:
    """None was estimated: of answers there were ``n``, and ``reason`` is a sentence for people."""

    reason: str
    n: int
    tokens: int

    def __str__(self) -> str:
        return self.reason

    def entry(self) -> dict[str, Any]:
        """As the store holds it."""
        return asdict(self)


def law_from(entry: dict[str, Any]) -> EstimatedLaw | NoLaw:
    """What `entry` was made of."""
    return NoLaw(**entry) if "reason" in entry else EstimatedLaw(**entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """An answer whose record does not say how it was drawn, nor do the settings."""

    said: Sampling
    """What the record does say: its finish reason."""
    law: EstimatedLaw | None
    """That of the baseline in force; None: its likelihood under many laws is told, and nothing else."""


DrawnBy = Sampling | Untold
"""How an answer was drawn, as far as anybody says."""
