"""Baselines: frozen intervals of scores, and which stream of one a window is compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from monitor.drift.dependence import design_effect
from monitor.drift.tails import LEVELS, levels
from monitor.drift.tests import variance
from monitor.errors import BadInput
from monitor.values.adjustment import Expectation
from monitor.values.drift import Baseline, BaselineStatus, BaselineStream, Window
from monitor.values.features import Directed
from monitor.values.identity import BaselineFingerprint
from monitor.values.prompts import CANARY, EVERYTHING, WHOLE
from monitor.values.scores import tail_sum

MOST_INTERVALS: Final = 144


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
    features: Sequence[Directed],
    *,
    confidence: float,
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

    ``features`` [k] are the pack's, in its order: they say on which side a tail lies. ``confidence`` is
    that of the tails' thresholds, see `tails.levels`.

    Raises BadInput when not one feature has ``min_n`` prompts in segment ``all`` (or another of `WHOLE`):
    the interval must be widened. A feature with fewer (its region is often absent) gets no stream there and
    in no slice of it, and is not watched; `unwatched` finds those that are nowhere, and every window's
    log event names them.
    """
    streams = _streams(windows, features, start, end, confidence)
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
    return segment if segment in WHOLE else EVERYTHING


def with_adjustment(
    baseline: Baseline,
    expectations: Mapping[int, Expectation],
    windows: Iterable[Window],
    features: Sequence[Directed],
    *,
    confidence: float,
    min_n: int,
) -> Baseline:
    """The draft with expectations frozen into it, and the streams of its own scores given the prompt.

    ``windows`` are of consecutive equal stretches of its interval, as for `capture`. Left out are streams
    of fewer than ``min_n`` such scores in segment ``all`` (or another of `WHOLE`) with all slices of it, and those that
    there is no raw one of.
    """
    streams = _streams(windows, features, baseline.window_start, baseline.window_end, confidence)
    enough = {
        key for key, one in streams.items() if key[1] in WHOLE and one.window.n >= min_n
    } & set(baseline.streams)
    return replace(
        baseline,
        expectations={key: one for key, one in expectations.items() if key in dict(enough)},
        adjusted={
            key: stream
            for key, stream in streams.items()
            if key in baseline.streams and (key[0], _whole_of(key[1])) in enough
        },
    )


def _streams(
    windows: Iterable[Window],
    features: Sequence[Directed],
    start: datetime,
    end: datetime,
    confidence: float,
) -> dict[tuple[int, str], BaselineStream]:
    groups: dict[tuple[int, str], list[Window]] = defaultdict(list)
    for window in windows:
        if window.segment != CANARY and window.n:
            groups[window.feature, window.segment].append(window)
    return {
        key: _stream(members, start, end, features[key[0]].sign, confidence)
        for key, members in sorted(groups.items())
    }


def _stream(
    windows: Sequence[Window], start: datetime, end: datetime, sign: int, confidence: float
) -> BaselineStream:
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
        tails=levels(whole.histogram, [w.histogram for w in ordered], sign, confidence),
    )


def _tail_design_effect(whole: Window, parts: Sequence[Window]) -> float:
    tails = [part.tail_count for part in parts if part.tail_count is not None]
    if whole.tail_count is None or len(tails) < len(parts):
        return 1.0
    rate = whole.tail_count / whole.n
    counts = [part.n for part in parts]
    return design_effect(counts, [float(tail) for tail in tails], rate * (1.0 - rate))


def baseline_for(
    streams: Mapping[tuple[int, str], BaselineStream], feature: int, segment: str, min_n: int
) -> tuple[tuple[int, str], bool] | None:
    """The key of the stream of a baseline to compare with, and whether it is the pooled one.

    A segment's own stream from ``min_n`` prompts on, else the feature's stream over all traffic; never
    another one for a segment of `WHOLE`. None when the feature has no such stream in this baseline.
    """
    key, pooled = (feature, segment), (feature, _whole_of(segment))
    own = streams.get(key)
    if own is not None and (segment in WHOLE or own.window.n >= min_n):
        return key, False
    return (pooled, True) if pooled in streams else None


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


def levels_not_watched(baseline: Baseline) -> Mapping[float, tuple[int, ...]]:
    """By level, the indices of the features whose tail this baseline is too small to watch there.

    Nothing is said of a baseline that was captured before it set its own tails.
    """
    missing: dict[float, set[int]] = {share: set() for share in LEVELS}
    for (feature, segment), stream in baseline.streams.items():
        if segment in WHOLE and stream.tails is not None:
            for share in set(LEVELS) - {level.share for level in stream.tails}:
                missing[share].add(feature)
    return {share: tuple(sorted(few)) for share, few in missing.items() if few}
