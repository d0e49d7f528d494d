"""Evaluation prompts of a model diff: a question, the good answer, and the bad one where there is one.

One JSON object a line: ``messages``, and optionally ``response`` (the good answer) and ``bad_response``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monitor.errors import BadInput
from monitor.records import Prompt
from monitor.research.texts import chat_prompt, rows, text_field

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
    questions = list(dict.fromkeys(trial.prompt.messages for trial in trials))
    if len(questions) < LEAST_QUESTIONS:
        raise BadInput(
            f"{path}: {len(questions)} different questions, at least {LEAST_QUESTIONS} are needed",
            hint="one half chooses the candidates, the other half tests them",
        )
    order = np.random.default_rng(seed).permutation(len(questions))
    chosen = {questions[index] for index in order[: len(questions) // 2]}
    return (
        tuple(trial for trial in trials if trial.prompt.messages in chosen),
        tuple(trial for trial in trials if trial.prompt.messages not in chosen),
    )
