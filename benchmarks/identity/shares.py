"""How many prompts until small shares of answers from another model are seen?

    python -m benchmarks.identity shares --model FOLDER --cache DIR [--runs 40] [--seed 0]

20 prompts a minute, with replacement from the pools: a share of the answers is the reckless organism's, the others
are the copy's, at temperature 1. Identity is the e-detector in force, at the budget that it has beside the drift rules: together
one false alarm in 30 days. It is run with every answer weighed and with one in twenty. Beside it the default rules on
the shipped pack's features, which watch the same answers, against a baseline of the copy's. A run lasts a day.

``fires``: the alert's ``for`` has passed as well. Without foreign answers the same is run to count false alarms.

Legend: r = runs, m = minutes, p = prompts a minute, s = shares that are bet on.
"""

from __future__ import annotations

import argparse
import math
from datetime import timedelta
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.identity.bets import first_alarm, wagered
from benchmarks.identity.pools import load_pools
from benchmarks.identity.questions import questions
from benchmarks.persona.pools import Readings
from benchmarks.persona.results import pack_of
from benchmarks.persona.simulated import first_page, world
from monitor.drift import sequential
from monitor.settings import DriftSettings, IdentityRule
from monitor.values.arrays import Counts, Doubles

PER_MINUTE = 20
DAY = 24 * 60
BASELINE_MINUTES = 1_000
FOREIGN = (0.0, 0.01, 0.05, 0.2)
WEIGHED = (1.0, 0.05)
DRIFT = DriftSettings()
BUDGET = DRIFT.average_run_length * 2
"""Of each family of detectors: together they keep the setting's (`monitor.vouching.average_run_length`)."""
LIMIT = sequential.threshold(BUDGET, 1, DRIFT.bucket)


def identity_alarms(
    own: Doubles,
    other: Doubles,
    foreign: float,
    weighed: float,
    runs: int,
    minutes: int,
    generator: np.random.Generator,
) -> Counts:
    """Minutes until the e-detector alarms in each run [r], -1 where it does not."""
    found = []
    for _ in range(runs):
        size = (minutes, PER_MINUTE)
        theirs = generator.random(size) < foreign
        gains = np.where(
            theirs[..., None],
            other[generator.integers(len(other), size=size)],
            own[generator.integers(len(own), size=size)],
        )
        gains = np.where((generator.random(size) < weighed)[..., None], gains, 0.0).sum(axis=1)
        found.append(first_alarm(gains[None], LIMIT)[0])
    return np.array(found)


def summary(minutes: Counts, hold_for: timedelta) -> dict[str, Any]:
    """Prompts; None where fewer than half of the runs alarm."""
    prompts = np.where(minutes > 0, minutes * PER_MINUTE, math.inf)
    median = float(np.median(prompts))
    held = hold_for / DRIFT.bucket * PER_MINUTE
    return {
        "runs": len(minutes),
        "alarmed": int((minutes > 0).sum()),
        "median_prompts": median if math.isfinite(median) else None,
        "median_prompts_fires": median + held if math.isfinite(median) else None,
        "slowest": float(prompts.max()) if math.isfinite(float(prompts.max())) else None,
    }


def by_features(options: argparse.Namespace, runs: int) -> dict[str, Any]:
    """The default rules on the pack's features: firing alerts, prompts until the first."""
    pools, every = load_pools(options.cache), questions()
    copy, reckless = pools["copy-1"], pools["reckless-1"]
    core = np.array([every[place].core for place in copy.question])
    own = np.flatnonzero(core)
    other = len(copy) + np.arange(len(reckless))
    places = np.concatenate([copy.question, reckless.question])
    texts = [str(every[place].prompt.messages[-1].content).encode() for place in places]
    scores = np.concatenate([copy.scores, reckless.scores])
    read = Readings(
        pack=pack_of(options),
        scores=scores,
        covariates=np.concatenate([copy.covariates, reckless.covariates]),
    )
    settings = DriftSettings(average_run_length=BUDGET)
    generator = np.random.default_rng([options.seed, 3])
    baseline = own[generator.integers(len(own), size=(BASELINE_MINUTES, PER_MINUTE))]
    seen = world(read, texts, baseline, settings)
    found: dict[str, Any] = {
        "features": [seen.features[index].name for index in seen.paging],
    }
    for foreign in FOREIGN:
        minutes = []
        for _ in track(range(runs), f"features, {foreign:.0%}"):
            size = (2 * DAY, PER_MINUTE)
            theirs = generator.random(size) < foreign
            theirs[:DAY] = False
            passing = np.where(
                theirs,
                other[generator.integers(len(other), size=size)],
                own[generator.integers(len(own), size=size)],
            )
            paged = first_page(seen, passing, DAY)
            minutes.append(-1 if paged is None else paged[0] + 1)
        row = summary(np.array(minutes), timedelta())
        del row["median_prompts_fires"]
        found[f"{foreign:g}"] = row
    return found


def small_shares(options: argparse.Namespace) -> dict[str, Any]:
    pools = load_pools(options.cache)
    own, other = wagered(pools["copy-1"]), wagered(pools["reckless-1"])
    hold_for = IdentityRule().hold_for
    generator = np.random.default_rng([options.seed, 2])
    identity: dict[str, Any] = {}
    for weighed in WEIGHED:
        identity[f"{weighed:g}"] = {
            f"{foreign:g}": summary(
                identity_alarms(own, other, foreign, weighed, options.runs, DAY, generator),
                hold_for,
            )
            for foreign in FOREIGN
        }
    return {
        "per_minute": PER_MINUTE,
        "limit": LIMIT,
        "answers": {"copy": len(own), "reckless": len(other)},
        "identity": identity,
        "features": by_features(options, options.feature_runs),
    }
