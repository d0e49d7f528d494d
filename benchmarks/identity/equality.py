"""How many answer tokens *model equality testing* needs to see a swapped server, on the same speakers.

    python -m benchmarks.identity equality --model FOLDER --cache DIR [--runs 200] [--seed 0]

The test of arXiv 2410.20247: several answers to each of some fixed questions, from the server and from a reference; the
squared maximum mean discrepancy under the Hamming kernel (in how many places two answers to one question have the same token, the
shorter one padded), unbiased, averaged over questions, against what permuting the answers of each question gives. It
needs no probabilities, but questions of its own and a reference that answers as often. Here the reference is the copy, the
server one of `SERVERS`, at temperature 1; the risk is 10⁻³ at one look.

Legend: m = questions, r = answers to each by reference and server each, t = `TOKENS`.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

import numpy as np
import torch

from benchmarks.identity.drawing import asked_of, drawn
from benchmarks.identity.pools import LAWS, TOKENS, Wanted
from benchmarks.identity.published import RISK
from benchmarks.identity.questions import CORE, questions
from benchmarks.identity.speakers import SPEAKERS, asked, speaking
from benchmarks.persona.results import pack_of
from monitor.values.arrays import Counts, Doubles

SERVERS: Final = ("copy", "bfloat16", "int8", "int4", "steps-1", "steps-8", "steps-64")
QUESTIONS: Final = 24
ANSWERS: Final = 10
"""To each question, as in the paper."""
SIZES: Final = (
    (1, 5),
    (2, 5),
    (4, 5),
    (8, 5),
    (16, 5),
    (24, 5),
    (4, 10),
    (8, 10),
    (16, 10),
    (24, 10),
)
"""(m, r) that are tried, the fewest answers first among equals."""
PERMUTATIONS: Final = 4_000
PADDING: Final = -1


def equality(options: argparse.Namespace) -> dict[str, Any]:
    """By server: how often each size of sample rejects, and the tokens of the smallest that does in half of the runs."""
    torch.set_num_threads(1)
    reference = said_by("copy", options, seed=options.seed + 1)
    found = {}
    for name in SERVERS:
        served = said_by(name, options, seed=options.seed + 2)
        generator = np.random.default_rng([options.seed, 2])
        rejected = {
            f"{m} x {r}": _power(reference, served, m, r, options.runs, generator) for m, r in SIZES
        }
        length = float((served != PADDING).sum(axis=2).mean())
        enough = [m * r * length for m, r in SIZES if rejected[f"{m} x {r}"] >= 0.5]
        found[name] = {"rejected": rejected, "tokens": min(enough, default=None)}
        print(name, found[name], flush=True)
    return {"runs": options.runs, "most": QUESTIONS * ANSWERS, "servers": found}


def said_by(name: str, options: argparse.Namespace, seed: int) -> Counts:
    """[QUESTIONS, ANSWERS, TOKENS] token ids, padded with `PADDING`."""
    every, who = questions(), SPEAKERS[name]
    places = asked_of(Wanted(speaker=name, law="1"), every, QUESTIONS // len(CORE))
    answers = np.full((len(places), ANSWERS, TOKENS), PADDING)
    with speaking(who, options.model, (options.cache,), pack_of(options), "cpu") as loaded:
        rows = asked(who, loaded, [every[place].prompt for place in places])
        repeated = [row for row in rows for _ in range(ANSWERS)]
        for place, said in drawn(loaded, repeated, LAWS["1"], seed):
            question, draw = divmod(place, ANSWERS)
            answers[question, draw, : len(said.ids)] = said.ids
    return answers


def discrepancy(kernel: Doubles, ours: Doubles) -> Doubles:
    """The unbiased squared discrepancy [p] of each split; ``kernel`` [m, 2r, 2r], ``ours`` [p, m, 2r] of 0 and 1."""
    size = kernel.shape[1] // 2
    apart = kernel * (1 - np.eye(kernel.shape[1]))
    theirs = 1 - ours
    within = np.einsum("pmi,mij,pmj->p", ours, apart, ours, optimize=True) + np.einsum(
        "pmi,mij,pmj->p", theirs, apart, theirs, optimize=True
    )
    between = np.einsum("pmi,mij,pmj->p", ours, apart, theirs, optimize=True)
    found: Doubles = (within / (size * (size - 1)) - 2 * between / size**2) / kernel.shape[0]
    return found


def _power(
    reference: Counts, served: Counts, m: int, r: int, runs: int, generator: np.random.Generator
) -> float:
    """In what share of the runs, each of other questions and answers, the test rejects."""
    rejections = 0
    for _ in range(runs):
        chosen = generator.choice(len(reference), m, replace=False)
        draws = [generator.choice(ANSWERS, r, replace=False) for _ in range(2)]
        both = np.concatenate(
            [reference[chosen][:, draws[0]], served[chosen][:, draws[1]]], axis=1
        )  # [m, 2r, t]
        kernel = (both[:, :, None] == both[:, None]).sum(axis=3).astype(float)
        seen = np.zeros((1, m, 2 * r))
        seen[..., :r] = 1
        order = generator.random((PERMUTATIONS, m, 2 * r)).argsort(axis=2)
        permuted = (order < r).astype(float)
        null = discrepancy(kernel, permuted)
        at_least = int((null >= discrepancy(kernel, seen)[0] - 1e-12).sum())
        rejections += (1 + at_least) / (1 + PERMUTATIONS) <= RISK
    return rejections / runs
