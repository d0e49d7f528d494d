"""The sequential detectors on simulated traffic: run lengths and delays, by fixed seeds.

The one place of the constants and scenarios: `test_sequential.py` holds every scenario to its bounds and
docs/drift.md to the figures. ``python -m tests.drift.simulation`` prints the page's paragraph and table.

Run lengths are cut at `HORIZON`, which only lowers their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from monitor.drift.baseline import capture
from monitor.drift.histogram import histogram_of
from monitor.drift.sequential import MEAN_MARGIN, Detector, detector, evidence, start, update
from monitor.values.drift import BaselineStream, Window
from monitor.values.features import Directed
from monitor.values.identity import BaselineFingerprint
from monitor.values.scores import Bucket

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BEFORE_ALL = START - timedelta(days=1)
NORMAL_1_PERCENT = 2.3263

CONFIDENCE = 0.99
PROMISED = 60
HORIZON = 5 * PROMISED
PER_BUCKET = 20
LIMIT = math.log(PROMISED)
BASELINE_N = 2_000
SIZE, RHO = 5, 0.6
"""Prompts of one conversation, and how they correlate."""
RUNS = 40
TOLERANCE = 0.1
"""Share by which a figure of the page may differ from what is measured: other libraries round otherwise."""

Draw = Callable[[np.random.Generator, int], np.ndarray]


# --- traffic -------------------------------------------------------------------------------------


def independent(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(size=n)


def clustered(
    random: np.random.Generator, n: int, *, size: int = SIZE, rho: float = RHO
) -> np.ndarray:
    """n standard normal scores in conversations of ``size``, correlated ``rho`` inside one."""
    shared = np.repeat(random.normal(size=-(-n // size)), size)[:n]
    return np.sqrt(rho) * shared + np.sqrt(1 - rho) * random.normal(size=n)


def moved(draw: Draw, shift: float) -> Draw:
    return lambda random, n: draw(random, n) + shift


def rare(share: float, score: float) -> Draw:
    return lambda random, n: np.where(random.random(n) < share, score, random.normal(size=n))


def window_of(
    scores: object,
    *,
    at: int = 0,
    tail: float = NORMAL_1_PERCENT,
    feature: int = 0,
    segment: str = "all",
) -> Window:
    """A window of given scores, one minute long, ``at`` minutes after `START`."""
    values = np.asarray(scores, dtype=np.float64)
    return Window(
        feature=feature,
        segment=segment,
        start=START + at * MINUTE,
        end=START + (at + 1) * MINUTE,
        n=values.size,
        total=float(values.sum()),
        total_squares=float((values**2).sum()),
        histogram=histogram_of(values),
        tail_count=int((values > tail).sum()),
    )


def bucket_of(scores: object, *, at: int = 0) -> Bucket:
    """The same as a bucket."""
    window = window_of(scores, at=at)
    return Bucket(
        bucket_start=window.start,
        bucket_seconds=60,
        feature=window.feature,
        segment=window.segment,
        source="prompts/0",
        n=window.n,
        total=window.total,
        total_squares=window.total_squares,
        histogram=window.histogram,
        tail_count=window.tail_count,
    )


def baseline_of(
    draw: Draw, random: np.random.Generator, n: int, *, per_bucket: int = PER_BUCKET
) -> BaselineStream:
    drawn = [draw(random, per_bucket) for _ in range(n // per_bucket)]
    return baseline_of_scores(np.concatenate(drawn), per_bucket=per_bucket)


def baseline_of_scores(scores: np.ndarray, *, per_bucket: int = PER_BUCKET) -> BaselineStream:
    """The baseline of so many scores a minute; what is left over is not in it."""
    buckets = len(scores) // per_bucket
    pieces = [
        window_of(some, at=i)
        for i, some in enumerate(np.split(scores[: buckets * per_bucket], buckets))
    ]
    whole = capture(
        pieces,
        [Directed()],
        confidence=CONFIDENCE,
        baseline_id="b",
        pack_id="p",
        name="n",
        start=pieces[0].start,
        end=pieces[-1].end,
        created_at=pieces[-1].end,
        fingerprint=BaselineFingerprint(facts={}),
        min_n=100,
    )
    return whole.streams[0, "all"]


def run_length(bets: Detector, draw: Draw, random: np.random.Generator) -> int:
    """Buckets until the alarm, or the horizon."""
    state = start("b", 0, "all", BEFORE_ALL)
    for step in range(HORIZON):
        state = update(state, bucket_of(draw(random, PER_BUCKET), at=step), bets)
        if evidence(state, bets) >= bets.limit:
            return step + 1
    return HORIZON


# --- scenarios -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Traffic against a baseline drawn anew for each run; the mean of its runs must keep the bounds."""

    name: str
    draw: Draw
    later: Draw | None = None
    """The traffic that is watched; None: as in the baseline."""
    n: int = BASELINE_N
    runs: int = RUNS
    tempered: bool = True
    at_least: float = 1.0
    at_most: float = float(HORIZON)


_CONVERSATIONS = f"conversations of {SIZE}, correlated {RHO}"
SCENARIOS = (
    Scenario(
        name=f"baseline of {BASELINE_N} independent prompts, unchanged",
        draw=independent,
        at_least=PROMISED,
    ),
    Scenario(
        name="baseline of 500 independent prompts, unchanged",
        draw=independent,
        n=500,
        at_least=PROMISED,
    ),
    Scenario(name=f"{_CONVERSATIONS}, unchanged", draw=clustered, at_least=PROMISED),
    Scenario(
        name=f"{_CONVERSATIONS}, unchanged, without tempering: the promise would be broken",
        draw=clustered,
        tempered=False,
        at_most=math.nextafter(PROMISED, 0),
    ),
    Scenario(
        name=f"{_CONVERSATIONS}, shifted by the whole margin of {MEAN_MARGIN}",
        draw=clustered,
        later=moved(clustered, MEAN_MARGIN),
        at_least=PROMISED,
    ),
    *(
        Scenario(
            name=f"independent prompts, shift {shift:+} deviations",
            draw=independent,
            later=moved(independent, shift),
            runs=20,
            at_most=longest,
        )
        for shift, longest in ((0.3, 60), (0.5, 15), (1.0, 6), (-1.0, 6), (2.0, 3))
    ),
    *(
        Scenario(
            name=f"{_CONVERSATIONS}, shift {shift:+} deviations",
            draw=clustered,
            later=moved(clustered, shift),
            runs=20,
            at_most=longest,
        )
        for shift, longest in ((0.5, 60), (1.0, 15), (2.0, 5))
    ),
    Scenario(
        name="6 % of the prompts at +4, the others as before",
        draw=independent,
        later=rare(0.06, 4.0),
        runs=20,
        at_most=40,
    ),
)


@cache
def mean_run(scenario: Scenario) -> float:
    """Mean buckets until the alarm over the scenario's runs; run k is drawn with seed k."""
    lengths = []
    for seed in range(scenario.runs):
        random = np.random.default_rng(seed)
        stream = baseline_of(scenario.draw, random, scenario.n)
        if not scenario.tempered:
            stream = BaselineStream(window=stream.window)
        bets = detector(stream, limit=LIMIT, streams=1)
        lengths.append(run_length(bets, scenario.later or scenario.draw, random))
    return float(np.mean(lengths))


# --- the page ------------------------------------------------------------------------------------


def introduction() -> str:
    few = sorted({scenario.runs for scenario in SCENARIOS})
    return (
        f"Measured by simulation (`tests/drift/simulation.py`, seeds fixed; {PER_BUCKET} prompts per bucket; "
        f"promised run length {PROMISED} buckets; runs cut at {HORIZON}; "
        f"{' or '.join(map(str, few))} runs each, every one with a baseline of its own):"
    )


def row(scenario: Scenario, figure: float) -> str:
    shown = f"{figure:.0f}" if figure >= 10 else f"{figure:.1f}"
    return f"| {scenario.name} | {shown} |"


if __name__ == "__main__":
    print(introduction(), "", "| traffic | mean run, or delay, in buckets |", "|---|---|", sep="\n")
    for one in SCENARIOS:
        print(row(one, mean_run(one)), flush=True)
