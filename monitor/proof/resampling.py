"""Stored history drawn anew in blocks, and persona prompts mixed into it. Pure.

Blocks of consecutive buckets are drawn with replacement (Künsch, "The jackknife and the bootstrap for general
stationary observations", Annals of Statistics 17, 1989), so that what hangs together within one stays together.
Where the history has every hour of the day often enough, a block takes the place of one of the same hour: the
daily wave stays as well. All figures of a bucket move together, the raw score's and the adjusted one's.

Array legend: m = buckets, s = streams, r = score bins, with the one that holds the tail's threshold cut in two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from monitor.drift.histogram import EDGES
from monitor.drift.history import History
from monitor.values.arrays import Counts, Doubles
from monitor.values.features import Directed
from monitor.values.scores import SCORE_BINS

BLOCK: Final = timedelta(hours=1)
DAYS_FOR_HOURS: Final = 3
"""So many blocks of every hour of the day, and blocks are drawn by their hour."""
_OUTER: Final = 25.0
"""Where scores in the two open bins are taken to end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """The blocks of one feature's held-out history."""

    history: History
    length: int
    """Buckets of a block."""
    firsts: Counts
    """The bucket that each begins with."""
    by_hour: Mapping[int, Counts]
    """Blocks by the hour of the day that they begin in; empty where they are drawn regardless."""

    @property
    def span(self) -> timedelta:
        """What they come to."""
        return len(self.firsts) * self.length * self.history.step

    def drawn(self, start: datetime, count: int, generator: np.random.Generator) -> History:
        """``count`` blocks, as if they had followed one another from ``start`` on."""
        firsts = []
        for number in range(count):
            hour = (start + number * self.length * self.history.step).hour
            firsts.append(generator.choice(self.by_hour.get(hour, self.firsts)))
        rows = (np.array(firsts)[:, None] + np.arange(self.length)).ravel()
        kept = self.history
        return History(
            start=start,
            step=kept.step,
            streams=kept.streams,
            n=kept.n[rows],
            totals=kept.totals[rows],
            squares=kept.squares[rows],
            tails=kept.tails[rows],
            unknown=kept.unknown[rows],
            histograms=kept.histograms[rows],
        )


def blocks_of(history: History, left_out: Sequence[tuple[datetime, datetime]]) -> Blocks:
    """Whole hours of the history that hold prompts in all its streams, but for those that touch an interval ``left_out``."""
    length = max(BLOCK // history.step, 1)
    if not history.streams:
        return Blocks(
            history=history, length=length, firsts=np.array([], dtype=np.int64), by_hour={}
        )
    seconds = (length * history.step).total_seconds()
    to_whole = -history.start.timestamp() % seconds
    first = math.ceil(to_whole / history.step.total_seconds())
    found = []
    for begin in range(first, len(history.n) - length + 1, length):
        start = history.start + begin * history.step
        end = start + length * history.step
        touches = any(start < until and end > since for since, until in left_out)
        if not touches and history.n[begin : begin + length].any(axis=0).all():
            found.append(begin)
    firsts = np.array(found, dtype=np.int64)
    hours: dict[int, list[int]] = {}
    for begin in found:
        hours.setdefault((history.start + begin * history.step).hour, []).append(begin)
    often = len(hours) == 24 and min(map(len, hours.values())) >= DAYS_FOR_HOURS
    return Blocks(
        history=history,
        length=length,
        firsts=firsts,
        by_hour={hour: np.array(own) for hour, own in hours.items()} if often else {},
    )


def with_persona(
    history: History,
    feature: Directed,
    deviations: Sequence[float],
    *,
    since: datetime,
    share: float,
    size: float,
    generator: np.random.Generator,
) -> History:
    """The history, in which from ``since`` on each prompt is, with probability ``share``, a persona's.

    A persona's prompt scores ``size`` deviations (``deviations`` [s] are the baseline's, by stream) further
    towards the persona than it did. Within a bin scores are taken to lie evenly. Totals move exactly; counts
    of a bin are rounded at random, so that they are right in the mean and add up to the same number.
    """
    begin = max(-((history.start - since) // history.step), 0)
    totals, squares = history.totals.copy(), history.squares.copy()
    tails, histograms = history.tails.copy(), history.histograms.copy()
    for s, deviation in enumerate(deviations):
        shift = feature.sign * size * deviation
        bins = _Bins.of(feature)
        there = bins.refined(history.histograms[begin:, s], history.tails[begin:, s])
        theirs = there if share >= 1.0 else generator.binomial(there, share)
        gone = bins.shifted(theirs, shift, generator)
        after = there - theirs + gone
        histograms[begin:, s], tails[begin:, s] = bins.merged(after)
        count = theirs.sum(axis=1)
        own = history.totals[begin:, s] if share >= 1.0 else theirs @ bins.centres
        totals[begin:, s] += shift * count
        squares[begin:, s] += 2 * shift * own + shift**2 * count
    return History(
        start=history.start,
        step=history.step,
        streams=history.streams,
        n=history.n,
        totals=totals,
        squares=squares,
        tails=tails,
        unknown=history.unknown,
        histograms=histograms,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bins:
    """The score bins of one feature, cut where its tail begins."""

    edges: Doubles
    """Of all bins, both ends included [r + 1]."""
    cut: int
    """The score bin that the threshold lies in."""
    whole: bool
    """The threshold is an edge: nothing is cut."""
    sign: int

    @classmethod
    def of(cls, feature: Directed) -> _Bins:
        threshold = feature.sign * feature.tail_threshold
        place = int(np.searchsorted(EDGES, threshold, side="right"))
        whole = threshold in EDGES.tolist()
        edges = EDGES if whole else np.insert(EDGES, place, threshold)
        return cls(
            edges=np.concatenate([[-_OUTER], edges, [_OUTER]]),
            cut=place,
            whole=whole,
            sign=feature.sign,
        )

    @property
    def centres(self) -> Doubles:
        found: Doubles = (self.edges[1:] + self.edges[:-1]) / 2
        return found

    def refined(self, histograms: Counts, tails: Counts) -> Counts:
        """[m, r] of [m, b] and the tail prompts [m]."""
        if self.whole:
            return histograms
        own = histograms[:, self.cut]
        beyond = self._beyond(histograms, self.cut)
        tail = np.clip(tails - beyond, 0, own)
        parts = (own - tail, tail) if self.sign > 0 else (tail, own - tail)
        return np.concatenate(
            [
                histograms[:, : self.cut],
                np.stack(parts, axis=1),
                histograms[:, self.cut + 1 :],
            ],
            axis=1,
        )

    def _beyond(self, rows: Counts, cut: int) -> Counts:
        """What lies in bins that are tail altogether, behind bin ``cut`` towards the persona."""
        side = rows[:, cut + 1 :] if self.sign > 0 else rows[:, :cut]
        return np.asarray(side.sum(axis=1), dtype=np.int64)

    def merged(self, refined: Counts) -> tuple[Counts, Counts]:
        """Score bins [m, b] and tail prompts [m]."""
        if self.whole:
            # Of a threshold on an edge: the bin that begins there is tail where scores rise to it.
            side = refined[:, self.cut :] if self.sign > 0 else refined[:, : self.cut]
            return refined, side.sum(axis=1)
        pair = refined[:, self.cut : self.cut + 2]
        histograms = np.concatenate(
            [
                refined[:, : self.cut],
                pair.sum(axis=1, keepdims=True),
                refined[:, self.cut + 2 :],
            ],
            axis=1,
        )
        assert histograms.shape[1] == SCORE_BINS
        tail = pair[:, 1] if self.sign > 0 else pair[:, 0]
        return histograms, tail + self._beyond(histograms, self.cut)

    def shifted(self, rows: Counts, shift: float, generator: np.random.Generator) -> Counts:
        """The counts [m, r] where every score lies ``shift`` further."""
        if shift == 0.0:
            return rows
        low, high = self.edges[:-1], self.edges[1:]
        # What leaves the outermost edges ends in the outermost bins.
        begins = np.concatenate([[-np.inf], self.edges[1:-1]])
        ends = np.concatenate([self.edges[1:-1], [np.inf]])
        overlap = np.minimum((high + shift)[:, None], ends) - np.maximum(
            (low + shift)[:, None], begins
        )
        shares = np.clip(overlap, 0.0, None) / (high - low)[:, None]
        wanted = np.cumsum(rows @ shares, axis=1)
        # All of a row's counts arrive: their sum is a whole number, whatever rounding made of it.
        wanted[:, -1] = rows.sum(axis=1)
        offset = generator.random((len(rows), 1))
        rounded = np.floor(wanted + offset).astype(np.int64)
        rounded[:, -1] = rows.sum(axis=1)
        return np.diff(np.minimum(rounded, rounded[:, -1:]), axis=1, prepend=0)
