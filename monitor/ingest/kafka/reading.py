"""What has been read of each partition and not yet handed out, and the chunks cut from it.

Pure bookkeeping: offsets in, contiguous spans out. A span starts where the partition's last one
ended, or where reading began, and ends where the client's position stands, so that offsets without
a record (compaction, transaction markers, lost to retention) are covered like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from monitor.values.prompts import Chunk, OffsetSpan, RawRecord

Partition = tuple[str, int]

CHUNK_BYTES: Final = 64 * 1024 * 1024
"""A chunk is full at this size however few records it holds."""


@dataclass(slots=True)
class _Reading:
    assignment: int
    start: int
    end: int
    log_end: int | None = None
    told: bool = True
    """False while the store has not been told where reading began."""
    records: list[RawRecord] = field(default_factory=list)


class Readings:
    """The open readings of this member, by partition. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[Partition, _Reading] = {}
        self._waiting_since: float | None = None

    def begin(
        self, partition: Partition, offset: int, *, assignment: int, told: bool, now: float
    ) -> None:
        """Read ``partition`` from ``offset`` on, forgetting what was buffered of it.

        With ``told`` false the next chunk holds its span even when there is no record: the store
        then knows the start, and a crash before the first record cannot move it.
        """
        self._open[partition] = _Reading(assignment, offset, offset, told=told)
        if not told:
            self._waiting_since = self._waiting_since or now

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
        reading.records.extend(records)
        reading.end = max(reading.end, position)
        reading.log_end = log_end if log_end is None else max(log_end, reading.end)
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
        )
        for reading in due.values():
            reading.start, reading.told, reading.records = reading.end, True, []
        return chunk

    def waited(self, now: float) -> float:
        """Seconds since the first thing that is buffered came in; 0 when nothing is."""
        return 0.0 if self._waiting_since is None else now - self._waiting_since

    @property
    def records(self) -> int:
        return sum(len(reading.records) for reading in self._open.values())

    @property
    def full(self) -> bool:
        """Whether the buffered records are as many bytes as a chunk may hold."""
        sizes = (len(r.value or b"") for reading in self._open.values() for r in reading.records)
        return sum(sizes) >= CHUNK_BYTES

    @property
    def assignments(self) -> Mapping[Partition, int]:
        return {key: reading.assignment for key, reading in self._open.items()}

    @property
    def log_ends(self) -> Mapping[Partition, int]:
        return {
            key: reading.end if reading.log_end is None else reading.log_end
            for key, reading in self._open.items()
        }

    def end(self, partition: Partition) -> int:
        return self._open[partition].end

    def __contains__(self, partition: Partition) -> bool:
        return partition in self._open

    @staticmethod
    def _due(reading: _Reading) -> bool:
        return reading.end > reading.start or not reading.told


def without(chunk: Chunk, partitions: Iterable[Partition]) -> Chunk | None:
    """The chunk without the records and spans of ``partitions``; None when nothing remains."""
    gone = set(partitions)
    spans = tuple(span for span in chunk.spans if (span.topic, span.partition) not in gone)
    if len(spans) == len(chunk.spans):
        return chunk
    if not spans:
        return None
    return Chunk(
        records=tuple(r for r in chunk.records if (r.topic, r.partition) not in gone), spans=spans
    )
