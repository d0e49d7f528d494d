"""Does the copy itself, as the server, stay unaccused? On its own answers, read back from their text.

    python -m benchmarks.identity validity --model FOLDER --cache DIR [--runs 400] [--seed 0]

10,000 answers a run at each law, with and without the server's token counts in the log. Topics drift: their shares
wander with the hour, so that no stretch is like another. As many runs again hold nothing but other languages, which the
tokenizer splits into many small pieces: the hardest topic, and a service may have no other. Answers are drawn with replacement from the pool, so what is tried is the process on the answers
that there are; a pool's own mean of each wager stands beside it, which must not be above 1.

Legend: r = runs, n = answers, s = shares that are bet on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.identity.bets import counted, first_alarm, highest, wagered
from benchmarks.identity.pools import UNTOLD, Pool, load_pools
from benchmarks.identity.questions import questions
from benchmarks.identity.shares import LIMIT, PER_MINUTE
from benchmarks.persona.machine import spread_over
from monitor.drift.identity import SHARES
from monitor.research.statistics import rate_bound
from monitor.values.arrays import Counts, Doubles

ANSWERS = 10_000
HONEST = {"1": "copy-1", "0.7": "copy-0.7", "0": "bfloat16-0"}
"""Who speaks at each law. At temperature 0 a server that computes in bfloat16: the copy itself would give nothing away."""
ESTIMATED = "0.7, counted, estimated"
"""No record says how the answers were drawn; a baseline estimated it (`benchmarks.identity.untold`)."""
ALPHAS = (0.05, 0.01)
HARDEST = "other languages"
"""The topic that is also tried alone."""
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


@dataclass(frozen=True, kw_only=True)
class Honest:
    """The copy's answers by law, and what they gain."""

    pools: Mapping[str, Pool]
    gains: Mapping[str, Doubles]
    alone: Mapping[str, Counts]
    """By law the places of `HARDEST`."""
    seed: int


def only(pool: Pool, topic: str) -> Counts:
    """Its places."""
    every = questions()
    return np.flatnonzero([every[place].topic == topic for place in pool.question])


def run(honest: Honest, item: tuple[str, bool, int]) -> tuple[float, bool]:
    """The largest log e-value of 10,000 answers, and whether the detector in force alarmed."""
    law, alone, number = item
    generator = np.random.default_rng([honest.seed, 4, number])
    if alone:
        places = honest.alone[law]
        passing = places[generator.integers(len(places), size=ANSWERS)]
    else:
        passing = drifting(honest.pools[law], ANSWERS, generator)
    own = honest.gains[law][passing]
    minutes = own.reshape(-1, PER_MINUTE, len(SHARES)).sum(axis=1)
    return float(highest(own[None])[0]), bool(first_alarm(minutes[None], LIMIT)[0] > 0)


def _ended(ran: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """What the runs came to."""
    largest = np.array([one for one, _ in ran])
    crossed: dict[str, Any] = {}
    for alpha in ALPHAS:
        count = int((largest >= -math.log(alpha)).sum())
        bound = rate_bound(count, len(ran))
        crossed[f"{alpha:g}"] = {"runs": count, "interval_95": [bound.low, bound.high]}
    return {
        "runs": len(ran),
        "crossed": crossed,
        "largest_log_e_value": float(largest.max()),
        "detector_alarms": sum(alarmed for _, alarmed in ran),
    }


def held(
    pool: Pool,
    gains: Doubles,
    alone: Counts,
    ran: Mapping[bool, Sequence[tuple[float, bool]]],
) -> dict[str, Any]:
    """``ran``: with `HARDEST` alone, whose places are ``alone``, and with all topics."""
    wins = np.exp(gains)
    one_topic = None
    if ran[True]:
        one_topic = {"topic": HARDEST, "answers_in_pool": len(alone), **_ended(ran[True])}
    return {
        "answers_in_pool": len(pool),
        "answers_a_run": ANSWERS,
        **_ended(ran[False]),
        "alone": one_topic,
        "same_tokens": float(pool.same.mean()),
        "mean_wager": wins.mean(axis=0).tolist(),
        "mean_wager_error": (wins.std(axis=0, ddof=1) / math.sqrt(len(wins))).tolist(),
    }


def valid(options: argparse.Namespace) -> dict[str, Any]:
    """By law, and by law where the log holds token counts."""
    loaded = load_pools(options.cache, [*HONEST.values(), UNTOLD])
    pools: dict[str, Pool] = {}
    gains: dict[str, Doubles] = {}
    for law, name in HONEST.items():
        pools[law] = pools[f"{law}, counted"] = loaded[name]
        gains[law], gains[f"{law}, counted"] = (
            wagered(loaded[name], law),
            counted(loaded[name], law),
        )
    # An estimated law counts as sharp, as that of the pool is.
    pools[ESTIMATED], gains[ESTIMATED] = loaded[UNTOLD], counted(loaded[UNTOLD], "0.7")
    alone = {law: only(pools[law], HARDEST) for law in pools}
    items = [
        (law, one, number)
        for law in pools
        for one in ((False, True) if len(alone[law]) else (False,))
        for number in range(options.runs)
    ]
    honest = Honest(pools=pools, gains=gains, alone=alone, seed=options.seed)
    ran: dict[str, dict[bool, list[tuple[float, bool]]]]
    ran = {law: {False: [], True: []} for law in pools}
    for (law, one, _), found in spread_over(run, honest, items, options.jobs):
        ran[law][one].append(found)
    return {law: held(pools[law], gains[law], alone[law], ran[law]) for law in pools}
