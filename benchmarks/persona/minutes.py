"""Simulated traffic as production counts it: texts' scores in bins, and their sums over minutes.

Legend: n = texts, k = features, m = minutes, p = prompts a minute, b = score bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np

from monitor.drift.histogram import EDGES
from monitor.settings import DriftSettings
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Window
from monitor.values.features import Feature
from monitor.values.prompts import EVERYTHING
from monitor.values.scores import SCORE_BINS, Bucket

START = datetime(2026, 1, 1, tzinfo=UTC)


class Binned:
    """Scores [n, k] of texts, each with what production counts of it: found once, drawn many times."""

    def __init__(self, scores: Floats, features: Sequence[Feature]) -> None:
        self.scores = scores.astype(np.float64)
        self._features = features
        self._counted: dict[int, tuple[Counts, Doubles]] = {}

    def counted(self, feature: int) -> tuple[Counts, Doubles]:
        """The bin of each text [n], and score, square and "is tail" [n, 3]."""
        if feature not in self._counted:
            own = self.scores[:, feature]
            # As `drift.histogram` bins scores.
            bins = np.searchsorted(EDGES, np.where(np.isnan(own), -np.inf, own), side="right")
            tail = self._features[feature].in_tail(own)
            self._counted[feature] = bins, np.stack([own, own**2, tail], axis=1)
        return self._counted[feature]


@dataclass(frozen=True, kw_only=True)
class Minutes:
    """One feature's sums over minutes, from the start: any window of them is a difference of two rows."""

    feature: int
    settings: DriftSettings
    n: int
    """Prompts a minute."""
    moments: Doubles
    """Totals, squares and tail prompts [m + 1, 3]."""
    histograms: Counts
    """[m + 1, b]."""

    @classmethod
    def of(cls, scores: Binned, texts: Counts, feature: int, settings: DriftSettings) -> Minutes:
        """Of the ``texts`` [m, p]."""
        bins, each = scores.counted(feature)
        size = SCORE_BINS
        flat = bins[texts] + size * np.arange(len(texts))[:, None]
        histograms = np.bincount(flat.ravel(), minlength=size * len(texts)).reshape(-1, size)
        return cls(
            feature=feature,
            settings=settings,
            n=texts.shape[1],
            moments=_summed(each[texts].sum(axis=1)),
            histograms=_summed(histograms),
        )

    def window(self, begin: int, end: int) -> Window:
        total, squares, tail = self.moments[end] - self.moments[begin]
        return Window(
            feature=self.feature,
            segment=EVERYTHING,
            start=START + begin * self.settings.bucket,
            end=START + end * self.settings.bucket,
            n=(end - begin) * self.n,
            total=float(total),
            total_squares=float(squares),
            histogram=self.histograms[end] - self.histograms[begin],
            tail_count=round(float(tail)),
        )

    def bucket(self, minute: int) -> Bucket:
        one = self.window(minute, minute + 1)
        return Bucket(
            bucket_start=one.start,
            bucket_seconds=int(self.settings.bucket.total_seconds()),
            feature=one.feature,
            segment=one.segment,
            source="simulated/0",
            n=one.n,
            total=one.total,
            total_squares=one.total_squares,
            histogram=one.histogram,
            tail_count=one.tail_count,
        )


_Sums = TypeVar("_Sums", Doubles, Counts)


def _summed(rows: _Sums) -> _Sums:
    return np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
