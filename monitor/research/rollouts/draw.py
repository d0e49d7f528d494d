"""Rollouts: the model's own answers under opposing instructions, and what a judge makes of them.

Every question of a trait is asked under every pair of instructions, several times, by sampling. An
answer is rated behind its question alone: neither the judge nor the pack ever reads the instruction.

Legend: n = rollouts, in the order of `planned`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import orjson

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.research.answers.behaviour import Judge
from monitor.research.answers.generate import answers
from monitor.research.contrast.directions import LEAST_TRAINING
from monitor.research.journal import HINT, journal
from monitor.research.progress import Progress
from monitor.research.texts import exchange
from monitor.research.traits import SPLITS, Split, Trait, instructed, takes_system
from monitor.values.arrays import Doubles
from monitor.values.prompts import Message, Prompt

SideName = Literal["positive", "negative"]
SIDES: Final[tuple[SideName, ...]] = ("positive", "negative")
RATED_AT_ONCE: Final = 64
Judges = Callable[[Trait], Judge]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How much is rolled out, and what is kept. Raises `BadInput` for what makes no sense.

    ``batch`` answers are drawn at once, with a seed made of ``seed`` and the batch's number: it is
    part of what decides the answers. An answer is kept when its persona rating is at least
    ``threshold`` (under the positive instruction; below it under the negative one) and its
    coherence at least ``least_coherence``; in each split at least ``least_questions`` questions of
    every trait must keep an answer of each side.
    """

    rollouts: int = 10
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    batch: int = 16
    threshold: float = 0.5
    least_coherence: float = 0.5
    least_questions: int = 5

    def __post_init__(self) -> None:
        for name in ("rollouts", "max_new_tokens", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1")
        if self.least_questions < LEAST_TRAINING:
            raise BadInput(
                f"least_questions must be at least {LEAST_TRAINING}: fewer leave nothing to choose a "
                "block by"
            )
        if not 0.0 <= self.temperature <= 10.0 or self.seed < 0:
            raise BadInput("temperature must be in 0..10, and seed not negative")
        if self.temperature == 0.0 and self.rollouts > 1:
            raise BadInput("at temperature 0 all rollouts are the same: roll out once")
        if not (0.0 <= self.threshold <= 1.0 and 0.0 <= self.least_coherence <= 1.0):
            raise BadInput("threshold and least_coherence must be in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One answer. ``pair``, ``question`` (in its split) and ``number`` count from 0."""

    trait: str
    split: Split
    pair: int
    side: SideName
    question: int
    number: int
    answer: str = ""

    def bare(self, traits: Mapping[str, Trait]) -> Prompt:
        """The question, without the instruction, and the answer."""
        question = traits[self.trait].questions(self.split)[self.question]
        return exchange((Message(role="user", content=question),), self.answer)

    def instructed(self, traits: Mapping[str, Trait], *, system: bool) -> Prompt:
        """The question under the instruction: a system message, or the beginning of the user's turn."""
        trait = traits[self.trait]
        instruction = getattr(trait.instructions[self.pair], self.side)
        question = trait.questions(self.split)[self.question]
        return instructed(question, instruction, system=system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """``persona`` and ``coherent`` [n] in 0..1; NaN where the judge had no opinion."""

    persona: Doubles
    coherent: Doubles


def planned(traits: Sequence[Trait], settings: RolloutSettings) -> list[Rollout]:
    """Every rollout, not yet answered."""
    return [
        Rollout(
            trait=trait.name, split=split, pair=pair, side=side, question=question, number=number
        )
        for trait in traits
        for split in SPLITS
        for pair in range(len(trait.instructions))
        for side in SIDES
        for question in range(len(trait.questions(split)))
        for number in range(settings.rollouts)
    ]


def rolled_out(
    loaded: LoadedModel,
    traits: Sequence[Trait],
    settings: RolloutSettings,
    path: Path,
    progress: Progress = lambda line: None,
) -> list[Rollout]:
    """The planned rollouts, answered; kept in ``path`` batch by batch, and continued from there.

    Blocks while the model answers. A run that was killed and continued gives the same answers as one
    that was not. Raises `BadInput` when ``path`` was begun with another model, traits or settings.
    """
    work = planned(traits, settings)
    by_name = {trait.name: trait for trait in traits}
    system = takes_system(loaded)
    with journal(path, _header(loaded, traits, settings)) as kept:
        whole = len(kept.rows) if len(kept.rows) == len(work) else None
        kept.keep(whole or len(kept.rows) // settings.batch * settings.batch)
        found = [_matching(row, plan, path) for row, plan in zip(kept.rows, work, strict=False)]
        for start in range(len(found), len(work), settings.batch):
            progress(f"rollouts: {start} of {len(work)}, {work[start].trait} {work[start].side}")
            batch = work[start : start + settings.batch]
            seed = np.random.SeedSequence([settings.seed, start]).generate_state(1)[0]
            texts = answers(
                loaded,
                [one.instructed(by_name, system=system) for one in batch],
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=int(seed),
                batch=settings.batch,
            )
            batch = [replace(one, answer=text) for one, text in zip(batch, texts, strict=True)]
            kept.append([asdict(one) for one in batch])
            found += batch
    return found


def rated(
    rollouts: Sequence[Rollout],
    traits: Sequence[Trait],
    judges: Mapping[str, Judge],
    path: Path,
    progress: Progress = lambda line: None,
) -> Ratings:
    """Each rollout rated by the judge of its trait's name; kept in ``path`` and continued from there.

    Raises `BadInput` when ``path`` was begun with other rollouts or another judge, and what judges
    raise.
    """
    by_name = {trait.name: trait for trait in traits}
    content = orjson.dumps([asdict(one) for one in rollouts])
    header = {
        "kind": "ratings",
        "rollouts": hashlib.sha256(content).hexdigest(),
        "judges": {name: dict(judge.identity) for name, judge in judges.items()},
    }
    with journal(path, header) as kept:
        while (start := len(kept.rows)) < len(rollouts):
            name = rollouts[start].trait
            ahead = rollouts[start : start + RATED_AT_ONCE]
            part = [one for one in ahead if one.trait == name]
            progress(f"ratings: {start} of {len(rollouts)}, {name}")
            persona, coherent = judges[name].rate([one.bare(by_name) for one in part])
            kept.append(
                [
                    {"trait": name, "persona": float(p), "coherent": float(c)}
                    for p, c in zip(persona, coherent, strict=True)
                ]
            )
        values = [
            [_number(row, name, path) for name in ("persona", "coherent")] for row in kept.rows
        ]
    persona, coherent = np.array(values, dtype=np.float64).reshape(-1, 2).T
    return Ratings(persona=persona, coherent=coherent)


def _header(
    loaded: LoadedModel, traits: Sequence[Trait], settings: RolloutSettings
) -> dict[str, Any]:
    drawn = ("rollouts", "max_new_tokens", "temperature", "seed", "batch")
    hashes = ("weights_hash", "tokenizer_hash", "template_hash")
    return {
        "kind": "rollouts",
        **{name: getattr(loaded.identity, name) for name in hashes},
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "traits": traits_hash(traits),
        **{name: getattr(settings, name) for name in drawn},
    }


def traits_hash(traits: Sequence[Trait]) -> str:
    content = orjson.dumps([asdict(trait) for trait in traits])
    return hashlib.sha256(content).hexdigest()


def _matching(row: Mapping[str, Any], plan: Rollout, path: Path) -> Rollout:
    answer = row.get("answer")
    if not isinstance(answer, str) or {**row, "answer": ""} != asdict(plan):
        raise BadInput(f"{path} was changed: a row is not the rollout planned there", hint=HINT)
    return replace(plan, answer=answer)


def _number(row: Mapping[str, Any], name: str, path: Path) -> float:
    value = row.get(name)
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadInput(f"{path} was changed: {name} must be 0 to 1", hint=HINT)
    return float(value)
