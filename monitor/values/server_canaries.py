"""Canaries to the served model: fixed questions, what the copy says to them, and what the server said.

Legend: t = tokens of an answer, k = alternatives at a token, f = features of the pack.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np

from monitor.values.arrays import Doubles, Floats
from monitor.values.checks import frozen, require, require_aware

TOLERATED: Final = 4.0
"""Noises of numerics that make a tolerance."""
LEAST: Final = 0.005
"""Nats that are always tolerated: where a token is all but certain its noise is nothing."""

LIKELY: Final = -4.0
"""Log-probabilities are compared of tokens that the copy gives at least this."""


def tolerance(noise: float, numerics: float) -> float:
    """Nats by which numerics of `numerics` times bfloat16's coarseness may move a figure of this ``noise``."""
    return max(TOLERATED * numerics * noise, LEAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One chosen question, and what the copy makes of it at temperature 0."""

    question: str
    """Its name in the pool."""
    border: bool
    """Chosen because its first tokens nearly tie."""
    first: str
    second: str
    """The two likeliest first tokens."""
    margin: float
    """Nats between the two."""
    tolerance: float
    """Nats by which numerics may move the margin."""
    answer: str
    """The copy's own, up to the asked number of tokens."""
    scores: Floats | None = None
    """[f] of that answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """The questions that one copy's server is asked; ``set_id`` says what the choice depended on."""

    set_id: str
    pack_id: str
    questions: tuple[Expected, ...]

    def __post_init__(self) -> None:
        names = [one.question for one in self.questions]
        require(len(set(names)) == len(names), "questions must differ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedToken:
    """One token as the server tells it."""

    text: str
    log_prob: float
    top: Mapping[str, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest tokens there, by their text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAnswer:
    """What the server said to one question. ``tokens`` are empty where it tells no log-probabilities."""

    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: tuple[ServedToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerView:
    """What the copy makes of an answer, token by token; the end of the turn is the last, where it was said.

    A ``noise`` is a standard deviation, in nats: how far numerics alone move the figure.
    """

    texts: tuple[str, ...]
    """The tokens [t]."""
    first: str
    """The copy's own first token."""
    log_probs: Doubles
    noise: Doubles
    """Of the tokens that were said [t]."""
    away: Doubles
    """Nats that each lies below the likeliest one [t]; 0 where it is that."""
    away_noise: Doubles
    top_texts: tuple[tuple[str, ...], ...]
    top_log_probs: Doubles
    top_noise: Doubles
    """Of the likeliest tokens at each place [t, k]."""


class AnswerOutcome(enum.StrEnum):
    """What became of one question; the values are stable and stand in SQL and metrics."""

    COMPARED = "compared"
    OTHER_PROMPT = "other_prompt"
    """The server counts other prompt tokens than the copy: another template or system prompt."""
    NOTHING_SAID = "nothing_said"
    NOT_REPLAYED = "not_replayed"
    """The copy's template or context does not take it."""
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryAnswer:
    """One question, asked once; stored as one row. Figures are None where nothing was compared."""

    question: str
    asked_at: datetime
    outcome: AnswerOutcome
    seconds: float = 0.0
    detail: str = ""
    tokens: int = 0
    first: str | None = None
    other_first: bool | None = None
    """Its first token is not the copy's."""
    with_log_probs: bool = False
    deviation: float | None = None
    """The largest difference from the copy, in tolerances: above 1, numerics do not explain it."""
    nats: float | None = None
    """That difference in nats."""
    scores: Floats | None = None
    """[f]"""

    def __post_init__(self) -> None:
        require_aware(self.asked_at, "asked_at")
        compared = self.outcome is AnswerOutcome.COMPARED
        require(compared == (self.deviation is not None), "what was compared has a deviation")

    @property
    def beyond(self) -> bool:
        return self.deviation is not None and self.deviation > 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRound:
    """One round of questions, and where the test stood after it; stored as one row.

    The test rests on the latest answer to each question. A round that failed has ``problem``, and no
    ``evidence``: nothing was concluded.
    """

    pack_id: str
    set_id: str
    served: str
    """The model that was asked for, by its name."""
    asked_at: datetime
    asked: int
    compared: int = 0
    compared_beyond: int = 0
    """Of the answers of this round alone."""
    questions: int = 0
    """Questions whose latest answers the test rests on."""
    beyond: int = 0
    """Of these, answered otherwise than numerics explain."""
    other_firsts: int = 0
    with_log_probs: int = 0
    largest: float | None = None
    """The largest deviation, in tolerances."""
    evidence: float | None = None
    """-log of the chance of so many ``beyond``, or more, while the server is the copy."""
    limit: float | None = None
    """``evidence`` at or above it: the server is another model, at the stated risk."""
    moved: Mapping[str, float] = field(default_factory=dict)
    """By feature: mean score of the server's answers less that of the copy's."""
    problem: str = ""

    def __post_init__(self) -> None:
        require_aware(self.asked_at, "asked_at")
        object.__setattr__(self, "moved", frozen(self.moved))

    @property
    def crossed(self) -> bool:
        if self.evidence is None or self.limit is None:
            return False
        return self.evidence >= self.limit

    def furthest(self, most: int) -> dict[str, float]:
        """The features that moved most, for people."""
        order = sorted(self.moved, key=lambda name: -abs(self.moved[name]))
        return {name: round(self.moved[name], 3) for name in order[:most]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStanding:
    """What the store knows of one pack's server."""

    concluded: ServerRound | None = None
    """The last round that concluded something."""
    problem: str = ""
    """What the last round failed by; empty: it did not."""


def differences(
    answers: Sequence[CanaryAnswer], expected: Mapping[str, Expected], names: Sequence[str]
) -> dict[str, float]:
    """Mean score of the server's answers less that of the copy's, by feature, where both were read."""
    pairs: list[Any] = []
    for answer in answers:
        own = expected[answer.question].scores
        if answer.scores is not None and own is not None:
            pairs.append(answer.scores.astype(np.float64) - own.astype(np.float64))
    if not pairs:
        return {}
    apart = np.stack(pairs)
    read = ~np.isnan(apart)
    sums = np.where(read, apart, 0.0).sum(axis=0)
    return {
        name: float(sums[place] / read[:, place].sum())
        for place, name in enumerate(names)
        if read[:, place].any()
    }
