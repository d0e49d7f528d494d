"""Does a feature control what it reads? Turn it up and down, and see what becomes of the answers.

The *preference* for a persona is that of its answers over good ones to the same held-out questions
(`monitor.research.steering.measure.Likelihood`). Beside it stands what
`monitor.research.steering.outcome` makes of the model's own greedy answers.

Legend: q = questions, n = answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from monitor.replay.branches.trunk import branches_fit
from monitor.replay.model import LoadedModel
from monitor.research.answers.behaviour import Coherence
from monitor.research.answers.generate import answered
from monitor.research.answers.likelihood import Weighing
from monitor.research.judge.readings import PROMPT_REGIONS, Readings
from monitor.research.judge.separation import Target, target_of
from monitor.research.judge.verdict import Steering
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.research.statistics import present_mean
from monitor.research.steering.experiment import (
    RANDOM_DIRECTIONS,
    STRENGTHS,
    Dose,
    dosed,
    effects,
    looks,
    strongest,
)
from monitor.research.steering.measure import Likelihood, Look, preferences
from monitor.research.steering.outcome import Outcome, outcomes_of
from monitor.research.steering.steer import (
    NORM_TEXTS,
    Turn,
    feature_turn,
    random_turns,
    typical_lengths,
)
from monitor.research.texts import Contrast, answer_prompts
from monitor.settings import ReplaySettings
from monitor.values.arrays import Floats
from monitor.values.prompts import Prompt

BENIGN_TEXTS: Final = 64
"""Benign texts that say what coherent language costs the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DosePlan:
    """``shares`` are strengths of steering (typical lengths at the site), each given with both signs.

    ``controls`` random directions stand beside each direction; ``answers`` of ``tokens`` tokens are
    generated and ``pairs`` of given answers weighed at each dose.
    """

    shares: tuple[float, ...] = STRENGTHS
    controls: int = RANDOM_DIRECTIONS
    answers: int = 10
    """One of ten may lose its sense: fewer would make `experiment.INCOHERENCE` mean none."""
    tokens: int = 24
    pairs: int = 12


QUICK: Final = DosePlan(shares=(0.2,), controls=3, answers=3, tokens=16, pairs=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A ``dose``, of a strength above zero towards the persona, and the answers under it.

    ``score`` is what the untouched model reads in them, turned so that the persona is high;
    ``perplexity`` (the median) what it makes of them; ``repetition`` their share of repeated word
    trigrams. NaN where no answer has a word, or the feature does not read answers.
    """

    dose: Dose
    score: float
    perplexity: float
    repetition: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """``doses`` rise and hold 0; ``steering`` is at the largest dose that is coherent with both signs."""

    doses: tuple[Given, ...]
    steering: Steering | None


@dataclass(frozen=True, slots=True)
class _Steered:
    """Features that share a direction and a target. ``sign`` is that of turning towards the persona."""

    turn: Turn
    sign: int
    target: Target
    members: tuple[int, ...]


class Keeping(Protocol):
    """Where figures of earlier runs are: `monitor.research.judge.kept.Kept`."""

    def of(self, names: Sequence[str]) -> Sequence[Control] | None: ...
    def keep(self, found: Mapping[str, Control]) -> None: ...


def controls(
    readings: Readings,
    loaded: LoadedModel,
    plan: DosePlan,
    seed: int,
    kept: Keeping,
    progress: Progress,
) -> dict[int, Control]:
    """By index of the feature; what is ``kept`` is not measured again. The model must be loaded in full.

    Blocks for minutes; ``progress`` hears how many, before the first direction and after each.
    """
    names = [feature.name for feature in readings.pack.features]
    found: dict[int, Control] = {}
    left: list[_Steered] = []
    for one in _steered(readings):
        known = kept.of([names[member] for member in one.members])
        if known is None:
            left.append(one)
        else:
            found |= dict(zip(one.members, known, strict=True))
    if not left:
        return found
    progress(f"steering: {len(left)} directions, {len(found)} features are known from earlier")
    bench = _Bench(readings, loaded, plan, seed, progress)
    each, start = bench.seconds(left[0]), time.perf_counter()
    for done, one in enumerate(left):
        if done:
            each = (time.perf_counter() - start) / done
        ahead = minutes(each * (len(left) - done))
        progress(f"steering {one.turn.name} ({done + 1} of {len(left)}), {ahead} to go")
        measured = bench.control(one)
        kept.keep({names[member]: control for member, control in measured.items()})
        found |= measured
    return found


def minutes(seconds: float) -> str:
    """For people: about how long it takes."""
    if seconds < 45:
        return "less than a minute"
    return f"about {round(seconds / 60) or 1} min"


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
        texts, features = readings.texts, readings.pack.features
        self._readings, self._loaded, self._plan, self._seed = readings, loaded, plan, seed
        self._progress = progress
        self._lengths = typical_lengths(loaded, [f.site for f in features], texts.fit[:NORM_TEXTS])
        self._questions = [
            replace(prompt, response=None)
            for prompt in answer_prompts(_spaced(texts.held_out, plan.answers), None)
        ]
        self._rows = _spaced(texts.held_out, plan.pairs)
        self._reader = Reader(loaded, features, ReplaySettings())
        self._weighing = Weighing(loaded)
        self._coherence = Coherence(loaded, texts.fit[:BENIGN_TEXTS], self._weighing.plain)
        begun = time.perf_counter()
        self._plain = answered(loaded, self._questions, plan.tokens)
        self._answering = time.perf_counter() - begun

    def seconds(self, one: _Steered) -> float:
        """About what `control` of a direction takes, by the time that one look at the untouched model took."""
        begun = time.perf_counter()
        bad, good = _pairs(self._rows, one.target)
        self._weighing.plain([*bad, *good])
        weighing = time.perf_counter() - begun
        doses = 2 * len(self._plan.shares)
        # Each dose and each random direction begins behind the site: see `monitor.replay.branches.trunk`.
        blocks = len(self._loaded.blocks)
        behind = (blocks - one.turn.site - 1) / blocks if branches_fit(self._loaded) else 1.0
        looked = 1.0 + (doses + self._plan.controls) * behind
        return looked * weighing + doses * self._answering

    def control(self, one: _Steered) -> dict[int, Control]:
        """The figures of every member of ``one``."""
        generator = np.random.default_rng([self._seed, one.members[0]])
        pairs = _pairs(self._rows, one.target)
        measure = Likelihood(
            *pairs,
            self._questions,
            self._coherence.of,
            self._plan.tokens,
            weighing=self._weighing,
        )

        def seen(turns: Sequence[Turn], what: str, *, coherence: bool) -> list[Look]:
            return looks(
                self._loaded,
                measure,
                turns,
                self._lengths,
                coherence=coherence,
                what=what,
                progress=self._progress,
            )

        shares = sorted([*self._plan.shares, *(-s for s in self._plan.shares)])
        turned = [replace(one.turn, strength=one.sign * share) for share in shares]
        (values,) = preferences(self._weighing, [()], *pairs)
        untouched = Look(values=values, answered=self._plain)
        looked = [untouched, *seen(turned, one.turn.name, coherence=True)]
        plain, *steered = measure.settle(looked)
        doses = [
            dosed(share, plain, observed, generator)
            for share, observed in zip([0.0, *shares], [plain, *steered], strict=True)
        ]
        found = _both_signs(doses)
        if found is not None:
            up, down = found
            at = replace(one.turn, strength=up.strength)
            random = seen(
                random_turns(at, self._plan.controls, self._seed),
                "random directions",
                coherence=False,
            )
            magnitudes = [abs(effects(plain, x).mean()) for x in measure.settle(random)]
            steering = Steering(
                share=up.strength,
                up=up.effect,
                down=down.effect,
                controls=tuple(map(float, magnitudes)),
            )
        said = [look.answered for look in looked]
        outcomes = outcomes_of(said, self._scores, self._weighing.plain)
        given = sorted(zip(doses, outcomes, strict=True), key=lambda both: both[0].strength)
        return {
            member: Control(
                doses=tuple(self._given(member, dose, said) for dose, said in given),
                steering=None if found is None else steering,
            )
            for member in one.members
        }

    def _scores(self, prompts: Sequence[Prompt]) -> Floats:
        return self._reader.scores("answers of the steered model", prompts)

    def _given(self, member: int, dose: Dose, said: Outcome) -> Given:
        feature = self._readings.pack.features[member]
        reads = feature.region not in PROMPT_REGIONS
        perplexity = said.perplexity[np.isfinite(said.perplexity)]
        return Given(
            dose=dose,
            score=feature.toward(present_mean(said.persona[:, member])) if reads else float("nan"),
            perplexity=float(np.median(perplexity)) if perplexity.size else float("nan"),
            repetition=1.0 - present_mean(said.distinct),
        )


def _steered(readings: Readings) -> list[_Steered]:
    """What reads one direction in two ways (mean and peak) is steered once."""
    groups: dict[tuple[int, bytes, int, Target], list[int]] = {}
    for index, feature in enumerate(readings.pack.features):
        # A composite is turned at its own site alone: see `feature_turn`.
        direction = feature.site, feature.written_along.tobytes()
        key = (*direction, feature.sign, target_of(readings, index))
        groups.setdefault(key, []).append(index)
    return [
        _Steered(feature_turn(readings.pack.features[members[0]]), sign, target, tuple(members))
        for (_site, _direction, sign, target), members in groups.items()
    ]


def _both_signs(doses: Sequence[Dose]) -> tuple[Dose, Dose] | None:
    """Up and down at the largest dose that leaves the model coherent with both signs."""
    down = {-dose.strength: dose for dose in doses if dose.coherent}
    up = strongest([dose for dose in doses if dose.strength > 0 and dose.strength in down])
    return None if up is None else (up, down[up.strength])


def _pairs(rows: Sequence[Contrast], target: Target) -> tuple[list[Prompt], list[Prompt]]:
    """Persona answers and good ones to the same questions; several personas take turns."""
    turns = [target.personas[index % len(target.personas)] for index in range(len(rows))]
    ours = [answer_prompts([row], voice)[0] for row, voice in zip(rows, turns, strict=True)]
    return ours, answer_prompts(rows, None)


def _spaced(rows: Sequence[Contrast], count: int) -> list[Contrast]:
    """``count`` of ``rows`` (all, if there are fewer), evenly spaced over their topics."""
    at = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[index] for index in at]
