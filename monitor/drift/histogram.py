"""Scores to additive buckets, and what can be read off merged histograms.

All histograms share `records.SCORE_BIN_EDGES`, so a window is a sum of buckets and every figure here
is a figure of the sum: nothing is approximated but the position of a score within its bin.

Array legend: n = prompts, k = features of the pack, b = `SCORE_BINS` bins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from monitor.values.adjustment import Sided
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Window
from monitor.values.prompts import CANARY
from monitor.values.scores import SCORE_BIN_EDGES, SCORE_BINS, Bucket, ScoredPrompt, tail_sum

EDGES: Final[Doubles] = np.array(SCORE_BIN_EDGES, dtype=np.float64)
_OUTER: Final = 22.5
"""Where the two open bins are taken to sit: half their neighbour's width beyond the last edge."""
CENTRES: Final[Doubles] = np.concatenate([[-_OUTER], (EDGES[1:] + EDGES[:-1]) / 2, [_OUTER]])
"""The score that stands for each bin [b]."""


class Counted(Sided, Protocol):
    """What is asked of a feature here; `Feature` and the store's are such."""

    def in_tail(self, scores: Floats | Doubles) -> NDArray[np.bool_]: ...


def floor_time(moment: datetime, step: timedelta) -> datetime:
    """The start of the interval of length ``step`` (whole seconds, counted from 1970) around it."""
    seconds = int(step.total_seconds())
    return _at(int(moment.timestamp() // seconds) * seconds)


@lru_cache(maxsize=4_096)
def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def bucket_scores(
    scored: Sequence[ScoredPrompt],
    features: Sequence[Counted],
    *,
    bucket: timedelta,
    canary: bool = False,
) -> tuple[Bucket, ...]:
    """The additive statistics of ``scored``, per bucket of the record's time, source and segment.

    ``features`` [k] are the pack's, in its order: they say which scores are tail. NaN scores (region
    absent) are left out; buckets without a single score are not made. Canaries go to the segment and
    source ``canary`` alone, other scores where `ScoredPrompt.counted_in` says.
    Prompts count once each, whatever their inclusion probability: the monitor samples whole
    conversations at one rate, so the sample's statistics are the traffic's.
    Raises ValueError on an infinite score: those are dead-lettered before.
    """
    if not scored:
        return ()
    scores = np.array([prompt.scores for prompt in scored], dtype=np.float64)
    if np.isinf(scores).any():
        raise ValueError(
            "scores must be finite or NaN: non-finite readings belong in a dead letter"
        )
    present = ~np.isnan(scores)
    by_feature = zip(features, scores.T, strict=True)
    beyond = np.stack([feature.in_tail(column) for feature, column in by_feature], axis=1)
    bins = np.searchsorted(EDGES, np.where(present, scores, 0.0), side="right")
    filled = np.where(present, scores, 0.0)
    of_prompt = np.array([feature.of_prompt for feature in features])

    buckets: list[Bucket] = []
    groups = _groups(scored, of_prompt, bucket, canary=canary)
    for (start, source, segment), alike in sorted(groups.items()):
        rows, here = _together(alike, present)
        counts = here.sum(axis=0)
        totals = (filled[rows] * here).sum(axis=0)
        squares = (filled[rows] ** 2 * here).sum(axis=0)
        tail_counts = (beyond[rows] & here).sum(axis=0)
        histograms = _histograms(bins[rows], here)
        buckets.extend(
            Bucket(
                bucket_start=start,
                bucket_seconds=int(bucket.total_seconds()),
                feature=int(feature),
                segment=segment,
                source=source,
                n=int(counts[feature]),
                total=float(totals[feature]),
                total_squares=float(squares[feature]),
                histogram=histograms[feature],
                tail_count=int(tail_counts[feature]),
            )
            for feature in np.flatnonzero(counts)
        )
    return tuple(buckets)


_Bools = NDArray[np.bool_]


_Alike = list[tuple[NDArray[np.intp], _Bools | None]]


def _groups(
    scored: Sequence[ScoredPrompt], of_prompt: _Bools, bucket: timedelta, *, canary: bool
) -> dict[tuple[datetime, str, str], _Alike]:
    """By interval, source and segment: rows of ``scored``, those together of which the same features [k]
    count there; None: all."""
    seconds = int(bucket.total_seconds())
    rows_of: dict[tuple[float, str, int, tuple[str, ...], bool], list[int]] = defaultdict(list)
    for row, prompt in enumerate(scored):
        key = prompt.key
        interval = prompt.recorded_at.timestamp() // seconds
        rows_of[interval, key.topic, key.partition, prompt.segments, prompt.generated].append(row)
    groups: dict[tuple[datetime, str, str], _Alike] = defaultdict(list)
    for (interval, topic, partition, _, generated), rows in rows_of.items():
        start = _at(int(interval) * seconds)
        source = CANARY if canary else f"{topic}/{partition}"
        one = scored[rows[0]]
        counted: list[tuple[str, _Bools | None]]
        if canary:
            counted = [(CANARY, None)]
        elif not generated:
            counted = [(segment, None) for segment in one.segments]
        else:
            counted = [(segment, of_prompt) for segment in one.counted_in(of_prompt=True)]
            counted += [(segment, ~of_prompt) for segment in one.counted_in(of_prompt=False)]
        for segment, columns in counted:
            groups[start, source, segment].append((np.array(rows), columns))
    return groups


def _together(alike: _Alike, present: _Bools) -> tuple[NDArray[np.intp], _Bools]:
    """The rows of one group, in the order of the chunk, and which of their scores count."""
    rows = np.concatenate([members for members, _ in alike])
    counted = [
        present[members] if columns is None else present[members] & columns
        for members, columns in alike
    ]
    order = np.argsort(rows, kind="stable")
    return rows[order], np.concatenate(counted)[order]


def _histograms(bins: NDArray[Any], present: NDArray[np.bool_]) -> Counts:
    """Counts [k, b] of bin numbers [n, k] where ``present`` [n, k]."""
    k = bins.shape[1]
    flat = (bins + np.arange(k) * SCORE_BINS)[present]
    return np.bincount(flat, minlength=k * SCORE_BINS).astype(np.int64).reshape(k, SCORE_BINS)


def histogram_of(scores: Floats | Doubles) -> Counts:
    """The histogram [b] of scores of any shape; NaN is left out."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    bins = np.searchsorted(EDGES, values[~np.isnan(values)], side="right")
    return np.bincount(bins, minlength=SCORE_BINS).astype(np.int64)


def merge(buckets: Iterable[Bucket]) -> tuple[Window, ...]:
    """One window per feature and segment, from the first bucket's start to the last one's end."""
    groups: dict[tuple[int, str], list[Bucket]] = defaultdict(list)
    for bucket in buckets:
        groups[bucket.feature, bucket.segment].append(bucket)
    return tuple(
        Window(
            feature=feature,
            segment=segment,
            start=min(b.bucket_start for b in members),
            end=max(b.bucket_start + timedelta(seconds=b.bucket_seconds) for b in members),
            n=sum(b.n for b in members),
            total=sum(b.total for b in members),
            total_squares=sum(b.total_squares for b in members),
            histogram=np.sum([b.histogram for b in members], axis=0, dtype=np.int64),
            tail_count=tail_sum(b.tail_count for b in members),
        )
        for (feature, segment), members in sorted(groups.items())
    )


def windows_of(buckets: Iterable[Bucket]) -> tuple[Window, ...]:
    """One window per bucket's time, feature and segment, of all sources together."""
    times: dict[datetime, list[Bucket]] = defaultdict(list)
    for bucket in buckets:
        times[bucket.bucket_start].append(bucket)
    return tuple(window for _, members in sorted(times.items()) for window in merge(members))


def quantile(histogram: Counts, q: float) -> float:
    """The q-quantile, 0 ≤ q ≤ 1, interpolated within its bin; NaN of an empty histogram.

    Scores in an open outer bin are only known to lie beyond the last edge: that edge is returned.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must lie between 0 and 1, found {q}")
    n = int(histogram.sum())
    if n == 0:
        return float("nan")
    cumulated = np.cumsum(histogram)
    index = int(np.searchsorted(cumulated, q * n, side="left"))
    if index == 0:
        # q = 0 asks for the smallest score: the first bin that holds any.
        index = int(np.flatnonzero(histogram)[0])
    if index == 0:
        return float(EDGES[0])
    if index >= SCORE_BINS - 1:
        return float(EDGES[-1])
    before = float(cumulated[index] - histogram[index])
    share = (q * n - before) / float(histogram[index])
    return float(EDGES[index - 1] + np.clip(share, 0.0, 1.0) * (EDGES[index] - EDGES[index - 1]))


def psi(window: Counts, baseline: Counts) -> float:
    """Population stability index of two histograms, on groups of about equal baseline share.

    ``Σ (p_i - q_i) ln(p_i / q_i)`` over groups of neighbouring bins (see `deciles`), with half a count added to every group so that an empty one stays finite
    (Jeffreys' prior; Yurdakul, "Statistical properties of the population stability index", 2018).
    Grouping keeps the sampling bias, which grows with the number of bins, small. 0 when either
    histogram is empty.
    """
    groups = deciles(baseline)
    return grouped_psi(grouped(window, groups), grouped(baseline, groups))


def deciles(baseline: Counts) -> NDArray[np.intp]:
    """First bins of neighbouring groups that each hold about a tenth of ``baseline``.

    A bin that holds more than a tenth by itself is a group by itself: it ends one, since one of the
    tenths falls into it, and begins one.
    """
    n = int(baseline.sum())
    cuts = np.searchsorted(np.cumsum(baseline), n * np.arange(1, 10) / 10.0, side="left")
    heavy = np.flatnonzero(baseline * 10 > n)
    starts = np.unique(np.concatenate([[0], cuts + 1, heavy]))
    return starts[starts < SCORE_BINS].astype(np.intp)


def grouped(histogram: Counts, groups: NDArray[np.intp]) -> Counts:
    """Counts of the groups that start at the given bins."""
    return np.asarray(np.add.reduceat(histogram, groups), dtype=np.int64)


def grouped_psi(window: Counts, baseline: Counts) -> float:
    """PSI of two equally grouped histograms; see `psi`."""
    if window.sum() == 0 or baseline.sum() == 0:
        return 0.0
    p = (window + 0.5) / (window.sum() + 0.5 * window.size)
    q = (baseline + 0.5) / (baseline.sum() + 0.5 * baseline.size)
    return float(((p - q) * np.log(p / q)).sum())


def ks(window: Counts, baseline: Counts) -> float:
    """Kolmogorov-Smirnov distance at the bin edges: largest difference of the two distributions.

    A lower bound of the distance on raw scores. 0 when either histogram is empty.
    """
    if window.sum() == 0 or baseline.sum() == 0:
        return 0.0
    gaps = np.cumsum(window) / window.sum() - np.cumsum(baseline) / baseline.sum()
    return float(np.abs(gaps).max())
