"""Six causes, and shifts of the input alone: which verdict does whoever is paged read?

    python -m benchmarks.identity causes --model FOLDER --cache DIR [--runs 40] [--seed 0] [--jobs 1]

20 prompts a minute at temperature 1, two hours of the copy's answers to core questions, then six hours of

- *users change*: the copy's answers to questions of other topics, in a mixture drawn anew for every run;
- *fine-tune*, *adapter*, *quantiser*: the reckless organism, the adapter of 8 steps, weights of 4 bits;
- *template or system prompt*: in turn another chat template than the copy's, and a system prompt that no log holds;
- *instrument*: in the copy's place stands one of 4 bits or one with an adapter; what its canaries read was measured.

Core questions are those that all speakers were asked, each as often: where only who answers changes, nothing else does. Each
scene is run with every answer weighed, with twins of every prompt beside that, and with one in five of both.

Shifts of the input alone last a day each, the copy answering throughout: topics that rotate by the hour, a new customer (one topic
comes to 30 % to 60 %), other languages (20 % to 60 %), a system prompt that is reworded where logs hold it.

The verdict is the cause in the first alert that fires, of identity's rule or of the default ones on features; where
none fires it is the cause of the shortest window at the end, which `drift_history` holds. Every run has a baseline of its
own (20,000 prompts).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.identity.pools import WANTED, load_canaries, load_pools
from benchmarks.identity.questions import questions
from benchmarks.identity.twins import Pairs
from benchmarks.identity.watching import (
    PER_MINUTE,
    QUIET,
    Answers,
    Run,
    Told,
    answers_of,
    drawn,
    settings_of,
)
from benchmarks.persona.machine import spread_over
from benchmarks.persona.minutes import Binned
from benchmarks.persona.results import pack_of
from benchmarks.persona.simulated import world
from monitor.research.statistics import rate_bound
from monitor.values.arrays import Counts
from monitor.values.witnesses import Cause

BEFORE: Final = 2 * 60
AFTER: Final = 6 * 60
DAY: Final = 24 * 60
"""Minutes of a shift of the input alone."""
BASELINE_MINUTES: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class Witnessing:
    """Shares of the answers that are weighed (``identity.share``) and of the prompts that have a twin (``twin.share``)."""

    weighed: float
    twins: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.weighed:g}" + (f", twins {self.twins:g}" if self.twins else "")


WITNESSING: Final = (
    Witnessing(weighed=1.0),
    Witnessing(weighed=1.0, twins=1.0),
    Witnessing(weighed=0.2, twins=0.2),
)
USUAL: Final[Mapping[str, float]] = {"core": 1.0}
EXPECTED: Final[Mapping[str, Cause]] = {
    "users change": Cause.INPUT_SHIFT,
    "fine-tune": Cause.MODEL_SHIFT,
    "adapter": Cause.MODEL_SHIFT,
    "quantiser": Cause.MODEL_SHIFT,
    "template or system prompt": Cause.MODEL_SHIFT,
    "instrument": Cause.INSTRUMENT_SHIFT,
}
INSIDE: Final = ("int8", "fp8", "bfloat16")
"""Changes of precision that are meant to be allowed: nobody should be paged for them."""
INPUT_SHIFTS: Final = (
    "topics rotate",
    "new customer",
    "languages change",
    "system prompt reworded",
)
INPUT_RUNS: Final = 15
"""Of each shift of the input alone."""
BESIDE_RUNS: Final = 5
"""Of each scene beside."""

Passing = Callable[[Answers, int, np.random.Generator], Counts]


def _speaks(*names: str) -> Passing:
    """In turn, run by run."""

    def passing(answers: Answers, run: int, generator: np.random.Generator) -> Counts:
        return drawn(answers, {names[run % len(names)]: 1.0}, AFTER, generator)

    return passing


def _topics(answers: Answers) -> list[str]:
    return [name for name in answers.members if name.startswith("topic: ")]


def _mixed(answers: Answers, _run: int, generator: np.random.Generator) -> Counts:
    """Other topics, in a mixture of their own, and 0 to 40 % of what was asked before."""
    topics = _topics(answers)
    others = generator.dirichlet(np.ones(len(topics)))
    stays = generator.uniform(0.0, 0.4)
    shares = dict(zip(topics, others * (1 - stays), strict=True))
    return drawn(answers, {**USUAL, **shares, "core": stays}, AFTER, generator)


def _rotating(answers: Answers, _run: int, generator: np.random.Generator) -> Counts:
    """Every hour another topic has half of it."""
    hours = []
    for topic in generator.choice(_topics(answers), size=DAY // 60):
        shares = {"core": generator.uniform(0.2, 0.6), str(topic): 0.5}
        hours.append(drawn(answers, shares, 60, generator))
    return np.concatenate(hours)


def _comes(names: Sequence[str], least: float, most: float) -> Passing:
    """One of ``names`` comes to a share between the two; empty: any topic."""

    def passing(answers: Answers, run: int, generator: np.random.Generator) -> Counts:
        chosen = names or _topics(answers)
        share = generator.uniform(least, most)
        shares = {"core": 1 - share, chosen[run % len(chosen)]: share}
        return drawn(answers, shares, DAY, generator)

    return passing


def _unchanged(answers: Answers, _run: int, generator: np.random.Generator) -> Counts:
    return drawn(answers, USUAL, AFTER, generator)


CAUSES: Final[Mapping[str, Passing]] = {
    "users change": _mixed,
    "fine-tune": _speaks("reckless"),
    "adapter": _speaks("steps-8"),
    "quantiser": _speaks("int4"),
    "template or system prompt": _speaks("template", "system prompt"),
    "instrument": _unchanged,
}
SHIFTS: Final[Mapping[str, Passing]] = {
    "topics rotate": _rotating,
    "new customer": _comes((), 0.3, 0.6),
    "languages change": _comes(("topic: other languages",), 0.2, 0.6),
    "system prompt reworded": _comes(("topic: concierge",), 0.9, 1.0),
}
BESIDE: Final[Mapping[str, Passing]] = {
    "nothing": _unchanged,
    **{name: _speaks(name) for name in INSIDE},
    "steered": _speaks("steered"),
    "adapter of 1 step": _speaks("steps-1"),
    "adapter of 64 steps": _speaks("steps-64"),
}
"""Shown beside, without a verdict that would be right."""


SCENES: Final = {"causes": CAUSES, "input_shifts": SHIFTS, "beside": BESIDE}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What all runs share."""

    answers: Answers
    binned: Binned
    faults: Sequence[float]
    """What canaries read where another model stands in the copy's place."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Play:
    """One run of a scene."""

    kind: str
    name: str
    witnessing: Witnessing
    run: int


def played(stage: Stage, play: Play) -> Told:
    scenes = SCENES[play.kind]
    number = [*SCENES].index(play.kind) * 100 + [*scenes].index(play.name)
    return watched(
        stage.answers,
        stage.binned,
        scenes[play.name],
        play.witnessing,
        stage.faults[play.run % len(stage.faults)] if play.name == "instrument" else 0.0,
        play.run,
        np.random.default_rng([stage.seed, number, play.run]),
    )


def six_causes(options: argparse.Namespace) -> dict[str, Any]:
    pools = {
        name.removesuffix("-1").replace("-prompt", " prompt"): pool
        for name, pool in load_pools(
            options.cache, [one.name for one in WANTED if one.law == "1"]
        ).items()
    }
    answers = answers_of(pools, questions(), pack_of(options))
    binned = Binned(answers.read.scores, answers.read.pack.features)
    for feature in range(len(answers.read.pack.features)):
        binned.counted(feature)
    canaries = load_canaries(options.cache)
    stage = Stage(
        answers=answers,
        binned=binned,
        faults=[canaries[name] for name in ("int4", "steps-8")],
        seed=options.seed,
    )
    runs = {"causes": options.runs, "input_shifts": INPUT_RUNS, "beside": BESIDE_RUNS}
    runs = {kind: min(most, options.runs) for kind, most in runs.items()}
    # The longest first, so that no process is left with one at the end.
    plays = [
        Play(kind=kind, name=name, witnessing=witnessing, run=run)
        for kind in ("input_shifts", "causes", "beside")
        for witnessing in WITNESSING
        for name in SCENES[kind]
        for run in range(runs[kind])
    ]
    told: dict[str, dict[str, dict[str, list[Told]]]] = {
        one.name: {kind: {name: [] for name in scenes} for kind, scenes in SCENES.items()}
        for one in WITNESSING
    }
    for play, found in spread_over(played, stage, plays, options.jobs):
        told[play.witnessing.name][play.kind][play.name].append(found)
    return {
        "per_minute": PER_MINUTE,
        "canaries": canaries,
        "weighed": {name: summary(its) for name, its in told.items()},
    }


def watched(
    answers: Answers,
    binned: Binned,
    passing: Passing,
    witnessing: Witnessing,
    canary: float,
    run: int,
    generator: np.random.Generator,
) -> Told:
    settings = settings_of(witnessing.weighed, witnessing.twins)
    baseline = drawn(answers, USUAL, BASELINE_MINUTES, generator)
    before = drawn(answers, USUAL, BEFORE, generator)
    places = np.concatenate([before, passing(answers, run, generator)])
    weighed = generator.random(places.shape) < witnessing.weighed
    watching = world(answers.read, answers.questions, baseline, settings.drift, binned)
    pairs = None
    if witnessing.twins:
        twins = answers.others.drawn(places, generator)
        paired = generator.random(places.shape) < witnessing.twins
        pairs = Pairs(
            features=tuple(watching.features),
            settings=settings,
            scores=answers.read.scores.astype(np.float64),
            places=places,
            twins=np.where(paired, twins, -1),
        )
    return Run(
        answers=answers,
        world=watching,
        settings=settings,
        places=places,
        weighed=weighed,
        before=BEFORE,
        pairs=pairs,
        canary=canary,
    ).told()


def summary(told: Mapping[str, Mapping[str, Sequence[Told]]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        kind: {name: _counted(runs) for name, runs in scenes.items()}
        for kind, scenes in told.items()
    }
    causes = [(one, EXPECTED[name]) for name, runs in told["causes"].items() for one in runs]
    shifts = [one for runs in told["input_shifts"].values() for one in runs]
    return {
        **found,
        "right": _rated([one.verdict == expected for one, expected in causes]),
        "named_wrongly": sum(
            one.verdict not in (expected, Cause.UNDECIDED, Cause.UNKNOWN)
            for one, expected in causes
        ),
        "right_at_the_end": _rated([one.history == expected for one, expected in causes]),
        "input_shifts_called_model_shift": sum(
            one.accused or Cause.MODEL_SHIFT in (one.paged, one.history) for one in shifts
        ),
        "input_shifts_named": sum(one.verdict == Cause.INPUT_SHIFT for one in shifts),
        "input_shifts_all": len(shifts),
        "input_shifts_paged": sum(one.paged != QUIET for one in shifts),
        "input_shifts_paged_named": sum(one.paged == Cause.INPUT_SHIFT for one in shifts),
    }


def _rated(right: Sequence[bool]) -> dict[str, Any]:
    bound = rate_bound(sum(right), len(right))
    return {"runs": sum(right), "of": len(right), "interval_95": [bound.low, bound.high]}


def _counted(runs: Sequence[Told]) -> dict[str, Any]:
    prompts = [one.prompts for one in runs if one.prompts is not None]
    return {
        "verdict": dict(Counter(one.verdict for one in runs)),
        "history": dict(Counter(one.history for one in runs)),
        "paged": dict(Counter(one.paged for one in runs if one.paged != QUIET)),
        "by": dict(Counter(one.by for one in runs)),
        "quiet": sum(one.paged == QUIET for one in runs),
        "median_prompts": float(np.median(prompts)) if prompts else None,
    }
