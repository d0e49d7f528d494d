"""The law of answers that nobody tells, estimated on simulated ones, and the test of identity under the estimate.

As in `identity_simulation` every token has scores of its own, from a family that wanders with the hour. Each run draws
a baseline's answers by the true law, estimates it as the worker and `baseline capture` do, and looks at the e-process
of further answers behind each of them, held against the estimate, without a tolerance to hide behind.
``python -m tests.drift.law_simulation`` prints the figures.

Legend: r = runs, n = answers, t = tokens, v = vocabulary, s = shares.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from monitor.drift.identity import SHARES, wagers
from monitor.drift.law import estimated
from monitor.replay.likelihood import under_each_law
from monitor.replay.sampler import truncated
from monitor.replay.surprise import _piece
from monitor.values.likelihood import EstimatedLaw, Likelihood, Likelihoods, NoLaw, squares_of
from monitor.values.prompts import Sampling
from monitor.values.surprise import Surprise

TOKENS, VOCABULARY = 24, 50
RUNS, BASELINE, ANSWERS = 400, 150, 150
TRUE = Sampling(temperature=0.7, top_p=0.9)
LAWS = (
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    TRUE,
    Sampling(temperature=0.77, top_p=0.88),
)
"""The last one lies between the laws of the grid."""


class Run(NamedTuple):
    law: EstimatedLaw
    won: np.ndarray
    """Wagers [n, s] of the further answers."""


def scored(random: torch.Generator, n: int, hour: float) -> torch.Tensor:
    """Scores [n t, v]: of laws from nearly certain to nearly flat, the more so as the hour turns."""
    heat = (torch.randn(n, TOKENS, 1, generator=random) * 0.8 + math.sin(hour)).exp()
    logits = torch.randn(n, TOKENS, VOCABULARY, generator=random) * 3.0 / heat
    return logits.reshape(-1, VOCABULARY)


def drawn(random: torch.Generator, scores: torch.Tensor, law: Sampling) -> torch.Tensor:
    """Tokens [n t]."""
    assert law.temperature
    kept = truncated((scores / law.temperature).log_softmax(dim=1), law)
    return torch.multinomial(kept.exp(), 1, generator=random)[:, 0]


def summed(random: torch.Generator, law: Sampling, n: int, *, hour: float = 0.0) -> Likelihoods:
    """Of ``n`` answers that were drawn by ``law``."""
    scores = scored(random, n, hour)
    logs, excess, variance = (
        column.double().numpy().reshape(n, TOKENS, -1).sum(axis=1)
        for column in under_each_law(scores, drawn(random, scores, law))
    )
    sums = Likelihoods()
    for one, off, scatter in zip(logs, excess, variance, strict=True):
        sums += Likelihood(tokens=TOKENS, logs=one, squares=squares_of(off, scatter))
    return sums


def gains(
    random: torch.Generator, true: Sampling, law: Sampling, n: int, *, hour: float = 0.0
) -> np.ndarray:
    """Wagers [n, s] of answers that were drawn by ``true`` and are held against ``law``."""
    scores = scored(random, n, hour)
    _, _, bets, *_ = _piece(scores, drawn(random, scores, true), law)
    return np.array(
        [
            wagers(
                Surprise(
                    law="sampled",
                    tokens=TOKENS,
                    excess=0.0,
                    variance=1.0,
                    peak=0.0,
                    off_support=0,
                    given_away=0,
                    log_bets=one,
                ),
                tolerance=0.0,
            )
            for one in bets[..., 0].double().numpy().reshape(n, TOKENS, -1).sum(axis=1)
        ]
    )


@cache
def runs(true: Sampling = TRUE, *, count: int = RUNS) -> tuple[Run | NoLaw, ...]:
    """Baseline, estimate and further answers [r], each by a seed of its own."""
    found: list[Run | NoLaw] = []
    for seed in range(count):
        random = torch.Generator().manual_seed(seed)
        law = estimated(summed(random, true, BASELINE, hour=seed / 7))
        if isinstance(law, NoLaw):
            found.append(law)
            continue
        won = gains(random, true, law.least_favourable(Sampling()), ANSWERS, hour=seed / 7 + 1.0)
        found.append(Run(law, won))
    return tuple(found)


def highest(won: np.ndarray) -> float:
    """Log of the largest e-value behind any answer."""
    total = won.cumsum(axis=0)
    return float((np.logaddexp.reduce(total, axis=1) - math.log(len(SHARES))).max())


def mixed(first: Sampling, second: Sampling, share: float, *, seed: int) -> EstimatedLaw | NoLaw:
    """The estimate of a baseline ``share`` of whose answers were drawn by the second law."""
    random = torch.Generator().manual_seed(seed)
    other = round(BASELINE * share)
    return estimated(summed(random, first, BASELINE - other) + summed(random, second, other))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for true in LAWS:
        made = runs(true)
        known = [one for one in made if isinstance(one, Run)]
        off = np.array([one.law.temperature / (true.temperature or 1.0) for one in known])
        covered = np.mean(
            [
                one.law.high >= (true.temperature or 1.0)
                and one.law.top_p_high >= (true.top_p or 1.0)
                for one in known
            ]
        )
        top = np.array([highest(one.won) for one in known])
        crossed = ", ".join(f"{np.mean(top >= -math.log(a)):.2%} pass 1/{a}" for a in (0.05, 0.01))
        print(
            f"{true.temperature:g}, {true.top_p or 1.0:g}: {len(known)} of {len(made)} estimated, "
            f"T off by {off.mean() - 1:+.3f} ± {off.std():.3f}, "
            f"top_p {sorted({one.law.top_p for one in known})}, held against at most "
            f"{max(one.law.high for one in known):.3g}, covered {covered:.3f}, "
            f"spread {np.mean([one.law.spread for one in known]):.2f}; {crossed}",
            flush=True,
        )
    hot, cold = Sampling(temperature=1.3), Sampling(temperature=0.7)
    for share in (0.05, 0.1, 0.25, 0.5):
        told = [mixed(cold, hot, share, seed=seed) for seed in range(40)]
        print(
            f"{share:.0%} at 1.3, else 0.7: {sum(isinstance(one, NoLaw) for one in told)} of 40 refused"
        )
