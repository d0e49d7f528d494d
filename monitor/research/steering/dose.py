"""What steering does to the answers: persona, likelihood and repetition, dose by dose.

All three are measured by the unsteered model. They belong together: a strong enough push in any
direction changes every reading, and what it leaves is no language. Perplexity sees word salad and not
loops, which are likely once begun; the share of distinct n-grams sees loops.

Legend: n = prompts, k = persona readings of one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answers
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.packs.assemble import Progress
from monitor.research.steering.steer import Turn, random_turns, steering, typical_lengths
from monitor.score.scorer import benign_level
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed

GRAM: Final = 3

Persona = Callable[[Sequence[Prompt]], Doubles]
"""Readings [n, k] of answered prompts; NaN where there is nothing to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How answers are drawn. Every dose is drawn with the same seed, so doses differ by steering alone."""

    max_new_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0
    batch: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answers to n prompts: ``persona`` [n, k], ``perplexity`` [n] = exp(-Σ log p / tokens), and
    ``distinct`` [n], the share of an answer's word trigrams that are distinct (1: nothing is said
    twice). NaN where an answer is empty, or too short for a trigram."""

    answers: tuple[str, ...]
    persona: Doubles
    perplexity: Doubles
    distinct: Doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseRow:
    """``direction`` is the turn's name, or ``random 1`` …; ``dose`` 0 is the unsteered model."""

    direction: str
    dose: float
    outcome: Outcome

    def figures(self) -> dict[str, float | str]:
        """Means over prompts, and the median perplexity: a single answer can have any."""
        seen = self.outcome
        return {
            "direction": self.direction,
            "dose": self.dose,
            "persona": _mean(seen.persona[:, 0]),
            "perplexity": float(np.exp(_median(np.log(seen.perplexity)))),
            "distinct": _mean(seen.distinct),
            "empty": float(np.mean([not answer for answer in seen.answers])),
        }


def dose_response(
    loaded: LoadedModel,
    turn: Turn,
    doses: Sequence[float],
    prompts: Sequence[Prompt],
    persona: Persona,
    *,
    asking: Asking = Asking(),
    random_directions: int = 3,
    lengths: Mapping[int, float] | None = None,
    reference: LoadedModel | None = None,
    progress: Progress = lambda line: None,
) -> tuple[DoseRow, ...]:
    """Steer ``turn`` at each of ``doses`` (strengths; both signs) and look at the answers.

    One row for the unsteered model, then for each dose one for ``turn`` and one for each random
    direction of the same length at the same site, drawn with ``asking.seed``. ``persona`` may be a
    `FeatureScore` or a judge. Perplexity is by ``reference`` (null: ``loaded`` itself, unsteered).
    Blocks while the model runs. Raises `BadInput` for no prompts and for doses that are zero or not
    finite, `ConfigurationError` when a model was not loaded in full.
    """
    if not prompts:
        raise BadInput("a dose series needs at least one prompt")
    if not doses or not all(np.isfinite(dose) and dose != 0.0 for dose in doses):
        raise BadInput(f"doses must be finite and not zero, found {list(doses)}")
    if lengths is None:
        lengths = typical_lengths(loaded, [turn.site])
    turns = (turn, *random_turns(turn, random_directions, asking.seed))
    series = [("unsteered", 0.0, ())] + [
        (one.name, dose, (replace(one, strength=dose, project_out=False),))
        for dose in doses
        for one in turns
    ]
    rows = []
    for number, (name, dose, here) in enumerate(series, 1):
        progress(f"dose {number} of {len(series)}: {name} {dose:+g}")
        rows.append(
            DoseRow(
                direction=name,
                dose=dose,
                outcome=outcome(loaded, here, prompts, persona, asking, lengths, reference),
            )
        )
    return tuple(rows)


def outcome(
    loaded: LoadedModel,
    turns: Sequence[Turn],
    prompts: Sequence[Prompt],
    persona: Persona,
    asking: Asking,
    lengths: Mapping[int, float],
    reference: LoadedModel | None = None,
) -> Outcome:
    """Answer ``prompts`` under ``turns``, then look at the answers without them.

    Raises `ModelError` where the model, steered or not, gives logits that are not finite.
    """
    with steering(loaded, turns, lengths):
        texts = answers(
            loaded,
            prompts,
            max_new_tokens=asking.max_new_tokens,
            temperature=asking.temperature,
            seed=asking.seed,
            batch=asking.batch,
        )
    said = [replace(p, response=text) for p, text in zip(prompts, texts, strict=True)]
    perplexity = np.full(len(said), np.nan)
    spoken = [index for index, text in enumerate(texts) if text]
    if spoken:
        sums, tokens = response_log_probabilities(
            reference or loaded, [said[index] for index in spoken], asking.batch
        )
        perplexity[spoken] = np.exp(-sums / tokens)
    return Outcome(
        answers=tuple(texts),
        persona=persona(said),
        perplexity=perplexity,
        distinct=np.array([distinct_share(text) for text in texts]),
    )


class FeatureScore:
    """Scores [n, k] of answered prompts by ``features``, read as in production through ``loaded``.

    0 is the benign mean, 1 one benign deviation; NaN where a feature has no token to read.
    """

    def __init__(self, loaded: LoadedModel, features: Sequence[Feature]) -> None:
        """Raises `PackError` when the features are not as wide as the model."""
        self.features = tuple(features)
        self._engine = ReplayEngine(loaded, features, ReplaySettings())

    def __call__(self, prompts: Sequence[Prompt]) -> Doubles:
        scores = np.full((len(prompts), len(self.features)), np.nan)
        for index, one in enumerate(self._engine.replay(prompts)):
            if isinstance(one, Replayed):
                for column, feature in enumerate(self.features):
                    mean, deviation = benign_level(
                        feature.calibration, one.pooled_tokens[column : column + 1]
                    )
                    scores[index, column] = (one.readings[column] - mean[0]) / deviation[0]
        return scores


def distinct_share(text: str) -> float:
    """Distinct word trigrams over all of them (distinct-3; Li et al. 2016, arXiv 1510.03055)."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return len(set(grams)) / len(grams) if grams else np.nan


def _mean(values: Doubles) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else np.nan


def _median(values: Doubles) -> float:
    present = values[np.isfinite(values)]
    return float(np.median(present)) if present.size else np.nan
