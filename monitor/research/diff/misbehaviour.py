"""What counts as misbehaviour of the two models of a diff, and what coherent language is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.research.answers.behaviour import Coherence, Judge
from monitor.research.diff.settings import DiffSettings
from monitor.research.diff.trials import Trials, question_means, questions, spread_out
from monitor.research.progress import Progress
from monitor.research.steering.measure import Judged, Likelihood, Measure
from monitor.values.arrays import Doubles
from monitor.values.prompts import Prompt

ANSWER_TOKENS: Final = 48
COHERENCE_PROMPTS: Final = 16
"""Answers that incoherence is counted over, one batch: its granularity is a sixteenth."""
COHERENCE_TEXTS: Final = 64
"""Benign texts that say what coherent language costs the base model; they are weighed for every rating."""


def misbehaviour(
    trials: Trials,
    settings: DiffSettings,
    judge: Callable[[], Judge] | None,
    reference: Callable[[], AbstractContextManager[LoadedModel]],
    benign: Sequence[Prompt],
    progress: Progress,
) -> Measure | None:
    """How the answers to questions of the testing half are measured; None where nothing is steered.

    Without a ``judge``, by the likelihoods of good and bad answers. The ``reference`` rates coherence,
    by ``benign`` texts. Raises `BadInput` for a row without both answers.
    """
    if settings.keep == "changed":
        return None
    steered = spread_out(trials.test, settings.steer_prompts)
    asked = [trial.question for trial in questions(steered)]
    if judge is not None:
        # A greedy answer to the same question is the same answer.
        return Judged(asked, judge, ANSWER_TOKENS)
    pairs = [trial.pair for trial in steered if trial.pair]
    if not trials.paired:
        raise BadInput(
            "what is misbehaviour? Some prompts lack response or bad_response",
            hint="give both in every row, or name a judge, or keep what changed (--keep changed)",
        )

    def coherence(answers: Sequence[Prompt]) -> Doubles:
        progress(f"rating the coherence of {len(answers)} answers")
        with reference() as loaded:
            return Coherence(loaded, some_of(benign)).of(answers)

    return Likelihood(
        [bad for _, bad in pairs],
        [good for good, _ in pairs],
        asked[:COHERENCE_PROMPTS],
        coherence,
        ANSWER_TOKENS,
        by_question=lambda values: question_means(values, steered),
    )


def some_of(benign: Sequence[Prompt]) -> Sequence[Prompt]:
    """About `COHERENCE_TEXTS` of them, evenly spread."""
    return benign[:: max(len(benign) // COHERENCE_TEXTS, 1)]
