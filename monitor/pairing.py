"""What the twins of one pack say at one evaluation: their tests take a step, their windows are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitor.drift import sequential
from monitor.drift.twin import taken_in, witness
from monitor.ledger import Ledger
from monitor.settings import Settings
from monitor.subjects import Subject
from monitor.values.drift import Drift, Window
from monitor.values.scores import Bucket
from monitor.values.twin import TwinState
from monitor.values.witnesses import Witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """The tests of a pack's differences, and what its windows hold of them."""

    features: tuple[str, ...]
    tests: Mapping[str, Sequence[TwinState]]
    """By segment."""
    windows: Mapping[tuple[str, str], Mapping[int, Window]]
    """By window name and segment, then by feature index."""
    confidence: float

    def witness(self, segment: str, window: str, drift: Drift | None, *, prompts: int) -> Witness:
        """What they say of ``drift``; without one, of the segment."""
        return witness(
            self.tests.get(segment, ()),
            self.windows.get((window, segment), {}),
            self.features,
            drift,
            prompts=prompts,
            confidence=self.confidence,
        )


def twins_of(
    ledger: Ledger,
    settings: Settings,
    subject: Subject,
    end: datetime,
    *,
    average_run_length: timedelta,
    most_buckets: int,
    held: bool,
) -> Twins | None:
    """The twins of the pack for windows that end at ``end``; None while they are switched off.

    The tests see the buckets closed since the last step, ``most_buckets`` at most, and are stored.
    ``held``: the buckets are passed over, for the copy itself is in doubt.
    """
    if settings.twin.share == 0.0:
        return None
    bucket, pack_id = settings.drift.bucket, subject.pack_id
    stored = ledger.twins(pack_id)
    begin = end - most_buckets * bucket
    last = max((state.last_bucket for state in stored.values()), default=begin)
    until = min(end - bucket, last + most_buckets * bucket)
    fresh: Sequence[Bucket] = ()
    if until > last and not held:
        fresh = ledger.twin_buckets(pack_id, last, until + bucket)
    tests = taken_in(
        stored,
        fresh,
        until=until,
        begin=last,
        alone=sequential.threshold(average_run_length, 1, bucket),
        tolerance=settings.twin.tolerance,
    )
    ledger.keep_twins(pack_id, tests.values())
    by_segment: dict[str, list[TwinState]] = defaultdict(list)
    for _, state in sorted(tests.items()):
        by_segment[state.segment].append(state)
    windows: dict[tuple[str, str], dict[int, Window]] = defaultdict(dict)
    for name, length in settings.drift.windows.items():
        for window in ledger.twin_windows(pack_id, end - length, end):
            windows[name, window.segment][window.feature] = window
    return Twins(
        features=tuple(feature.name for feature in subject.features),
        tests=by_segment,
        windows=windows,
        confidence=settings.drift.confidence,
    )
