"""What this member of the group owns and has read: shared by the source's thread and the worker.

Every method takes the lock itself, so all may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from monitor.ingest.kafka.pace import Pace
from monitor.ingest.kafka.reading import Readings, without
from monitor.metrics import METRICS
from monitor.settings import IngestSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import Chunk, OffsetSpan, RawRecord
from monitor.values.reading import Partition, ReadingPoint

QUEUED_CHUNKS: Final = 2
"""Whole chunks read ahead, beside the one that is being filled."""


class Holdings:
    """Assignments, readings, whole chunks, and the offsets that are stored and to be committed."""

    def __init__(
        self, ingest: IngestSettings, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._ingest = ingest
        self._monotonic = monotonic
        self._changed = threading.Condition()
        # Guarded by _changed from here on.
        self._chunks: deque[Chunk] = deque()
        self._pace = Pace(ingest)
        self._readings = Readings()
        self._unplaced: set[Partition] = set()
        self._suspended: set[Partition] = set()
        self._assignments = 0
        self._stored: dict[Partition, int] = {}
        self._to_commit: dict[Partition, int] = {}
        self._asked: dict[Partition, LogEnd] = {}
        self._gaps: dict[Partition, int] = {}

    # --- the worker's side ---------------------------------------------------------------------

    def take_chunk(self, timeout_seconds: float, given_up: Callable[[], bool]) -> Chunk | None:
        """The next whole chunk; None when none came in time or ``given_up`` says so."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or given_up(), timeout_seconds)
            if not self._chunks:
                return None
            self._changed.notify_all()
            chunk = self._chunks.popleft()
            self._pace.took(len(chunk.records), self._monotonic())
            return chunk

    def store_holds(self, spans: Collection[OffsetSpan]) -> None:
        """These spans are stored; revoked ones are passed over."""
        with self._changed:
            for span in spans:
                if not self._revoked(span):
                    key = (span.topic, span.partition)
                    self._to_commit[key] = self._stored[key] = span.end

    def is_revoked(self, span: OffsetSpan) -> bool:
        with self._changed:
            return self._revoked(span)

    def assigned(self) -> frozenset[Partition]:
        with self._changed:
            return self._assigned()

    def lag(self) -> dict[Partition, int]:
        """Records between what is stored (else where reading began) and the log's end as last told.

        A partition whose end nobody told yet is not among them.
        """
        with self._changed:
            return {
                partition: max(0, end - self._stored[partition])
                for partition, end in self._log_ends().items()
            }

    def log_ends(self) -> tuple[LogEnd, ...]:
        """What the broker answered when it was last asked, of the partitions that are read."""
        with self._changed:
            return tuple(self._asked.values())

    def gaps(self) -> dict[Partition, int]:
        with self._changed:
            return dict(self._gaps)

    # --- the thread's side ---------------------------------------------------------------------

    def wake(self) -> None:
        """Whoever waits looks again."""
        with self._changed:
            self._changed.notify_all()

    def wait_for_room(self, timeout_seconds: float, given_up: Callable[[], bool]) -> bool:
        """Whether the queue can take a chunk within that time, or ``given_up`` says so."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._chunks) < QUEUED_CHUNKS or given_up(), timeout_seconds
            )

    def unplaced(self) -> tuple[frozenset[Partition], int]:
        """The partitions that wait to be told where to begin, and the state that this is true of."""
        with self._changed:
            return frozenset(self._unplaced), self._assignments

    def begin(
        self,
        points: Mapping[Partition, ReadingPoint],
        *,
        state: int,
        seek: Callable[[Partition, int], None],
    ) -> bool:
        """Read from ``points`` on; False when they were rewound or lost since ``state``: ask again.

        Records that were read and hold waiting halves are handed out again. ``seek`` is called under the
        lock.
        """
        with self._changed:
            if state != self._assignments:
                return False
            for partition, point in points.items():
                self._assignments += 1
                offset = point.next_offset
                again = {
                    at: which
                    for at, which in point.waiting.items()
                    if at < offset or any(first <= at < end for first, end in point.read)
                }
                self._stored[partition] = offset
                self._readings.begin(
                    partition,
                    offset,
                    assignment=self._assignments,
                    wanted=again,
                    passed=point.read,
                )
                below = (at for at in again if at < offset)
                seek(partition, min(below, default=self._readings.beyond(partition, offset)))
            self._unplaced -= set(points)
            return True

    def being_read(self) -> frozenset[Partition]:
        with self._changed:
            return frozenset(self._readings.assignments)

    def add(
        self,
        partition: Partition,
        records: Sequence[RawRecord],
        *,
        position: int,
        log_end: int | None,
        now: float,
    ) -> None:
        with self._changed:
            self._readings.add(partition, records, position=position, log_end=log_end, now=now)

    def moved(self, positions: Mapping[Partition, int]) -> set[Partition]:
        """The partitions that are read up to elsewhere than ``positions``, and hold no record of it."""
        with self._changed:
            return {
                one
                for one in self._readings.assignments
                if one in positions and self._readings.behind(one, positions[one])
            }

    def end(self, partition: Partition) -> int:
        """Up to where the partition is read; 0 for one that is not."""
        with self._changed:
            return self._readings.end(partition) if partition in self._readings else 0

    def beyond(self, partition: Partition, position: int) -> int:
        """Where to read on at ``position``: behind what was read before the reading point was moved."""
        with self._changed:
            known = partition in self._readings
            return self._readings.beyond(partition, position) if known else position

    def lost_below(self, partition: Partition, first: int, earliest: int) -> int:
        """Count and return the offsets from ``first`` to ``earliest`` that were never read."""
        with self._changed:
            lost = self._readings.unread(partition, first, earliest)
            self._gaps[partition] = self._gaps.get(partition, 0) + lost
            return lost

    def commit_again(self, partitions: Collection[Partition]) -> None:
        """Commit to Kafka once more what is stored of these."""
        with self._changed:
            self._to_commit |= {one: self._stored[one] for one in partitions if one in self._stored}

    def ends_told(self, ends: Mapping[Partition, int], asked_at: datetime) -> None:
        """The broker's answer; partitions that were lost meanwhile are passed over."""
        with self._changed:
            for (topic, number), end in ends.items():
                if (topic, number) in self._readings:
                    self._asked[topic, number] = LogEnd(
                        topic=topic,
                        partition=number,
                        begins_at=self._stored[topic, number],
                        log_end=end,
                        asked_at=asked_at,
                    )

    def room(self) -> int:
        """How many records the chunk that is being filled can still take."""
        with self._changed:
            if self._readings.full:
                return 0
            return max(0, self._pace.records - self._readings.records)

    def hand_over(self, now: float) -> None:
        """Put a chunk that is full, or has waited long enough, into the queue."""
        with self._changed:
            full = self._readings.full or self._readings.records >= self._pace.records
            waited = self._readings.waited(now)
            due = full or waited >= self._ingest.chunk_wait.total_seconds()
            if due and len(self._chunks) < QUEUED_CHUNKS:
                chunk = self._readings.cut()
                if chunk:
                    self._chunks.append(chunk)
                    self._changed.notify_all()

    def take_commits(self) -> dict[Partition, int]:
        """The offsets to commit to Kafka, each given once."""
        with self._changed:
            owned = self._readings.assignments
            offsets = {key: offset for key, offset in self._to_commit.items() if key in owned}
            self._to_commit.clear()
            return offsets

    # --- what the group decides ----------------------------------------------------------------

    def suspend(self, partitions: Collection[Partition]) -> None:
        """A rebalance begins; most partitions will come straight back, so nothing is dropped yet.

        What is stored meanwhile is safe: the store's compare-and-swap decides between owners.
        """
        with self._changed:
            self._suspended |= set(partitions)

    def assign(
        self, partitions: Collection[Partition]
    ) -> tuple[frozenset[Partition], frozenset[Partition]]:
        """The rebalance is over: (partitions that are gone, partitions that are new)."""
        with self._changed:
            gone = self._assigned() - frozenset(partitions)
            kept = self._suspended & self._readings.assignments.keys()
            new = frozenset(partitions) - kept
            self._suspended.clear()
            self._lose(gone)
            self._forget(new)
            return gone, new

    def lose(self, partitions: Collection[Partition]) -> None:
        """We were thrown out of the group: others may have read on already."""
        with self._changed:
            self._suspended -= set(partitions)
            self._lose(partitions)

    def lose_all(self) -> None:
        with self._changed:
            self._suspended.clear()
            self._lose(self._assigned())

    def rewind(self) -> None:
        """Drop all that is buffered; every partition waits to be told where to begin."""
        with self._changed:
            self._forget(self._assigned())

    # --- under the lock ------------------------------------------------------------------------

    def _assigned(self) -> frozenset[Partition]:
        return frozenset(self._unplaced | self._readings.assignments.keys())

    def _revoked(self, span: OffsetSpan) -> bool:
        return self._readings.assignments.get((span.topic, span.partition)) != span.assignment

    def _log_ends(self) -> dict[Partition, int]:
        """A poll and a question both tell the end; logs only grow."""
        ends = dict(self._readings.log_ends)
        for partition, asked in self._asked.items():
            ends[partition] = max(ends.get(partition, 0), asked.log_end)
        return ends

    def _forget(self, partitions: Collection[Partition]) -> None:
        """These are read from the start again: whatever was read of them is void."""
        self._assignments += 1
        self._unplaced |= set(partitions)
        self._void(partitions)

    def _lose(self, partitions: Collection[Partition]) -> None:
        self._unplaced -= set(partitions)
        self._void(partitions)

    def _void(self, partitions: Iterable[Partition]) -> None:
        gone = set(partitions)
        self._readings.drop(gone)
        for partition in gone:
            self._to_commit.pop(partition, None)
            self._stored.pop(partition, None)
            self._asked.pop(partition, None)
            with suppress(KeyError):
                METRICS.lag.remove(partition[0], str(partition[1]))
        remaining = (without(chunk, gone) for chunk in self._chunks)
        self._chunks = deque(chunk for chunk in remaining if chunk)
        self._changed.notify_all()
