"""What has been read of each partition and not yet handed out, and the chunks cut from it.

Pure bookkeeping: offsets in, contiguous spans out. A span starts where the partition's last one
ended, or where reading began, and ends where the client's position stands, so that offsets without
a record (compaction, transaction markers, lost to retention) are covered like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from monitor.values.prompts import Chunk, OffsetSpan, RawRecord, Recalled
from monitor.values.reading import Partition, Places, Span, outside

CHUNK_BYTES: Final = 64 * 1024 * 1024
"""A chunk is full at this size however few records it holds."""


@dataclass(slots=True)
class _Reading:
    partition: Partition
    assignment: int
    start: int
    end: int
    log_end: int | None = None
    records: list[RawRecord] = field(default_factory=list)
    wanted: dict[int, frozenset[int]] = field(default_factory=dict)
    """Records that were read and are to be read again."""
    passed: tuple[Span, ...] = ()
    """What was read before: no record of it is taken but those that are wanted."""
    recalled: list[Recalled] = field(default_factory=list)
    bytes: int = 0
    """Of the values of all that is buffered."""

    def take(self, record: RawRecord) -> None:
        """Of records that were read before only those that are wanted are kept."""
        if record.offset >= self.start and not any(a <= record.offset < b for a, b in self.passed):
            self.records.append(record)
            self.bytes += len(record.value or b"")
        elif (indexes := self.wanted.pop(record.offset, None)) is not None:
            self._recall(record.offset, indexes, record)

    def beyond(self, position: int) -> int:
        """Where to read on: behind what was read before, but before the next record that is wanted."""
        end = next((b for a, b in self.passed if a <= position < b), position)
        return min((at for at in self.wanted if position <= at < end), default=end)

    def gone_below(self, position: int) -> None:
        """What was wanted below ``position`` and did not come is no longer in the log."""
        for offset in sorted(offset for offset in self.wanted if offset < position):
            self._recall(offset, self.wanted.pop(offset), None)

    def _recall(self, offset: int, indexes: frozenset[int], record: RawRecord | None) -> None:
        topic, number = self.partition
        self.recalled.append(
            Recalled(topic=topic, partition=number, offset=offset, indexes=indexes, record=record)
        )
        if record is not None:
            self.bytes += len(record.value or b"")


class Readings:
    """The open readings of this member, by partition. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[Partition, _Reading] = {}
        self._waiting_since: float | None = None

    def begin(
        self,
        partition: Partition,
        offset: int,
        *,
        assignment: int,
        wanted: Places | None = None,
        passed: tuple[Span, ...] = (),
    ) -> None:
        """Read ``partition`` from ``offset`` on, forgetting what was buffered of it.

        ``passed`` are offsets from ``offset`` on that were read before: spans cover them, without records.
        ``wanted`` are records that were read before and are handed out once more, in `Chunk.recalled`.
        """
        self._open[partition] = _Reading(
            partition, assignment, offset, offset, wanted=dict(wanted or {}), passed=passed
        )

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions and what was buffered of them."""
        for partition in partitions:
            self._open.pop(partition, None)
        if not any(self._due(reading) for reading in self._open.values()):
            self._waiting_since = None

    def add(
        self,
        partition: Partition,
        records: Sequence[RawRecord],
        *,
        position: int,
        log_end: int | None,
        now: float,
    ) -> None:
        """Buffer records and move to ``position``; ignored when the partition is not being read."""
        reading = self._open.get(partition)
        if reading is None:
            return
        for record in records:
            reading.take(record)
        if reading.wanted:
            reading.gone_below(position)
        reading.end = max(reading.end, position)
        told = reading.log_end if log_end is None else log_end
        reading.log_end = None if told is None else max(told, reading.end)
        if self._due(reading) and self._waiting_since is None:
            self._waiting_since = now

    def cut(self) -> Chunk | None:
        """Everything buffered, as one chunk; None when no offset has moved."""
        due = {key: reading for key, reading in self._open.items() if self._due(reading)}
        self._waiting_since = None
        if not due:
            return None
        chunk = Chunk(
            records=tuple(record for reading in due.values() for record in reading.records),
            spans=tuple(
                OffsetSpan(
                    topic=topic,
                    partition=partition,
                    start=reading.start,
                    end=reading.end,
                    log_end=reading.log_end,
                    assignment=reading.assignment,
                )
                for (topic, partition), reading in due.items()
            ),
            recalled=tuple(one for reading in due.values() for one in reading.recalled),
        )
        for reading in due.values():
            reading.start = reading.end
            reading.records, reading.recalled, reading.bytes = [], [], 0
        return chunk

    def waited(self, now: float) -> float:
        """Seconds since the first thing that is buffered came in; 0 when nothing is."""
        return 0.0 if self._waiting_since is None else now - self._waiting_since

    @property
    def records(self) -> int:
        return sum(len(reading.records) + len(reading.recalled) for reading in self._open.values())

    @property
    def full(self) -> bool:
        """Whether the buffered records are as many bytes as a chunk may hold."""
        return sum(reading.bytes for reading in self._open.values()) >= CHUNK_BYTES

    @property
    def assignments(self) -> Mapping[Partition, int]:
        return {key: reading.assignment for key, reading in self._open.items()}

    @property
    def log_ends(self) -> Mapping[Partition, int]:
        """Of the partitions whose end a poll has told."""
        return {
            key: reading.log_end
            for key, reading in self._open.items()
            if reading.log_end is not None
        }

    def end(self, partition: Partition) -> int:
        return self._open[partition].end

    def beyond(self, partition: Partition, position: int) -> int:
        """Where to read on at ``position``: behind what was read before."""
        return self._open[partition].beyond(position)

    def unread(self, partition: Partition, first: int, end: int) -> int:
        """How many offsets of [first, end) were never read."""
        reading = self._open.get(partition)
        if reading is None:
            return max(0, end - first)
        return outside((max(first, reading.end), end), reading.passed)

    def behind(self, partition: Partition, position: int) -> bool:
        """Whether what is known of the partition is out of date at ``position``."""
        reading = self._open[partition]
        return reading.end < position or bool(reading.wanted)

    def __contains__(self, partition: Partition) -> bool:
        return partition in self._open

    @staticmethod
    def _due(reading: _Reading) -> bool:
        return reading.end > reading.start or bool(reading.recalled)


def without(chunk: Chunk, partitions: Iterable[Partition]) -> Chunk | None:
    """The chunk without the records and spans of ``partitions``; None when nothing remains."""
    gone = set(partitions)
    spans = tuple(span for span in chunk.spans if (span.topic, span.partition) not in gone)
    if len(spans) == len(chunk.spans):
        return chunk
    if not spans:
        return None
    return Chunk(
        records=tuple(r for r in chunk.records if (r.topic, r.partition) not in gone),
        spans=spans,
        recalled=tuple(r for r in chunk.recalled if (r.topic, r.partition) not in gone),
    )
