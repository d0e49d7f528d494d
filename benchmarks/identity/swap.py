"""How many answer tokens until a swapped server shows, at a false-alarm risk of one in a thousand?

    python -m benchmarks.identity swap --model FOLDER --cache DIR [--runs 400] [--seed 0]

Every answer is a speaker's: drawn with replacement from its pool, weighed as the worker weighs, with the default
tolerance. Tokens are counted until the e-process passes 1000, which the copy's own answers ever do with probability
at most 1/1000; medians over the runs. Beside it one-look tests on the same data (`published`), and the z-test on
the same surprise at one look, whose variance is known.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from scipy.special import ndtri

from benchmarks.identity.bets import TOLERANCE, first_crossing, wagered
from benchmarks.identity.pools import GREEDY, SWAPS, Pool, load_pools
from benchmarks.identity.published import RISK, margin_test

ANSWERS = 2_000
"""Longest run; what takes more is not seen."""
SPEAKERS = ("copy", "bfloat16", *SWAPS)


def until_seen(pool: Pool, law: str, runs: int, generator: np.random.Generator) -> dict[str, Any]:
    """Of the e-process: median tokens, and the share of runs that were seen at all."""
    gains = wagered(pool, law)
    answers = np.concatenate(
        [
            first_crossing(
                gains[generator.integers(len(pool), size=(50, ANSWERS))], -math.log(RISK)
            )
            for _ in range(-(-runs // 50))
        ]
    )
    taken = np.where(answers > 0, answers, math.inf) * float(pool.tokens.mean())
    median = float(np.median(taken))
    return {
        "seen": float((answers > 0).mean()),
        "tokens": median if math.isfinite(median) else None,
        "answers": median / float(pool.tokens.mean()) if math.isfinite(median) else None,
    }


def z_test(pool: Pool) -> dict[str, Any]:
    """Tokens until half of all one-look tests reject that the mean surprise is at most the tolerance."""
    tokens = float(pool.tokens.sum())
    mean = float(pool.excess.sum()) / tokens
    answers = pool.excess - mean * pool.tokens
    error = float(np.sqrt((answers**2).sum())) / tokens
    variance = float(pool.variance.sum()) / tokens
    beyond = mean - TOLERANCE
    needed = (float(ndtri(RISK)) / beyond) ** 2 * variance if beyond > 2 * error else None
    return {"surprise": mean, "error": error, "tokens": needed}


def swapped(options: argparse.Namespace) -> dict[str, Any]:
    pools = load_pools(
        options.cache, [*(f"{name}-1" for name in SPEAKERS), *(f"{name}-0" for name in GREEDY)]
    )
    generator = np.random.default_rng([options.seed, 1])
    drawn = {
        name: {
            "identity": until_seen(pools[f"{name}-1"], "1", options.runs, generator),
            "z_test": z_test(pools[f"{name}-1"]),
            "answers_in_pool": len(pools[f"{name}-1"]),
        }
        for name in SPEAKERS
    }
    honest = pools["bfloat16-0"]
    greedy = {
        name: {
            "identity": until_seen(pools[f"{name}-0"], "0", options.runs, generator),
            "margin": float(pools[f"{name}-0"].excess.sum() / pools[f"{name}-0"].tokens.sum()),
            "given_away": _given_away(pools[f"{name}-0"]),
            "token_difr": margin_test(honest, pools[f"{name}-0"], generator),
        }
        for name in GREEDY
    }
    return {"runs": options.runs, "longest_run": ANSWERS, "drawn": drawn, "greedy": greedy}


def _given_away(pool: Pool) -> float:
    return sum(one.given_away for one in pool.surprises) / float(pool.tokens.sum())
