"""The copy's answers as where nobody says how they were drawn: a baseline of them estimates it, the others are weighed by that.

    python -m benchmarks.identity untold --model FOLDER --cache DIR [--answers 1400] [--seed 0]

The texts are those of the pool at temperature 0.7 with top_p 0.9 that hold as many tokens as were drawn: the log has the server's
counts. Without them nothing is estimated here, for an odd token is one that top_p never leaves. Of `BASELINE` answers the worker's own
sums are made, and the law as `monitor baseline capture` estimates it; others, of all topics, are weighed by it and kept as one more
pool.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from benchmarks.identity.drawing import Answer, Monitor, Said
from benchmarks.identity.pools import TOKENS, UNTOLD, Pool, keep, kept
from benchmarks.identity.questions import questions
from benchmarks.persona.results import pack_of
from monitor.drift.law import estimated
from monitor.values.arrays import Counts
from monitor.values.likelihood import DrawnBy, EstimatedLaw, Likelihood, Likelihoods, Untold
from monitor.values.prompts import Sampling
from monitor.values.scores import Replayed

BASELINE: Final = 300
"""Answers that the law is estimated from."""
TOLD: Final = "copy-0.7"


def make_untold(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    told = kept(options.cache / f"{TOLD}.npz").counted
    order = np.random.default_rng([options.seed, 5]).permutation(len(told))
    monitor = Monitor(options.model, pack_of(options), "cpu")
    law = _law(monitor, _answers(told, order[:BASELINE]))
    print(f"estimated: {law}", flush=True)
    others = _answers(told, order[BASELINE : BASELINE + options.answers])
    pool = monitor.pool(others, _untold(law), started)
    keep(pool, options.cache / f"{UNTOLD}.npz")
    print(f"{len(pool)} answers in {pool.seconds:.0f} s, left out {pool.left_out}", flush=True)


def _law(monitor: Monitor, answers: Sequence[Answer]) -> EstimatedLaw:
    sums = Likelihoods()
    for _, outcome in monitor.weighed(answers, _untold(None)):
        if isinstance(outcome, Replayed) and isinstance(outcome.weighed, Likelihood):
            sums += outcome.weighed
    found = estimated(sums)
    if not isinstance(found, EstimatedLaw):
        raise SystemExit(f"no law was estimated: {found}")
    return found


def _untold(law: EstimatedLaw | None) -> Callable[[str], DrawnBy]:
    return lambda reason: Untold(said=Sampling(finish_reason=reason), law=law)


def _answers(pool: Pool, places: Counts) -> list[Answer]:
    """What a log holds of them, and of the tokens drawn how many there were."""
    every = questions()
    found: list[Answer] = []
    for place in places.tolist():
        question, text = int(pool.question[place]), pool.texts[place]
        drawn = int(pool.drawn_tokens[place])
        said = Said(ids=(0,) * drawn, text=text, ended=drawn < TOKENS)
        found.append((question, replace(every[question].prompt, response=text), said))
    return found
