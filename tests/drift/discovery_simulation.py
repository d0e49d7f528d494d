"""Discoveries among dependent streams by simulation: the share of false ones, and what is found, by fixed seeds.

Two worlds. In the first, bets are likelihood ratios of normal scores, which are exactly fair: nothing is left over
that could hide a fault. In the second they are the detectors' own, against baselines drawn anew for every run. In both the
streams of one run share a part of their scores: `RHO` of the variance, or all of it, so that what is false is false
everywhere at once. ``python -m tests.drift.discovery_simulation`` prints the figures of docs/drift.md.

Legend: k = streams, t = buckets, c = bets, r = runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from monitor.drift import discovery, sequential
from monitor.drift.histogram import histogram_of
from tests.drift.simulation import BEFORE_ALL, NORMAL_1_PERCENT, baseline_of_scores

RATE = 0.05
STREAMS = 20
BUCKETS = 60
CHANGED_AT = 20
EVERY = 5
"""Buckets between evaluations."""
RHO = 0.6
STAKES = np.array([0.25, 0.5, 1.0])
BASELINE_N = 2_000
PER_BUCKET = 20


@dataclass(frozen=True, kw_only=True)
class World:
    name: str
    shared: float = RHO
    """Part of the variance that all streams share."""
    changed: int = 0
    """The first so many streams move by ``shift`` deviations at `CHANGED_AT`."""
    shift: float = 0.0
    detectors: bool = False
    runs: int = 200
    mixed: bool = True
    """False: Shiryaev-Roberts values, as the detectors have them, are taken for e-values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    false: np.ndarray
    """Share of false ones among the discoveries of each evaluation [r, t]; 0 where there are none."""
    found: np.ndarray
    """Changed streams that are found by then [r, t]."""


WORLDS = (
    World(name="fair bets, nothing changed, streams share 60 %"),
    World(name="fair bets, nothing changed, streams share all", shared=1.0),
    World(name="fair bets, 5 of 20 changed, streams share 60 %", changed=5, shift=1.0),
    World(name="fair bets, 5 of 20 changed, streams share all", changed=5, shift=1.0, shared=1.0),
    World(name="the detectors', nothing changed, streams share 60 %", detectors=True, runs=20),
    World(
        name="the detectors', 5 of 20 changed by 0.5 deviations, streams share 60 %",
        detectors=True,
        runs=20,
        changed=5,
        shift=0.5,
    ),
)
WRONG = World(
    name="nothing changed, streams share all, detectors' values in the place of e-values",
    shared=1.0,
    mixed=False,
)


def scores(random: np.random.Generator, world: World, n: int) -> np.ndarray:
    """Standard normal ones [k, n]."""
    common = math.sqrt(world.shared) * random.normal(size=n)
    return common + math.sqrt(1 - world.shared) * random.normal(size=(STREAMS, n))


@cache
def told(world: World) -> Told:
    """Run r is drawn with seed r."""
    runs = [_run(world, np.random.default_rng(seed)) for seed in range(world.runs)]
    return Told(
        false=np.array([false for false, _ in runs]), found=np.array([found for _, found in runs])
    )


def _run(world: World, random: np.random.Generator) -> tuple[list[float], list[int]]:
    bets = _detectors(world, random) if world.detectors else None
    count = bets[0].log_weights.size if bets else STAKES.size
    processes = [discovery.begin(count, BEFORE_ALL)] * STREAMS
    restarted = np.full((STREAMS, count), -math.inf)
    false, found = [], []
    for bucket in range(BUCKETS):
        x = scores(random, world, PER_BUCKET if world.detectors else 1)
        if bucket >= CHANGED_AT:
            x[: world.changed] += world.shift
        gains = [_gains(some, bets[k] if bets else None) for k, some in enumerate(x)]
        if world.mixed:
            processes = [
                discovery.step(one, gains[k], bets[k].log_weights if bets else None)
                for k, one in enumerate(processes)
            ]
            log_es = [one.log_e for one in processes]
        else:
            restarted = np.logaddexp(restarted, 0.0) + np.array(gains)
            log_es = list(np.logaddexp.reduce(restarted, axis=1) - math.log(count))
        if bucket % EVERY == EVERY - 1:
            hit = np.array(log_es) >= discovery.line(log_es, RATE)
            false.append(float(hit[world.changed :].sum() / max(hit.sum(), 1)))
            found.append(int(hit[: world.changed].sum()))
    return false, found


def _detectors(world: World, random: np.random.Generator) -> list[sequential.Detector]:
    streams = [baseline_of_scores(some) for some in scores(random, world, BASELINE_N)]
    return [sequential.detector(stream, limit=10.0, streams=STREAMS) for stream in streams]


def _gains(x: np.ndarray, bets: sequential.Detector | None) -> np.ndarray:
    if bets is None:
        return STAKES * x[0] - STAKES**2 / 2
    tail = int((x > NORMAL_1_PERCENT).sum())
    return bets.bin_gains @ histogram_of(x) + bets.tail_gains @ np.array([tail, x.size - tail])


def row(world: World) -> str:
    """Of the evaluation with the largest share of false ones in the mean, and of the last one."""
    seen = told(world)
    found = f"{seen.found[:, -1].mean():.1f}" if world.changed else "–"
    return f"| {world.name} | {100 * seen.false.mean(axis=0).max():.1f} % | {found} |"


if __name__ == "__main__":
    for one in (*WORLDS, WRONG):
        print(row(one), flush=True)
