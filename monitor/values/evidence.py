"""An e-process: evidence that something was otherwise at some time since a fixed beginning.

Its mean is at most 1 at every stopping time while nothing was (`monitor.drift.discovery`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime

from monitor.values.checks import require, require_aware


@dataclass(frozen=True, slots=True, kw_only=True)
class EProcess:
    """Where the e-process of one stream stands; stored in the row of the stream's detector."""

    since: datetime
    """Its beginning. Nothing sets it back."""
    steps: int
    """Buckets with data taken in since then."""
    log_values: tuple[float, ...]
    """Log of what each bet holds at stake, in the order of the detector's."""
    log_e: float = 0.0
    """Log of the e-value: of the weighted average of the bets, with what they have not staked yet."""

    def __post_init__(self) -> None:
        require_aware(self.since, "since")
        require(self.steps >= 0, "steps counts buckets")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvidence:
    """One stream that an e-process runs on."""

    family: str
    """``drift``, ``twin``, ``identity`` or ``alternative``."""
    segment: str
    feature: str = ""
    served: str = ""
    alternative: str = ""
    since: datetime
    log_e: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Discoveries:
    """Which streams of one pack have changed, with a bounded share of false ones among them."""

    streams: tuple[StreamEvidence, ...]
    rate: float
    """``drift.false_discovery``."""
    line: float = math.inf
    """``log_e`` at or above it is a discovery."""
    found: tuple[StreamEvidence, ...] = field(init=False)
    """The strongest first."""

    def __post_init__(self) -> None:
        found = [stream for stream in self.streams if stream.log_e >= self.line]
        found.sort(key=lambda stream: -stream.log_e)
        object.__setattr__(self, "found", tuple(found))
