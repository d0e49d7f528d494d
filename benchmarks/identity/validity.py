"""Does the copy itself, as the server, stay unaccused? On its own answers, read back from their text.

    python -m benchmarks.identity validity --model FOLDER --cache DIR [--runs 400] [--seed 0]

10,000 answers a run at each of two laws. Topics drift: their shares wander with the hour, so that no stretch is
like another. Answers are drawn with replacement from the pool, so what is tried is the process on the answers
that there are; a pool's own mean of each wager stands beside it, which must not be above 1.

Legend: r = runs, n = answers, s = shares that are bet on.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from benchmarks.identity.bets import first_alarm, highest, wagered
from benchmarks.identity.pools import Pool, load_pools
from benchmarks.identity.questions import questions
from benchmarks.identity.shares import LIMIT, PER_MINUTE
from monitor.drift.identity import SHARES
from monitor.research.statistics import rate_bound
from monitor.values.arrays import Counts

ANSWERS = 10_000
ALPHAS = (0.05, 0.01)
PER_HOUR = 60 * PER_MINUTE


def drifting(pool: Pool, answers: int, generator: np.random.Generator) -> Counts:
    """Places in the pool [n]: each hour has its own mixture of topics, from even to one alone."""
    every = questions()
    topics = np.array([every[place].topic for place in pool.question])
    members = [np.flatnonzero(topics == topic) for topic in sorted(set(topics))]
    found = []
    for _ in range(-(-answers // PER_HOUR)):
        mixture = generator.dirichlet(np.full(len(members), 0.3))
        chosen = generator.choice(len(members), size=PER_HOUR, p=mixture)
        hour = np.zeros(PER_HOUR, dtype=np.int64)
        for place, group in enumerate(members):
            here = chosen == place
            hour[here] = group[generator.integers(len(group), size=int(here.sum()))]
        found.append(hour)
    return np.concatenate(found)[:answers]


def held(pool: Pool, runs: int, generator: np.random.Generator) -> dict[str, Any]:
    gains = wagered(pool)
    largest, alarms = np.empty(runs), 0
    for run in range(runs):
        own = gains[drifting(pool, ANSWERS, generator)]
        largest[run] = highest(own[None])[0]
        minutes = own.reshape(-1, PER_MINUTE, len(SHARES)).sum(axis=1)
        alarms += int(first_alarm(minutes[None], LIMIT)[0] > 0)
    crossed: dict[str, Any] = {}
    for alpha in ALPHAS:
        count = int((largest >= -math.log(alpha)).sum())
        bound = rate_bound(count, runs)
        crossed[f"{alpha:g}"] = {"runs": count, "interval_95": [bound.low, bound.high]}
    wins = np.exp(gains)
    return {
        "answers_in_pool": len(pool),
        "answers_a_run": ANSWERS,
        "runs": runs,
        "crossed": crossed,
        "largest_log_e_value": float(largest.max()),
        "detector_alarms": alarms,
        "mean_wager": wins.mean(axis=0),
        "mean_wager_error": wins.std(axis=0, ddof=1) / math.sqrt(len(wins)),
    }


def valid(options: argparse.Namespace) -> dict[str, Any]:
    pools = load_pools(options.cache)
    generator = np.random.default_rng([options.seed, 4])
    return {law: held(pools[f"copy-{law}"], options.runs, generator) for law in ("1", "0.7")}
