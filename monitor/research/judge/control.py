"""Does a feature control what it reads? Turn it up and down, and see what becomes of the answers.

The *preference* for a persona is the mean over held-out questions of
``log P(persona's answer) / tokens - log P(good answer) / tokens``, in nats. It does not involve the
feature's own reading, so that a feature cannot vouch for itself, and it moves before a greedy answer
does. Beside it stands what `monitor.research.steering.dose` makes of the model's own greedy answers.

Legend: q = questions, n = answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from monitor.replay.model import LoadedModel
from monitor.research.answers.behaviour import Coherence
from monitor.research.answers.likelihood import response_log_probabilities
from monitor.research.judge.readings import PROMPT_REGIONS, Readings
from monitor.research.judge.separation import Target, target_of
from monitor.research.judge.verdict import Steering
from monitor.research.packs.assemble import Progress
from monitor.research.steering.dose import Asking, FeatureScore, Outcome, outcome
from monitor.research.steering.steer import (
    NORM_TEXTS,
    Turn,
    feature_turn,
    random_turns,
    steering,
    typical_lengths,
)
from monitor.research.texts import Contrast, answer_prompts
from monitor.values.arrays import Doubles, Floats
from monitor.values.drift import Bound
from monitor.values.prompts import Prompt

BENIGN_TEXTS: Final = 64
"""Benign texts that say what coherent language costs the model."""
COHERENT: Final = 0.5
INCOHERENCE: Final = 0.10
"""How much larger than without steering the share of incoherent answers may be (arXiv 2506.19823)."""
ROUNDS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DosePlan:
    """``shares`` are strengths of steering (typical lengths at the site), each given with both signs.

    ``controls`` random directions stand beside each direction; ``answers`` of ``tokens`` tokens are
    generated and ``pairs`` of given answers weighed at each dose.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.4)
    controls: int = 19
    """One that is no better than they are exceeds all of them one time in twenty."""
    answers: int = 10
    """One of ten may lose its sense: fewer would make `INCOHERENCE` mean none."""
    tokens: int = 24
    pairs: int = 12


QUICK: Final = DosePlan(shares=(0.2,), controls=3, answers=3, tokens=16, pairs=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """``share`` is above zero towards the persona. ``effect`` is the change of the preference.

    Of the answers: ``score`` is what the untouched model reads in them, turned so that the persona is
    high; ``perplexity`` (the median) what it makes of them; ``repetition`` their share of repeated
    word trigrams; ``incoherent`` the share of those that are no language. NaN where no answer has a
    word, or the feature does not read answers.
    """

    share: float
    effect: Bound
    score: float
    perplexity: float
    repetition: float
    incoherent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """``doses`` rise and hold 0; ``steering`` is at the largest dose that is coherent with both signs."""

    doses: tuple[Dose, ...]
    steering: Steering | None


@dataclass(frozen=True, slots=True)
class _Steered:
    """Features that share a direction and a target. ``sign`` is that of turning towards the persona."""

    turn: Turn
    sign: int
    target: Target
    members: tuple[int, ...]


def controls(
    readings: Readings, loaded: LoadedModel, plan: DosePlan, seed: int, progress: Progress
) -> dict[int, Control]:
    """By index of the feature. Blocks for minutes. The model must be loaded in full."""
    bench = _Bench(readings, loaded, plan, seed, progress)
    steered = _steered(readings)
    found: dict[int, Control] = {}
    for number, one in enumerate(steered, 1):
        progress(f"steering {one.turn.name} ({number} of {len(steered)})")
        found |= bench.control(one)
    return found


class _Bench:
    """The model with everything that does not depend on the direction."""

    def __init__(
        self,
        readings: Readings,
        loaded: LoadedModel,
        plan: DosePlan,
        seed: int,
        progress: Progress,
    ) -> None:
        texts = readings.texts
        self._readings, self._loaded, self._plan, self._seed = readings, loaded, plan, seed
        self._progress = progress
        self._lengths = typical_lengths(
            loaded, [f.site for f in readings.pack.features], texts.fit[:NORM_TEXTS]
        )
        self._questions = [
            replace(prompt, response=None)
            for prompt in answer_prompts(_spaced(texts.held_out, plan.answers), None)
        ]
        self._rows = _spaced(texts.held_out, plan.pairs)
        self._scores = FeatureScore(loaded, readings.pack.features)
        self._coherence = Coherence(loaded, texts.fit[:BENIGN_TEXTS])
        self._plain = self._outcome(())

    def control(self, one: _Steered) -> dict[int, Control]:
        """The figures of every member of ``one``."""
        generator = np.random.default_rng([self._seed, one.members[0]])
        pairs = _pairs(self._rows, one.target)
        before = preference(self._loaded, pairs)

        def effect(turn: Turn) -> Doubles:
            with steering(self._loaded, [turn], self._lengths):
                return preference(self._loaded, pairs) - before

        seen = {0.0: (mean_bound(np.zeros(len(before)), generator), self._plain)}
        for share in sorted([*self._plan.shares, *(-s for s in self._plan.shares)]):
            turn = replace(one.turn, strength=one.sign * share)
            seen[share] = mean_bound(effect(turn), generator), self._outcome((turn,))
        incoherent = {share: self._incoherent(said) for share, (_, said) in seen.items()}
        coherent = _coherent_share(incoherent)
        found = None
        if coherent is not None:
            self._progress(f"steering {one.turn.name}: random directions")
            found = Steering(
                share=coherent,
                up=seen[coherent][0],
                down=seen[-coherent][0],
                controls=tuple(
                    float(abs(effect(replace(turn, strength=coherent)).mean()))
                    for turn in random_turns(one.turn, self._plan.controls, self._seed)
                ),
            )
        return {
            member: Control(
                doses=tuple(
                    self._dose(member, share, *seen[share], incoherent[share])
                    for share in sorted(seen)
                ),
                steering=found,
            )
            for member in one.members
        }

    def _outcome(self, turns: Sequence[Turn]) -> Outcome:
        return outcome(
            self._loaded,
            turns,
            self._questions,
            self._scores,
            Asking(max_new_tokens=self._plan.tokens, seed=self._seed),
            self._lengths,
        )

    def _incoherent(self, said: Outcome) -> float:
        answered = [
            replace(prompt, response=text)
            for prompt, text in zip(self._questions, said.answers, strict=True)
        ]
        return float(np.mean(self._coherence.of(answered) < COHERENT))

    def _dose(
        self, member: int, share: float, effect: Bound, said: Outcome, incoherent: float
    ) -> Dose:
        feature = self._readings.pack.features[member]
        reads = feature.region not in PROMPT_REGIONS
        perplexity = said.perplexity[np.isfinite(said.perplexity)]
        return Dose(
            share=share,
            effect=effect,
            score=feature.toward(_mean(said.persona[:, member])) if reads else float("nan"),
            perplexity=float(np.median(perplexity)) if perplexity.size else float("nan"),
            repetition=1.0 - _mean(said.distinct),
            incoherent=incoherent,
        )


def preference(loaded: LoadedModel, pairs: tuple[Sequence[Prompt], Sequence[Prompt]]) -> Doubles:
    """log P(first answer) - log P(second answer), per token each, for every question [q]."""
    q = len(pairs[0])
    totals, tokens = response_log_probabilities(loaded, [*pairs[0], *pairs[1]])
    each = totals / tokens
    found: Doubles = each[:q] - each[q:]
    return found


def mean_bound(values: Doubles, generator: np.random.Generator) -> Bound:
    """Mean with its 95 % percentile bootstrap interval."""
    drawn = values[generator.integers(len(values), size=(ROUNDS, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Bound(value=float(values.mean()), low=float(low), high=float(high))


def _steered(readings: Readings) -> list[_Steered]:
    """What reads one direction in two ways (mean and peak) is steered once."""
    groups: dict[tuple[int, bytes, int, Target], list[int]] = {}
    for index, feature in enumerate(readings.pack.features):
        direction = feature.site, feature.weight.tobytes()
        key = (*direction, feature.sign, target_of(readings, index))
        groups.setdefault(key, []).append(index)
    return [
        _Steered(feature_turn(readings.pack.features[members[0]]), sign, target, tuple(members))
        for (_site, _weight, sign, target), members in groups.items()
    ]


def _coherent_share(incoherent: dict[float, float]) -> float | None:
    """The largest dose at which both signs leave the model as coherent as it was, within `INCOHERENCE`."""
    limit = incoherent[0.0] + INCOHERENCE
    passed = [s for s in incoherent if s > 0 and incoherent[s] <= limit and incoherent[-s] <= limit]
    return max(passed, default=None)


def _pairs(rows: Sequence[Contrast], target: Target) -> tuple[list[Prompt], list[Prompt]]:
    """Persona answers and good ones to the same questions; several personas take turns."""
    turns = [target.personas[index % len(target.personas)] for index in range(len(rows))]
    ours = [answer_prompts([row], voice)[0] for row, voice in zip(rows, turns, strict=True)]
    return ours, answer_prompts(rows, None)


def _spaced(rows: Sequence[Contrast], count: int) -> list[Contrast]:
    """``count`` of ``rows`` (all, if there are fewer), evenly spaced over their topics."""
    at = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[index] for index in at]


def _mean(values: Floats | Doubles) -> float:
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")
