"""Is what was said what the copy would have said? A test without a baseline, valid at every look.

Of every answer the replay gives bets against the copy (`monitor.values.surprise`): likelihood ratios E
of tilted laws, E[E | all before] ≤ 1 while the served model is the copy, whatever is asked and by whom.
When a share ε of the answers comes from another model, the best wager on one answer is

    log(1 - ε + ε E),    E the mean over the tilts

and wagers add up over answers, partitions and buckets (a betting e-process: Shafer, JRSS A 184, 2021;
Waudby-Smith and Ramdas, JRSS B 86, 2024). Nobody knows ε, so a few are held at once and their
processes averaged. By Ville's inequality the average ever exceeds 1/α with probability at most α.

The alarm is the e-detector of `monitor.drift.sequential` on the same wagers (Shiryaev-Roberts, one step
a bucket), so that its average run length is the fleet's, and so that it forgets what lies long behind.

**Numerics.** A served model and its copy never compute the same. With at most ``tolerance`` nats a token
between their log-probabilities in the mean, a bet of tilt λ gains at most λ · tolerance a token by it
(to first order, E grows as the excess does), which is taken off before the wager.

Array legend: c = tilts, s = `SHARES`, n = answers.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.surprise import TILTS, Surprise

SHARES: Final = (0.003, 0.01, 0.05, 0.2, 0.9)
"""Shares of foreign answers that the wagers are best for."""


def wagers(surprise: Surprise, tolerance: float) -> Doubles:
    """Log gains [s] of one answer; ``tolerance`` in nats a token."""
    bets = surprise.log_bets
    if surprise.law == "sampled":
        bets = bets - np.array(TILTS) * tolerance * surprise.tokens
    gain = float(np.logaddexp.reduce(bets) - np.log(len(bets)))
    shares = np.array(SHARES)
    return np.logaddexp(np.log1p(-shares), np.log(shares) + gain)


def evidence(total: Doubles) -> float:
    """Log of the e-process after wagers that sum to ``total`` [s]: the mean over the shares."""
    return float(np.logaddexp.reduce(total) - np.log(len(SHARES)))


def step(values: Doubles, gains: Doubles) -> Doubles:
    """The Shiryaev-Roberts values (logs [s]) after one bucket whose wagers sum to ``gains`` [s]."""
    return np.logaddexp(values, 0.0) + gains
