"""What a steered model says: persona, likelihood and repetition of its answers.

All three are measured by the unsteered model. They belong together: a strong enough push in any
direction changes every reading, and what it leaves is no language. Perplexity sees word salad and not
loops, which are likely once begun; the share of distinct n-grams sees loops.

Legend: n = prompts, k = persona readings of one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from monitor.replay.model import LoadedModel
from monitor.replay.taps import steered
from monitor.research.answers.generate import answered_under, answers
from monitor.research.answers.likelihood import Weigh, response_log_probabilities
from monitor.research.progress import Progress, quiet
from monitor.research.steering.steer import Turn, edits
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


def outcomes(
    loaded: LoadedModel,
    series: Sequence[Sequence[Turn]],
    prompts: Sequence[Prompt],
    persona: Persona,
    asking: Asking,
    lengths: Mapping[int, float],
    progress: Progress = quiet,
) -> list[Outcome]:
    """Answer ``prompts`` under each of ``series``, then look at the answers without them.

    Greedy answers of all series are decoded together; drawn ones series by series, each from the seed. Raises `ModelError`
    where the model, steered or not, gives logits that are not finite.
    """
    branches = [edits(loaded, turns, lengths) for turns in series]
    if asking.temperature == 0.0:
        progress(f"answering {len(prompts)} prompts in {len(branches)} ways")
        said = [
            [replace(p, response=p.response or "") for p in given]
            for given in answered_under(loaded, branches, prompts, asking.max_new_tokens)
        ]
    else:
        said = []
        for number, branch in enumerate(branches, 1):
            progress(f"answering {number} of {len(branches)}")
            with steered(loaded.blocks, branch):
                texts = answers(
                    loaded,
                    prompts,
                    max_new_tokens=asking.max_new_tokens,
                    temperature=asking.temperature,
                    seed=asking.seed,
                )
            said.append([replace(p, response=t) for p, t in zip(prompts, texts, strict=True)])
    return outcomes_of(said, persona, partial(response_log_probabilities, loaded))


def outcomes_of(said: Sequence[Sequence[Prompt]], persona: Persona, weigh: Weigh) -> list[Outcome]:
    """What a model that is not steered makes of each series of prompts with their answers; all are read together."""
    whole = [prompt for series in said for prompt in series]
    texts = [prompt.response or "" for prompt in whole]
    perplexity = np.full(len(whole), np.nan)
    spoken = [index for index, text in enumerate(texts) if text]
    if spoken:
        sums, tokens = weigh([whole[index] for index in spoken])
        perplexity[spoken] = np.exp(-sums / tokens)
    read = persona(whole)
    distinct = np.array([distinct_share(text) for text in texts])
    found, start = [], 0
    for series in said:
        here = slice(start, start + len(series))
        found.append(
            Outcome(
                answers=tuple(texts[here]),
                persona=read[here],
                perplexity=perplexity[here],
                distinct=distinct[here],
            )
        )
        start = here.stop
    return found


def distinct_share(text: str) -> float:
    """Distinct word trigrams over all of them (distinct-3; Li et al. 2016, arXiv 1510.03055)."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return len(set(grams)) / len(grams) if grams else np.nan
