"""Wagers of whole pools, and the two processes that the watcher and the theory make of them, for many runs at once.

Legend: n = answers, s = shares that are bet on, r = runs, m = minutes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from benchmarks.identity.pools import LAWS, Pool
from monitor.drift.identity import SHARES, wagers
from monitor.settings import IdentitySettings
from monitor.values.arrays import Counts, Doubles

TOLERANCE = IdentitySettings().tolerance


def wagered(pool: Pool, law: str) -> Doubles:
    """The log gains [n, s] of the pool's answers, at the default tolerance; no token count is in the log."""
    return _wagered(pool, law, counted=False)


def counted(pool: Pool, law: str) -> Doubles:
    """As `wagered` where the log holds the server's token counts: answers with other ones are left out."""
    gains = _wagered(pool, law, counted=True)
    found: Doubles = np.where((pool.drawn_tokens == pool.tokens)[:, None], gains, 0.0)
    return found


def _wagered(pool: Pool, law: str, *, counted: bool) -> Doubles:
    sharp = LAWS[law].sharp
    found = [replace(one, sharp=sharp, counted=counted) for one in pool.surprises]
    return np.array([wagers(one, TOLERANCE) for one in found])


def highest(gains: Doubles) -> Doubles:
    """The largest log e-value [r] of answers that come with ``gains`` [r, n, s], looked at after each."""
    found: Doubles = _averaged(gains.cumsum(axis=1)).max(axis=1)
    return found


def first_crossing(gains: Doubles, limit: float) -> Counts:
    """Answers [r] until the e-process of ``gains`` [r, n, s] reaches ``limit`` (a log); -1 where it does not."""
    return _first(_averaged(gains.cumsum(axis=1)) >= limit)


def first_alarm(gains: Doubles, limit: float) -> Counts:
    """Minutes [r] until the e-detector of minutes with ``gains`` [r, m, s] reaches ``limit``; -1: never."""
    runs, minutes, shares = gains.shape
    values, evidence = np.full((runs, shares), -math.inf), np.empty((runs, minutes))
    for minute in range(minutes):
        # As `monitor.drift.identity.step` does for one stream.
        values = np.logaddexp(values, 0.0) + gains[:, minute]
        evidence[:, minute] = _averaged(values)
    return _first(evidence >= limit)


def _averaged(values: Doubles) -> Doubles:
    found: Doubles = np.logaddexp.reduce(values, axis=-1) - math.log(len(SHARES))
    return found


def _first(over: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Counts:
    found: Counts = np.where(over.any(axis=1), over.argmax(axis=1) + 1, -1)
    return found
