"""Evaluation prompts of a model diff: a question, the good answer, and the bad one where there is one.

One JSON object a line: ``messages``, and optionally ``response`` (the good answer) and ``bad_response``.
Rows with the same messages are one question: a question is dealt, tested and drawn as a whole, for ten
answers to it are no ten witnesses.

Legend: n = rows, q = different questions.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from monitor.errors import BadInput
from monitor.research.texts import chat_prompt, rows, text_field
from monitor.values.prompts import Message, Prompt

Number = TypeVar("Number", bound=np.floating[Any])
LEAST_QUESTIONS = 16
"""Eight to choose by, eight to test by: of eight differences, all positive, the exact signed-rank
test gives p = 1/256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """``line`` is the number of its line in the file, from 1; ``prompt`` carries the good answer."""

    line: int
    prompt: Prompt
    bad_response: str | None = None

    @property
    def question(self) -> Prompt:
        return replace(self.prompt, response=None)

    @property
    def pair(self) -> tuple[Prompt, Prompt] | None:
        """The question with the good and with the bad answer; None unless both are given."""
        if self.prompt.response is None or self.bad_response is None:
            return None
        return self.prompt, replace(self.prompt, response=self.bad_response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Rows by their half: ``choose`` names candidates, ``test`` never saw that. ``sha256`` is the file's."""

    choose: tuple[Trial, ...]
    test: tuple[Trial, ...]
    sha256: str

    @property
    def all(self) -> tuple[Trial, ...]:
        return (*self.choose, *self.test)

    @property
    def paired(self) -> bool:
        """Whether every row has a good and a bad answer."""
        return all(trial.pair is not None for trial in self.all)

    @property
    def chosen_by(self) -> int:
        """How many different questions choose; they stand first among the `questions` of ``all``."""
        return len(questions(self.choose))


def by_question(trials: Sequence[Trial]) -> tuple[tuple[int, ...], ...]:
    """The places of each question's rows among ``trials``, in the order of the first ones: [q]."""
    places: dict[tuple[Message, ...], list[int]] = defaultdict(list)
    for index, trial in enumerate(trials):
        places[trial.prompt.messages].append(index)
    return tuple(map(tuple, places.values()))


def questions(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The first row of each different question: [q]."""
    return tuple(trials[places[0]] for places in by_question(trials))


def question_means(values: NDArray[Number], trials: Sequence[Trial]) -> NDArray[Number]:
    """``values`` [n, ...] of ``trials`` averaged over the rows of each question: [q, ...], same type."""
    rows_of = by_question(trials)
    if len(rows_of) == len(trials):
        return values
    means = [values[list(places)].mean(axis=0, dtype=np.float64) for places in rows_of]
    return np.stack(means).astype(values.dtype)


def spread_out(trials: Sequence[Trial], count: int) -> tuple[Trial, ...]:
    """``count`` of ``trials``: a row of every question before any question's second."""
    turns = sorted(
        (turn, place) for places in by_question(trials) for turn, place in enumerate(places)
    )
    return tuple(trials[place] for _, place in turns[:count])


def load_trials(path: Path, seed: int) -> Trials:
    """The rows of ``path`` dealt into halves by ``seed``; rows with the same messages stay together.

    Raises `BadInput` naming file, line and field, and when there are fewer than `LEAST_QUESTIONS`.
    """
    trials = []
    for number, (where, row) in enumerate(rows(path), 1):
        answers = {
            name: text_field(row, name, where)
            for name in ("response", "bad_response")
            if name in row
        }
        trials.append(
            Trial(
                line=number,
                prompt=chat_prompt(row, where, answers.get("response")),
                bad_response=answers.get("bad_response"),
            )
        )
    choose, test = _halves(trials, path, seed)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trials(choose=choose, test=test, sha256=digest)


def _halves(
    trials: Sequence[Trial], path: Path, seed: int
) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
    asked = [trial.prompt.messages for trial in questions(trials)]
    if len(asked) < LEAST_QUESTIONS:
        raise BadInput(
            f"{path}: {len(asked)} different questions, at least {LEAST_QUESTIONS} are needed",
            hint="one half chooses the candidates, the other half tests them",
        )
    order = np.random.default_rng(seed).permutation(len(asked))
    chosen = {asked[index] for index in order[: len(asked) // 2]}
    return (
        tuple(trial for trial in trials if trial.prompt.messages in chosen),
        tuple(trial for trial in trials if trial.prompt.messages not in chosen),
    )
