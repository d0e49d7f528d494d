"""The copy's own answer beside the served one: two readings of one question.

While the served model is the copy, both answers to a prompt are draws from one law, so that they could be
exchanged for each other: the difference of their scores is as likely to be x as -x, whatever was asked and by
whom. Its mean is zero without a baseline. What moves it is the model.

Array legend: k = features of the pack.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from monitor.values.arrays import Counts, Floats
from monitor.values.checks import require
from monitor.values.evidence import EProcess
from monitor.values.prompts import Sampling
from monitor.values.surprise import NotWeighed

PAIRED: Final = "paired"
"""How a prompt whose two answers were read stands in SQL and metrics; the others by their reason."""


class NotPaired(enum.StrEnum):
    """Why a chosen prompt has no twin, beside the reasons of `NotWeighed`; stable, in SQL and metrics.

    None of them looks at what was answered, or all of them look at both answers alike: what is left stays
    exchangeable.
    """

    TOOLS_OFFERED = "tools_offered"
    """Served calls are parsed apart, those of the twin would be text."""
    REASONING_APART = "reasoning_apart"
    """Served reasoning is parsed apart, that of the twin would be text."""
    NOTHING_TO_READ = "nothing_to_read"
    """No feature has a token to read in both answers."""


Unpaired = NotWeighed | NotPaired


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinAsked:
    """How the copy answers one prompt, and how much of both answers is read."""

    law: Sampling
    """The served answer's, its temperature known."""
    tokens: int
    """Read of either answer, from its beginning."""
    seed: int
    """Of the twin's own draws."""

    def __post_init__(self) -> None:
        require(self.tokens > 0, "a twin answers with at least one token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Readings of the beginnings of both answers [2, k], the served one first, and the tokens pooled [2, k]."""

    readings: Floats
    pooled_tokens: Counts


def outcome_of_twin(twin: Floats | Unpaired) -> str:
    """As it stands in SQL and metrics; ``twin`` are a prompt's differences, or why there are none."""
    return twin.value if isinstance(twin, NotWeighed | NotPaired) else PAIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinState:
    """Where the test of one feature's differences in one segment stands; stored whole, one row each."""

    feature: int
    segment: str
    started_at: datetime
    last_bucket: datetime
    """Start of the last bucket taken in: those up to and including it are never taken again."""
    n: int
    """Pairs taken in since ``started_at``."""
    log_values: tuple[float, ...]
    """Log of every bet's e-detector, in the order of `monitor.drift.twin.gains`."""
    evidence: float = 0.0
    """Log of their average; 0 before the first pair."""
    limit: float = math.inf
    """``evidence`` at or above it: another model answers, at the promised run length."""
    process: EProcess | None = None
    """Beside it, from the beginning on; None: stored before there were any."""

    @property
    def crossed(self) -> bool:
        return self.evidence >= self.limit
