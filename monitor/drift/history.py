"""Fine buckets of many streams as arrays: any window and any bucket of an interval, without asking the store.

Who evaluates thousands of moments in a row (a backtest, a study of power) reads every bucket once. Sums are as
`monitor.store.windows` has them: integers exactly, totals up to rounding.

Array legend: m = buckets of the interval, s = streams, b = `SCORE_BINS` bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Window
from monitor.values.scores import SCORE_BINS, Bucket

Stream = tuple[int, str]
"""Feature index and segment."""
SOURCE: Final = "*"
"""Of a bucket that is summed over writers."""
_ARRAYS: Final = ("n", "totals", "squares", "tails", "unknown", "histograms")
BYTES_A_ROW: Final = 8 * (2 * SCORE_BINS + 8)
"""About what one bucket of one stream takes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """The buckets of ``streams`` from ``start`` on, each ``step`` long."""

    start: datetime
    step: timedelta
    streams: Sequence[Stream]
    """In their order."""
    n: Counts
    """Prompts [m, s]."""
    totals: Doubles
    """[m, s]."""
    squares: Doubles
    """[m, s]."""
    tails: Counts
    """Tail prompts [m, s]; of an unknown tail, any number."""
    unknown: Counts
    """1 where the tail of a bucket is not known [m, s]."""
    histograms: Counts
    """[m, s, b]."""
    _sums: tuple[Counts, Counts, Counts, Counts] = field(init=False)
    """Of ``n``, ``tails``, ``unknown`` and ``histograms`` before each bucket [m + 1, …]."""

    def __post_init__(self) -> None:
        whole = (self.n, self.tails, self.unknown, self.histograms)
        object.__setattr__(self, "_sums", tuple(map(_before, whole)))

    @classmethod
    def of(
        cls, buckets: Iterable[Bucket], start: datetime, end: datetime, step: timedelta
    ) -> History:
        """Of the ``buckets`` that start in [start, end); what stands there twice is added up."""
        kept = [one for one in buckets if start <= one.bucket_start < end]
        streams = sorted({(one.feature, one.segment) for one in kept})
        place = {stream: index for index, stream in enumerate(streams)}
        shape = (-(-(end - start) // step), len(streams))
        n, tails, unknown = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        totals, squares = np.zeros(shape), np.zeros(shape)
        histograms = np.zeros((*shape, SCORE_BINS), dtype=np.int64)
        for one in kept:
            at = (one.bucket_start - start) // step, place[one.feature, one.segment]
            n[at] += one.n
            tails[at] += one.tail_count or 0
            unknown[at] |= one.tail_count is None
            totals[at] += one.total
            squares[at] += one.total_squares
            histograms[at] += one.histogram
        return cls(
            start=start,
            step=step,
            streams=streams,
            n=n,
            totals=totals,
            squares=squares,
            tails=tails,
            unknown=unknown,
            histograms=histograms,
        )

    @classmethod
    def joined(cls, parts: Sequence[History]) -> History:
        """Of parts that follow one another."""
        streams = sorted({stream for part in parts for stream in part.streams})
        place = {stream: index for index, stream in enumerate(streams)}

        def whole(name: str) -> Any:
            found = []
            for part in parts:
                own = getattr(part, name)
                rows = np.zeros((len(own), len(streams), *own.shape[2:]), dtype=own.dtype)
                rows[:, [place[stream] for stream in part.streams]] = own
                found.append(rows)
            return np.concatenate(found)

        arrays = {name: whole(name) for name in _ARRAYS}
        return cls(start=parts[0].start, step=parts[0].step, streams=streams, **arrays)

    def since(self, moment: datetime) -> History:
        """What starts at ``moment`` or later."""
        first = self._place(moment)
        arrays = {name: getattr(self, name)[first:] for name in _ARRAYS}
        start = self.start + first * self.step
        return History(start=start, step=self.step, streams=self.streams, **arrays)

    @property
    def end(self) -> datetime:
        return self.start + len(self.n) * self.step

    def windows(self, start: datetime, end: datetime) -> list[Window]:
        """The windows [start, end) of the streams with data, in their order.

        A bucket belongs to the window that its start lies in. What lies outside of the interval is empty.
        """
        first, after = self._place(start), self._place(end)
        n, tails, unknown, histograms = (one[after] - one[first] for one in self._sums)
        totals = self.totals[first:after].sum(axis=0)
        squares = self.squares[first:after].sum(axis=0)
        return [
            Window(
                feature=self.streams[s][0],
                segment=self.streams[s][1],
                start=start,
                end=end,
                n=int(n[s]),
                total=float(totals[s]),
                total_squares=float(squares[s]),
                histogram=histograms[s],
                tail_count=None if unknown[s] else int(tails[s]),
            )
            for s in np.flatnonzero(n).tolist()
        ]

    def buckets(self, after: datetime, before: datetime) -> list[Bucket]:
        """The buckets with data that start between the two times, both left out; by time, then by stream."""
        first = self._place(after + timedelta(microseconds=1))
        last = self._place(before)
        rows = np.argwhere(self.n[first:last])
        return [self._bucket(first + m, s) for m, s in rows.tolist()]

    def _bucket(self, m: int, s: int) -> Bucket:
        feature, segment = self.streams[s]
        return Bucket(
            bucket_start=self.start + m * self.step,
            bucket_seconds=int(self.step.total_seconds()),
            feature=feature,
            segment=segment,
            source=SOURCE,
            n=int(self.n[m, s]),
            total=float(self.totals[m, s]),
            total_squares=float(self.squares[m, s]),
            histogram=self.histograms[m, s],
            tail_count=None if self.unknown[m, s] else int(self.tails[m, s]),
        )

    def _place(self, moment: datetime) -> int:
        """Buckets that start before ``moment``, of those there are."""
        return min(max(-((self.start - moment) // self.step), 0), len(self.n))


def _before(rows: Counts) -> Counts:
    return np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
