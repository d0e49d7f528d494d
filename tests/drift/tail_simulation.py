"""Tail rules on simulated traffic: false alarms, and how soon a small share of a persona is seen.

The one place of constants and scenarios: `test_tail_simulation.py` holds them to their bounds and docs/drift.md
to the figures. ``python -m tests.drift.tail_simulation`` prints the page's table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import norm

from monitor.drift.histogram import EDGES, histogram_of
from monitor.drift.tails import beyond, levels, rate_ratio, tail_growth
from monitor.settings import DriftSettings, Thresholds
from monitor.values.arrays import Counts

SETTINGS = DriftSettings()
CONFIDENCE = SETTINGS.confidence
WINDOWS = tuple(int(length / SETTINGS.bucket) for length in SETTINGS.windows.values())
WARNING: Thresholds = SETTINGS.rules[0].severities["warning"]
MIN_N = SETTINGS.rules[0].min_n
BASELINE_N = 20_000
PER_BUCKET = 20
DAY = 1_440
EVERY = 5
"""Evaluations are so many buckets apart, to save time: a delay is overestimated by as much at most."""
PACK_EDGE = int(np.flatnonzero(EDGES == 2.25)[0])
"""The pack's tail, in the best case: its threshold really is the last percent's (1.2 %) of this traffic."""
NORMAL = np.diff(norm.cdf(EDGES), prepend=0.0, append=1.0)
RUNS = 20
COVERED = 1_500


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    share: float = 0.0
    score: float = 4.0
    later: float | None = None
    """At most so many prompts until the baseline's own tails tell, in the median of the runs."""


SCENARIOS = (
    Scenario(name="unchanged"),
    Scenario(name="1 % of the prompts at +4", share=0.01, later=800),
    Scenario(name="2 % of the prompts at +4", share=0.02, later=400),
    Scenario(name="5 % of the prompts at +4", share=0.05, later=200),
    Scenario(name="1 % of the prompts at +3", share=0.01, score=3.0),
)


def drawn(random: np.random.Generator, n: int, scenario: Scenario = SCENARIOS[0]) -> Counts:
    """The histogram of n independent scores."""
    strange = int(random.binomial(n, scenario.share))
    usual = random.multinomial(n - strange, NORMAL)
    return np.asarray(usual + histogram_of(np.full(strange, scenario.score)), dtype=np.int64)


def first_told(scenario: Scenario, seed: int) -> tuple[float, float]:
    """Prompts until the pack's tail and the baseline's own ones cross the warning line within a day; or inf."""
    random = np.random.default_rng(seed)
    baseline = drawn(random, BASELINE_N)
    own = levels(baseline, (), 1, CONFIDENCE)
    theirs = int(beyond(baseline, 1)[PACK_EDGE]), BASELINE_N
    told = {"pack": math.inf, "own": math.inf}
    for bucket, histogram in _windows(random, scenario):
        n, counts = int(histogram.sum()), beyond(histogram, 1)
        pack = rate_ratio(
            (int(counts[PACK_EDGE]), n), theirs, error=(1 - CONFIDENCE) / 2, design_effect=1.0
        )
        grown = tail_growth(histogram, own, baseline_n=BASELINE_N, sign=1, confidence=CONFIDENCE)
        lows = {"pack": pack.low, "own": max(level.ratio.low for level in grown)}
        limits = {"pack": WARNING.tail_ratio, "own": WARNING.tail_growth}
        for name, low in lows.items():
            if n >= MIN_N and low >= (limits[name] or math.inf):
                told[name] = min(told[name], bucket * PER_BUCKET)
        if all(map(math.isfinite, told.values())):
            break
    return told["pack"], told["own"]


def _windows(random: np.random.Generator, scenario: Scenario) -> Iterator[tuple[int, Counts]]:
    """Windows of a day that follows a quiet one, each with the number of its last bucket."""
    quiet = [drawn(random, PER_BUCKET) for _ in range(DAY)]
    changed = [drawn(random, PER_BUCKET, scenario) for _ in range(DAY)]
    sums = np.concatenate(
        [np.zeros((1, NORMAL.size), np.int64), np.cumsum(quiet + changed, axis=0)]
    )
    for bucket in range(EVERY, DAY + 1, EVERY):
        for length in WINDOWS:
            yield bucket, sums[DAY + bucket] - sums[DAY + bucket - length]


@cache
def told(scenario: Scenario) -> tuple[tuple[float, float], ...]:
    """By run; run k is drawn with seed k."""
    return tuple(first_told(scenario, seed) for seed in range(RUNS))


@cache
def wrongly_grown(n: int, window: int) -> float:
    """Share of windows of unchanged traffic whose lower bound says that a tail grew at all."""
    wrong = 0
    for seed in range(COVERED):
        random = np.random.default_rng(seed)
        own = levels(drawn(random, n), (), 1, CONFIDENCE)
        grown = tail_growth(drawn(random, window), own, baseline_n=n, sign=1, confidence=CONFIDENCE)
        wrong += any(level.ratio.low > 1.0 for level in grown)
    return wrong / COVERED


# --- the page ------------------------------------------------------------------------------------


def row(scenario: Scenario) -> str:
    return f"| {scenario.name} | {' | '.join(_shown(runs) for runs in zip(*told(scenario), strict=True))} |"


def _shown(prompts: tuple[float, ...]) -> str:
    seen = sum(map(math.isfinite, prompts))
    if seen <= RUNS / 2:
        return f"{seen} of {RUNS} runs" if seen else "in no run"
    return f"{np.median(prompts):,.0f}".replace(",", " ")


if __name__ == "__main__":
    print("| traffic | by the pack's tail | by the baseline's own |", "|---|---|---|", sep="\n")
    for one in SCENARIOS:
        print(row(one), flush=True)
    for sizes in ((6_000, 200), (6_000, 1_200), (100_000, 1_200)):
        print(sizes, wrongly_grown(*sizes))
