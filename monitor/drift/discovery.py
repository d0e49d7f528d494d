"""Which of many streams have changed? E-values of all of them, and a bounded share of false discoveries.

The detectors of `monitor.drift.sequential`, `identity` and `twin` promise a time between false alarms; their values
grow with time and are no e-values. From the same gains of the same buckets an e-process is made beside each: with gains
L_t, E[L_t | past] ≤ 1 while nothing has changed, every product Π_{t ≥ s} L_t that begins at a bucket s fixed
beforehand has a mean of at most 1 at every stopping time, and so has their mixture over s,

    E_t = Σ_s w_s Π_{s ≤ u ≤ t} L_u + (1 - Σ_{s ≤ t} w_s),    w_s ≥ 0, Σ w_s ≤ 1

which one recursion holds, M_t = L_t (M_{t-1} + w_t), E_t = M_t + `unstaked`(t). A single product from the beginning on
would lose something with every quiet bucket (bets keep a margin), and after a month a change would take as long to be
seen; the mixture pays ln(1 / w_s) once, about 16 nats for a change after 30 days of minutes.

**Beginning.** At the baseline's approval; of identity and twins, with their first bucket. Never set back: an
e-value says that the stream changed *at some time* since then, an alarm says that it is changed *now*.

**False discoveries.** Of K e-values those that reach ln(K / (α k)), for the largest k that so many reach, are the
discoveries (e-BH: Wang and Ramdas, "False discovery rate control with e-values", JRSS B 84, 2022). The expected share
of false ones among them is at most α times the share of streams that did not change, whatever the dependence between
streams: segment `all` holds every other segment's prompts, and features correlate. It holds at every evaluation, each by
itself. What it assumes of each stream is what the detectors assume (design effect, bounds of the baseline); and which
streams there are must not depend on what they show.

Array legend: c = bets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from monitor.values.arrays import Doubles
from monitor.values.evidence import EProcess


def unstaked(steps: int) -> float:
    """What is not staked yet after so many buckets, of 1 at the beginning.

    It falls so slowly that a change after t buckets costs about ln t + 2 ln ln t nats, whatever t is.
    """
    return 1.0 / (1.0 + math.log1p(steps))


def begin(bets: int, at: datetime) -> EProcess:
    """An e-process that has seen nothing, and takes what comes after ``at``."""
    return EProcess(since=at, steps=0, log_values=(-math.inf,) * bets)


def step(process: EProcess, gains: Doubles, log_weights: Doubles | None = None) -> EProcess:
    """The process after one more bucket with data, of log gains [c].

    ``log_weights`` [c] are the bets' in the average, of a sum of at most 1; None: equal ones.
    """
    if log_weights is None:
        log_weights = np.full(len(gains), -math.log(len(gains)))
    steps = process.steps + 1
    left = unstaked(steps)
    staked = math.log(unstaked(process.steps) - left)
    values = np.logaddexp(np.array(process.log_values), staked) + gains
    total = np.logaddexp.reduce(np.logaddexp(values, math.log(left)) + log_weights)
    return replace(process, steps=steps, log_values=tuple(values.tolist()), log_e=float(total))


def line(log_es: Sequence[float], rate: float) -> float:
    """The log e-value from which on a stream is a discovery, at false discovery rate ``rate`` (e-BH)."""
    if not log_es:
        return math.inf
    needed = math.log(len(log_es) / rate) - np.log(np.arange(1, len(log_es) + 1))
    enough = np.flatnonzero(np.sort(log_es)[::-1] >= needed)
    return float(needed[enough[-1]] if enough.size else needed[0])
