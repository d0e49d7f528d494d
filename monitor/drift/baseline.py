"""Baselines: frozen intervals of scores, and which stream of one a window is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from monitor.drift.tests import variance
from monitor.errors import BadInput
from monitor.values.drift import Baseline, BaselineStatus, BaselineStream, Window
from monitor.values.identity import BaselineFingerprint
from monitor.values.prompts import CANARY, EVERYTHING, GENERATED, WHOLE
from monitor.values.scores import tail_sum

MOST_INTERVALS: Final = 144
_FEWEST_BATCHES: Final = 12
"""Fewer batches say too little about dependence."""
_COARSENINGS: Final = (1, 2, 4, 8)


def intervals(
    start: datetime, end: datetime, bucket: timedelta
) -> tuple[tuple[datetime, datetime], ...]:
    """[start, end) in equal whole multiples of ``bucket``, at most `MOST_INTERVALS`; the last may be short.

    The windows of these intervals are what `capture` wants. Raises BadInput when end ≤ start.
    """
    if end <= start:
        raise BadInput(f"the baseline's end {end} must lie after its start {start}")
    buckets = math.ceil((end - start) / bucket)
    step = bucket * math.ceil(buckets / MOST_INTERVALS)
    count = math.ceil((end - start) / step)
    return tuple((start + step * i, min(start + step * (i + 1), end)) for i in range(count))


def capture(
    windows: Iterable[Window],
    *,
    baseline_id: str,
    pack_id: str,
    name: str,
    start: datetime,
    end: datetime,
    created_at: datetime,
    fingerprint: BaselineFingerprint,
    min_n: int,
) -> Baseline:
    """A draft baseline of the windows of consecutive `intervals` of [start, end), canaries left out.

    Raises BadInput when not one feature has ``min_n`` prompts in segment ``all`` (or ``generated``): the
    interval must be widened. A feature with fewer (its region is often absent) gets no stream there and
    in no slice of it, and is not watched; `unwatched` finds those that are nowhere, and every window's
    log event names them.
    """
    groups: dict[tuple[int, str], list[Window]] = defaultdict(list)
    for window in windows:
        if window.segment != CANARY and window.n:
            groups[window.feature, window.segment].append(window)
    streams = {key: _stream(members, start, end) for key, members in sorted(groups.items())}
    whole = {key: stream.window.n for key, stream in streams.items() if key[1] in WHOLE}
    enough = {key for key, n in whole.items() if n >= min_n}
    n = max(whole.values(), default=0)
    if not enough:
        raise BadInput(
            f"the interval {start.isoformat()} to {end.isoformat()} holds {n} scored prompts, "
            f"a baseline needs {min_n}",
            hint="Choose a longer interval, or lower drift.min_baseline_n.",
        )
    return Baseline(
        baseline_id=baseline_id,
        pack_id=pack_id,
        name=name,
        status=BaselineStatus.DRAFT,
        created_at=created_at,
        window_start=start,
        window_end=end,
        n=n,
        fingerprint=fingerprint.with_facts(
            {
                "pack_id": pack_id,
                "start": start.isoformat(),
                "end": end.isoformat(),
                "n": str(n),
            }
        ),
        streams={key: one for key, one in streams.items() if (key[0], _whole_of(key[1])) in enough},
    )


def _whole_of(segment: str) -> str:
    """The segment of which ``segment`` is a slice; itself where it is none."""
    return GENERATED if segment == GENERATED else EVERYTHING


def _stream(windows: Sequence[Window], start: datetime, end: datetime) -> BaselineStream:
    first = windows[0]
    whole = Window(
        feature=first.feature,
        segment=first.segment,
        start=start,
        end=end,
        n=sum(w.n for w in windows),
        total=math.fsum(w.total for w in windows),
        total_squares=math.fsum(w.total_squares for w in windows),
        histogram=np.sum([w.histogram for w in windows], axis=0, dtype=np.int64),
        tail_count=tail_sum(w.tail_count for w in windows),
    )
    ordered = sorted(windows, key=lambda w: w.start)
    counts = [w.n for w in ordered]
    return BaselineStream(
        window=whole,
        design_effect=design_effect(counts, [w.total for w in ordered], variance(whole)),
        tail_design_effect=_tail_design_effect(whole, ordered),
    )


def _tail_design_effect(whole: Window, parts: Sequence[Window]) -> float:
    tails = [part.tail_count for part in parts if part.tail_count is not None]
    if whole.tail_count is None or len(tails) < len(parts):
        return 1.0
    rate = whole.tail_count / whole.n
    counts = [part.n for part in parts]
    return design_effect(counts, [float(tail) for tail in tails], rate * (1.0 - rate))


def design_effect(counts: Sequence[int], totals: Sequence[float], variance: float) -> float:
    """How much more the means of consecutive batches scatter than independent prompts would make them.

        deff = Σ_j n_j (m_j - m)² / ((J - 1) s²)

    over J batches with n_j prompts and mean m_j (the ratio of mean squares of a one-way analysis of
    variance; Kish 1965), s² the variance of single prompts. Computed for the batches given and for
    2, 4 and 8 of them joined, as long as twelve remain, and the largest counts: dependence that
    outlasts a batch (long conversations, hours of the day) shows in the longer ones only, as in the
    method of batch means (Flegal and Jones, Annals of Statistics 38, 2010). At least 1; 1 when there
    are too few batches to tell.
    """
    n, total = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if variance <= 0.0:
        return 1.0
    largest = 1.0
    for joined in _COARSENINGS:
        size = n.size // joined
        if size < _FEWEST_BATCHES:
            break
        some = n[: size * joined].reshape(size, joined).sum(axis=1)
        sums = total[: size * joined].reshape(size, joined).sum(axis=1)
        centre = sums.sum() / some.sum()
        between = float((some * (sums / some - centre) ** 2).sum()) / (size - 1)
        largest = max(largest, between / variance)
    return largest


def baseline_for(
    baseline: Baseline, feature: int, segment: str, min_n: int
) -> tuple[tuple[int, str], bool] | None:
    """The key of the stream to compare with, and whether it is the pooled one.

    A segment's own stream from ``min_n`` prompts on, else the feature's stream over all traffic; never
    another one for answers of the copy's own. None when the feature has no such stream in this baseline.
    """
    key, pooled = (feature, segment), (feature, _whole_of(segment))
    own = baseline.streams.get(key)
    if own is not None and (segment in WHOLE or own.window.n >= min_n):
        return key, False
    return (pooled, True) if pooled in baseline.streams else None


def tails_not_known(baseline: Baseline) -> tuple[int, ...]:
    """Indices of the features that are watched under this baseline, but not in their tails.

    Tails of falling features were counted on the wrong side once (docs/storage.md, Tails): what is
    left of them is not used, and a baseline taken over such traffic knows no tail of these features.
    """
    return tuple(
        feature
        for (feature, segment), stream in sorted(baseline.streams.items())
        if segment in WHOLE and stream.window.tail_count is None
    )


def unwatched(baseline: Baseline, features: int) -> tuple[int, ...]:
    """Indices of the pack's features that this baseline holds no stream of."""
    held = {feature for feature, segment in baseline.streams if segment in WHOLE}
    return tuple(i for i in range(features) if i not in held)
