"""How many prompts until small shares of answers from another model are seen?

    python -m benchmarks.identity shares --model FOLDER --cache DIR [--runs 40] [--seed 0] [--jobs 1]

20 prompts a minute, with replacement from the pools: a share of the answers is the reckless organism's, the others
are the copy's, at temperature 1. Identity is the e-detector in force, at the budget that it has beside the drift rules: together
one false alarm in 30 days. It is run with every answer weighed and with one in twenty, each also as it is where the log holds
the server's token counts: answers that are split otherwise are left out then. Beside it the default rules on
the shipped pack's features, which watch the same answers, against a baseline of the copy's. A run lasts a day.

``fires``: the alert's ``for`` has passed as well. Without foreign answers the same is run to count false alarms.

Legend: n = answers, r = runs, m = minutes, p = prompts a minute, s = shares that are bet on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np

from benchmarks.identity.bets import counted, first_alarm, wagered
from benchmarks.identity.pools import load_pools
from benchmarks.identity.questions import questions
from benchmarks.persona.machine import spread_over
from benchmarks.persona.pools import Readings
from benchmarks.persona.results import pack_of
from benchmarks.persona.simulated import World, first_page, world
from monitor.drift import sequential
from monitor.settings import DriftSettings, IdentityRule
from monitor.values.arrays import Counts, Doubles

PER_MINUTE = 20
DAY = 24 * 60
BASELINE_MINUTES = 1_000
FOREIGN = (0.0, 0.01, 0.05, 0.2)
DRIFT = DriftSettings()
BUDGET = DRIFT.average_run_length * 2
"""Of each family of detectors: together they keep the setting's (`monitor.vouching.average_run_length`)."""
LIMIT = sequential.threshold(BUDGET, 1, DRIFT.bucket)


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """``share`` of the answers; with the server's token counts in the log or without."""

    share: float
    counts: bool

    @property
    def name(self) -> str:
        return f"{self.share:g}" + (", counted" if self.counts else "")


WEIGHED: Final = tuple(
    Weighed(share=share, counts=counts) for share in (1.0, 0.05) for counts in (False, True)
)
FEATURES, TOGETHER = "features", "together"


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The copy's answers to core questions and the organism's, as places in ``gains``."""

    own: Counts
    other: Counts
    gains: Mapping[bool, Doubles]
    """[n, s], by whether token counts are logged."""
    world: World
    seed: int

    def passing(self, foreign: float, generator: np.random.Generator) -> Counts:
        """Places [m, p] of two days, the first without foreign answers."""
        size = (2 * DAY, PER_MINUTE)
        theirs = generator.random(size) < foreign
        theirs[:DAY] = False
        return np.where(
            theirs,
            self.other[generator.integers(len(self.other), size=size)],
            self.own[generator.integers(len(self.own), size=size)],
        )


def run(traffic: Traffic, item: tuple[float, int]) -> dict[str, int]:
    """Minutes until each witness alarms, -1 where it does not, on the same answers.

    ``together``: identity fires, every answer weighed, or a rule on features does.
    """
    foreign, number = item
    generator = np.random.default_rng([traffic.seed, 3, FOREIGN.index(foreign), number])
    passing = traffic.passing(foreign, generator)
    found: dict[str, int] = {}
    for weighed in WEIGHED:
        chosen = generator.random((DAY, PER_MINUTE, 1)) < weighed.share
        each = np.where(chosen, traffic.gains[weighed.counts][passing[DAY:]], 0.0).sum(axis=1)
        found[weighed.name] = int(first_alarm(each[None], LIMIT)[0])
    paged = first_page(traffic.world, passing, DAY)
    found[FEATURES] = -1 if paged is None else paged[0] + 1
    hold_for = int(IdentityRule().hold_for / DRIFT.bucket)
    first = found[WEIGHED[0].name]
    times = [first + hold_for] if first > 0 else []
    times += [found[FEATURES]] if paged is not None else []
    found[TOGETHER] = min(times, default=-1)
    return found


def summary(minutes: Counts, hold_for: timedelta | None) -> dict[str, Any]:
    """Prompts; None where fewer than half of the runs alarm."""
    prompts = np.where(minutes > 0, minutes * PER_MINUTE, math.inf)
    median = float(np.median(prompts))
    found = {
        "runs": len(minutes),
        "alarmed": int((minutes > 0).sum()),
        "median_prompts": median if math.isfinite(median) else None,
        "slowest": float(prompts.max()) if math.isfinite(float(prompts.max())) else None,
    }
    if hold_for is not None:
        held = hold_for / DRIFT.bucket * PER_MINUTE
        found["median_prompts_fires"] = median + held if math.isfinite(median) else None
    return found


def traffic_of(options: argparse.Namespace) -> Traffic:
    pools, every = load_pools(options.cache, ["copy-1", "reckless-1"]), questions()
    copy, reckless = pools["copy-1"], pools["reckless-1"]
    own = np.flatnonzero([every[place].core for place in copy.question])
    places = np.concatenate([copy.question, reckless.question])
    read = Readings(
        pack=pack_of(options),
        scores=np.concatenate([copy.scores, reckless.scores]),
        covariates=np.concatenate([copy.covariates, reckless.covariates]),
    )
    generator = np.random.default_rng([options.seed, 3])
    baseline = own[generator.integers(len(own), size=(BASELINE_MINUTES, PER_MINUTE))]
    return Traffic(
        own=own,
        other=len(copy) + np.arange(len(reckless)),
        gains={
            False: np.concatenate([wagered(copy, "1"), wagered(reckless, "1")]),
            True: np.concatenate([counted(copy, "1"), counted(reckless, "1")]),
        },
        world=world(
            read,
            [str(every[place].prompt.messages[-1].content).encode() for place in places],
            baseline,
            DriftSettings(average_run_length=BUDGET),
        ),
        seed=options.seed,
    )


def small_shares(options: argparse.Namespace) -> dict[str, Any]:
    traffic = traffic_of(options)
    items = [(foreign, number) for foreign in FOREIGN for number in range(options.runs)]
    ran: dict[float, list[dict[str, int]]] = {foreign: [] for foreign in FOREIGN}
    for (foreign, _), found in spread_over(run, traffic, items, options.jobs):
        ran[foreign].append(found)
    hold_for = IdentityRule().hold_for
    witnesses: dict[str, timedelta | None] = {one.name: hold_for for one in WEIGHED}
    witnesses |= {FEATURES: None, TOGETHER: None}
    return {
        "per_minute": PER_MINUTE,
        "limit": LIMIT,
        "answers": {"copy": len(traffic.own), "reckless": len(traffic.other)},
        "features": [traffic.world.features[index].name for index in traffic.world.paging],
        "prompts": {
            name: {
                f"{foreign:g}": summary(np.array([one[name] for one in runs]), held)
                for foreign, runs in ran.items()
            }
            for name, held in witnesses.items()
        },
    }
