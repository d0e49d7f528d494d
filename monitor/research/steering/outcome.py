"""What a steered model says: persona, likelihood and repetition of its answers.

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

from monitor.replay.model import LoadedModel
from monitor.research.answers.generate import answers
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.steering.steer import Turn, steering
from monitor.values.arrays import Doubles, Floats
from monitor.values.prompts import Prompt

GRAM: Final = 3

Persona = Callable[[Sequence[Prompt]], Floats | Doubles]
"""Readings [n, k] of answered prompts; NaN where there is nothing to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How answers are drawn. Every dose is drawn with the same seed, so doses differ by steering alone."""

    max_new_tokens: int = 48
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answers to n prompts: ``persona`` [n, k], ``perplexity`` [n] = exp(-Σ log p / tokens), and
    ``distinct`` [n], the share of an answer's word trigrams that are distinct (1: nothing is said
    twice). NaN where an answer is empty, or too short for a trigram."""

    answers: tuple[str, ...]
    persona: Floats | Doubles
    perplexity: Doubles
    distinct: Doubles


def outcome(
    loaded: LoadedModel,
    turns: Sequence[Turn],
    prompts: Sequence[Prompt],
    persona: Persona,
    asking: Asking,
    lengths: Mapping[int, float],
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
        )
    said = [replace(p, response=text) for p, text in zip(prompts, texts, strict=True)]
    return outcome_of(loaded, said, persona)


def outcome_of(reference: LoadedModel, said: Sequence[Prompt], persona: Persona) -> Outcome:
    """What ``reference``, which is not steered, makes of prompts with their answers."""
    texts = [prompt.response or "" for prompt in said]
    perplexity = np.full(len(said), np.nan)
    spoken = [index for index, text in enumerate(texts) if text]
    if spoken:
        sums, tokens = response_log_probabilities(reference, [said[index] for index in spoken])
        perplexity[spoken] = np.exp(-sums / tokens)
    return Outcome(
        answers=tuple(texts),
        persona=persona(said),
        perplexity=perplexity,
        distinct=np.array([distinct_share(text) for text in texts]),
    )


def distinct_share(text: str) -> float:
    """Distinct word trigrams over all of them (distinct-3; Li et al. 2016, arXiv 1510.03055)."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return len(set(grams)) / len(grams) if grams else np.nan
