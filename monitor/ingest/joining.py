"""Exchanges whose parts come in several records are put together here, within a bounded window.

KServe sends request and response apart, OpenTelemetry's older instrumentations send every message apart.

**Exactly once.** A part that waits is kept in memory, and its *place* in the log is stored with the
offset of its chunk, in one transaction; its text is stored nowhere, since no prompt text may be. So the
offset moves on at once: a part holds nothing back. Whoever reads the partition next (after a crash, a
restart, a rebalance) reads the places' records once more, and those alone. Joining or giving up drops
the place in the same transaction as the outcome; a place that another worker has dropped makes the
chunk stale. The two other ways were worse: holding the offset back would delay every prompt behind a
part by up to the window, and storing the parts would store prompts.

**The window** runs in the partition's own time, the times at which its records were appended, so that
a backlog is joined as live traffic is. A partition in which nothing more comes is read to its end: then
our clock counts from when the part was read. Nothing is given up because a broker is away.

**Given up** is a skip with a reason, no dead letter: KServe logs no response of a call that failed, so
lone halves are everyday traffic, and nothing about them cannot be read. A half alone is never scored:
it is not known whether its rest was lost. `UNPAIRED`: the window passed, the part came twice, or its
record is gone from the log. `JOIN_FULL`: more parts waited than ``ingest.join`` allows; the oldest go.

**Where.** Two parts in different partitions meet in a worker that reads both, whatever the group
decides later, but in no other. With several workers the producer's key must be the same for both:
CloudEvents' ``partitionkey``, the collector's ``partition_logs_by_trace_id``. Events per message are
joined in one partition alone and from keyed records (see `monitor.ingest.dialects.messages`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from monitor.ingest import formats
from monitor.ingest.frames.registry import frames
from monitor.settings import IngestSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import (
    Chunk,
    DeadLetter,
    DeadReason,
    Half,
    Parsed,
    RawRecord,
    Recalled,
    RecordKey,
    Skip,
    SkipReason,
)

OVERHEAD_BYTES: Final = 1_000
"""What a part takes in memory beside its content."""

Partition = tuple[str, int]
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Joined:
    """What a chunk came to. ``read`` is every record's own outcome, halves among them."""

    outcomes: list[Parsed] = field(default_factory=list)
    read: Sequence[Parsed | Half] = ()
    waiting: tuple[RecordKey, ...] = ()
    settled: tuple[RecordKey, ...] = ()


@dataclass(slots=True)
class _Exchange:
    """The parts of one exchange that wait, the oldest first."""

    partition: Partition
    since: datetime
    """The time of its partition when the first part was read."""
    read_at: datetime
    halves: list[Half] = field(default_factory=list)


class Joins:
    """The parts that wait in one worker. Not thread-safe; one chunk after the other, in order.

    ``in_order``: the records are those of one file, so events need no key. Raises `ConfigurationError`
    when ``ingest.registry`` is set and its client is not installed.
    """

    def __init__(self, settings: IngestSettings, *, in_order: bool = False) -> None:
        self._settings = settings
        self._read_frame = frames(settings)
        self._limits = settings.join
        self._unkeyed = in_order or settings.join.unkeyed
        self.clear()

    def clear(self) -> None:
        """Forget everything: the partitions are read again from what the store holds."""
        self._exchanges: dict[bytes, _Exchange] = {}
        self._places: set[RecordKey] = set()
        """Parts that the store holds, or will when the chunks before are stored."""
        self._bytes = 0
        self._count = 0
        self._times: dict[Partition, datetime] = {}
        self._read_to: dict[Partition, int] = {}
        self._assignments: dict[Partition, int] = {}

    @property
    def waits(self) -> int:
        """How many parts wait."""
        return self._count

    def read(
        self,
        chunk: Chunk,
        *,
        now: datetime,
        ends: Sequence[LogEnd] = (),
        assigned: Collection[Partition] | None = None,
    ) -> Joined:
        """Parse the chunk's records, join what can be joined, and give up what waited too long.

        ``assigned``: the partitions that are ours now; parts of others are forgotten, since their places
        are somebody else's to read. None: all. Raises `RegistryUnavailable` before anything is changed:
        ask again with the same chunk.
        """
        recalled = [self._parsed(again.record) for again in chunk.recalled]
        parsed = [one for record in chunk.records for one in self._parsed(record)]
        self._let_go(chunk, assigned)
        step = _Step(read=parsed)
        for again, parts in zip(chunk.recalled, recalled, strict=True):
            self._recall(step, again, parts, now)
        for one in parsed:
            if isinstance(one, Half):
                self._add(step, one, now)
            else:
                step.joined.outcomes.append(one)
        if self._exchanges:
            self._pass_time(chunk, now)
            self._give_up_late(step, ends)
        return self._told(step)

    def end(self) -> list[Parsed]:
        """Nothing more will come: everything that waits is given up."""
        step = _Step()
        for name in list(self._exchanges):
            self._give_up(step, name, SkipReason.UNPAIRED)
        return step.joined.outcomes

    # --- one part ------------------------------------------------------------------------------

    def _parsed(self, record: RawRecord | None) -> Sequence[Parsed | Half]:
        return formats.parse(record, self._settings, self._read_frame) if record else ()

    def _recall(
        self, step: _Step, again: Recalled, parts: Sequence[Parsed | Half], now: datetime
    ) -> None:
        found = {part.key.index: part for part in parts if isinstance(part, Half)}
        for index in sorted(again.indexes):
            key = RecordKey(
                topic=again.topic, partition=again.partition, offset=again.offset, index=index
            )
            self._places.add(key)
            if index in found:
                self._add(step, found[index], now)
            else:  # retention removed it, or a setting reads it otherwise now
                at = again.record.timestamp if again.record else now
                self._skip(step, key, at, SkipReason.UNPAIRED)

    def _add(self, step: _Step, half: Half, now: datetime) -> None:
        if half.ordered and not (half.keyed or self._unkeyed):
            self._settle(step, half.key)
            step.joined.outcomes.append(_without_key(half))
            return
        name = _name(half)
        known = self._exchanges.get(name)
        parts = known.halves if known else []
        if half.last and not parts:
            self._skip(step, half.key, half.recorded_at, SkipReason.UNPAIRED)
        elif half.last or (not half.ordered and parts and parts[0].side != half.side):
            self._close(step, name, half)
        elif not half.ordered and parts:
            self._skip(step, half.key, half.recorded_at, SkipReason.UNPAIRED)
        else:
            self._keep(step, name, half, now)

    def _close(self, step: _Step, name: bytes, closing: Half) -> None:
        parts = [*self._remove(name), closing]
        if not closing.ordered:
            parts.sort(key=lambda half: half.side)
        for part in parts:
            self._settle(step, part.key)
        step.joined.outcomes.append(formats.joined(parts, closing, self._settings))

    def _keep(self, step: _Step, name: bytes, half: Half, now: datetime) -> None:
        partition = (half.key.topic, half.key.partition)
        since = max(min(half.recorded_at, now), self._times.get(partition, _NEVER))
        self._times[partition] = since
        if name not in self._exchanges:
            self._exchanges[name] = _Exchange(partition, since, now)
        self._exchanges[name].halves.append(half)
        self._bytes += _size(half)
        self._count += 1
        if half.key not in self._places:
            step.begun[half.key] = None
        while self._exchanges and (
            self._count > self._limits.halves or self._bytes > self._limits.bytes
        ):
            self._give_up(step, next(iter(self._exchanges)), SkipReason.JOIN_FULL)

    # --- giving up -----------------------------------------------------------------------------

    def _pass_time(self, chunk: Chunk, now: datetime) -> None:
        for record in chunk.records:
            partition = (record.topic, record.partition)
            at = min(record.timestamp, now)
            self._times[partition] = max(at, self._times.get(partition, at))

    def _give_up_late(self, step: _Step, ends: Sequence[LogEnd]) -> None:
        window = self._limits.window
        idle_at = {
            (end.topic, end.partition): end.asked_at
            for end in ends
            if self._read_to.get((end.topic, end.partition), -1) >= end.log_end
        }
        late = [
            name
            for name, exchange in self._exchanges.items()
            if self._times[exchange.partition] - exchange.since > window
            or idle_at.get(exchange.partition, exchange.read_at) - exchange.read_at > window
        ]
        for name in late:
            self._give_up(step, name, SkipReason.UNPAIRED)

    def _give_up(self, step: _Step, name: bytes, reason: SkipReason) -> None:
        for half in self._remove(name):
            self._skip(step, half.key, half.recorded_at, reason)

    def _skip(self, step: _Step, key: RecordKey, at: datetime, reason: SkipReason) -> None:
        self._settle(step, key)
        step.joined.outcomes.append(Skip(key=key, recorded_at=at, reason=reason))

    # --- bookkeeping ---------------------------------------------------------------------------

    def _remove(self, name: bytes) -> list[Half]:
        halves = self._exchanges.pop(name).halves
        self._bytes -= sum(map(_size, halves))
        self._count -= len(halves)
        return halves

    def _settle(self, step: _Step, key: RecordKey) -> None:
        """A part waits no longer; the store is told only of what it holds."""
        step.begun.pop(key, None)
        if key in self._places:
            self._places.discard(key)
            step.settled.append(key)

    def _told(self, step: _Step) -> Joined:
        self._places.update(step.begun)
        step.joined.waiting = tuple(step.begun)
        step.joined.settled = tuple(step.settled)
        return step.joined

    def _let_go(self, chunk: Chunk, assigned: Collection[Partition] | None) -> None:
        """Forget the parts of partitions that are lost, or are read anew from the store's offsets."""
        gone: set[Partition] = set()
        for span in chunk.spans:
            partition = (span.topic, span.partition)
            if self._assignments.get(partition, span.assignment) != span.assignment:
                gone.add(partition)
            self._assignments[partition] = span.assignment
            self._read_to[partition] = span.end
        if assigned is not None:
            gone |= {one.partition for one in self._exchanges.values()} - set(assigned)
        if not gone:
            return
        for name in [name for name, one in self._exchanges.items() if one.partition in gone]:
            self._remove(name)
        self._places = {key for key in self._places if (key.topic, key.partition) not in gone}
        for partition in gone:
            self._times.pop(partition, None)


class _Step:
    """What one chunk changes."""

    def __init__(self, read: Sequence[Parsed | Half] = ()) -> None:
        self.joined = Joined(read=read)
        self.begun: dict[RecordKey, None] = {}
        self.settled: list[RecordKey] = []


def _name(half: Half) -> bytes:
    """What the exchange is known under: parts that must come in order meet in one partition alone."""
    if not half.ordered:
        return half.exchange
    return f"{half.key.topic}/{half.key.partition}/".encode() + half.exchange


def _size(half: Half) -> int:
    return len(half.content) + OVERHEAD_BYTES


def _without_key(half: Half) -> DeadLetter:
    return DeadLetter(
        key=half.key,
        recorded_at=half.recorded_at,
        reason=DeadReason.DIALECT_NOT_READ,
        detail="record: an event per message without a Kafka key is not read here; set "
        "partition_logs_by_trace_id: true in the collector's Kafka exporter, or ingest.join.unkeyed "
        "where the topic has one partition",
    )
