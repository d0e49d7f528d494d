"""The consumer: a thread of its own reads ahead into a bounded queue of chunks.

The thread goes on polling whatever the worker does: while the queue is full the partitions are
paused, so a chunk may take longer than the poll interval without costing the membership. Where to
read from is decided by the store alone: a partition that is assigned to us waits, paused, until
``start_offsets`` has answered. Kafka's own commits follow the store, for lag tools.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.structs import MemberState

from monitor.errors import BrokerUnavailable, ConfigurationError, MonitorError, Retry, StopLoudly
from monitor.ingest.kafka import connection
from monitor.ingest.kafka.options import consumer_options, refusal
from monitor.ingest.kafka.reading import Partition, Readings, without
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.prompts import Chunk, OffsetSpan, RawRecord

log = get_logger(__name__)

QUEUED_CHUNKS: Final = 2
"""Whole chunks read ahead, beside the one that is being filled."""
POLL_SECONDS: Final = 0.02
SHORTEST_REST_SECONDS: Final = 0.05
LONGEST_REST_SECONDS: Final = 0.4
"""Rest after empty polls, twice as long after each: some brokers answer an empty fetch at once, and
polling on would spin beside the model."""
JOIN_POLL_SECONDS: Final = 1.0
HOLD_SECONDS: Final = 0.5
"""While the queue is full, one poll in this time keeps the membership."""
SWEEP_SECONDS: Final = 1.0
"""How often positions that moved without a record are looked for."""
RETRY_SECONDS: Final = 1.0
REFUSALS: Final = 3
"""Refusals that end a source which has worked before: the first may be a secret being rotated."""
SETTLED_SECONDS: Final = 60.0
"""A connection that lasted this long makes earlier refusals forgotten."""
OFFSETS_MS: Final = 10_000
CLOSE_SECONDS: Final = 15.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_000  # 9999-12-31T23:59:59Z

StartOffsets = Callable[[Collection[Partition]], Mapping[Partition, int]]


class KafkaSource:
    """A member of the consumer group; a context manager.

    ``start_offsets`` answers, for (topic, partition) pairs, the next offset that the store waits
    for; a partition that it leaves out begins at ``settings.start_at``. It is called from the
    source's own thread and may raise `Retry`, which is waited out.

    Chunks come with contiguous spans per partition. All methods may be called from any thread.
    """

    def __init__(
        self, settings: KafkaSettings, ingest: IngestSettings, start_offsets: StartOffsets
    ) -> None:
        consumer_options(settings)  # refuses what is wrong before anything is started
        self._settings = settings
        self._ingest = ingest
        self._start_offsets = start_offsets
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        # Guarded by _changed from here on.
        self._chunks: deque[Chunk] = deque()
        self._readings = Readings()
        self._unplaced: set[Partition] = set()
        self._suspended: set[Partition] = set()
        self._assignments = 0
        self._stored: dict[Partition, int] = {}
        self._to_commit: dict[Partition, int] = {}
        self._gaps: dict[Partition, int] = {}
        self._failure: BaseException | None = None
        self._problem = "not connected yet"
        # The source's own thread alone uses these.
        self._held = False
        self._sweep_at = 0.0
        self._place_at = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- what the worker calls -----------------------------------------------------------------

    def poll(self, timeout_seconds: float) -> Chunk | None:
        """The next chunk, or None when none came in time.

        A chunk may hold spans without records. A broker that is away is waited out (see
        `problem`). Raises `ConfigurationError` when the cluster refuses us or a topic is unknown,
        `StopLoudly` when the log no longer reaches up to the stored offset; after that the source
        is dead.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._failure, timeout_seconds)
            if self._chunks:
                self._changed.notify_all()
                return self._chunks.popleft()
            if self._failure:
                raise self._failure
            return None

    def commit(self, spans: Collection[OffsetSpan]) -> None:
        """Tell Kafka, later and at best effort, that the store holds these spans."""
        with self._changed:
            for span in spans:
                if not self._revoked(span):
                    key = (span.topic, span.partition)
                    self._to_commit[key] = self._stored[key] = span.end

    def rewind(self) -> None:
        """Drop all that is buffered and read every partition again from ``start_offsets``.

        Returns at once; spans handed out before are revoked.
        """
        with self._changed:
            self._forget(self._assigned())

    def is_revoked(self, span: OffsetSpan) -> bool:
        """Whether the span's partition was taken away, or is read again, since it was handed out."""
        with self._changed:
            return self._revoked(span)

    def assigned(self) -> frozenset[Partition]:
        """The (topic, partition) pairs that this member owns now."""
        with self._changed:
            return self._assigned()

    def lag(self) -> dict[Partition, int]:
        """Records between what is committed (else where reading began) and the log's end.

        As last told by the broker; while a full queue holds reading up, the end stands still.
        """
        with self._changed:
            return {
                partition: max(0, end - self._stored[partition])
                for partition, end in self._readings.log_ends.items()
            }

    @property
    def gaps(self) -> dict[Partition, int]:
        """Offsets per partition that retention removed before they were read."""
        with self._changed:
            return dict(self._gaps)

    @property
    def problem(self) -> str:
        """What keeps the source from connecting or from beginning to read; empty when nothing does.

        A broker that goes away later is waited for by the client library, which logs it.
        """
        with self._changed:
            return self._problem

    def close(self) -> None:
        """Commit what was told, leave the group, end the thread; within `CLOSE_SECONDS`."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        refusals, connected_at = 0, None
        while not self._stop.is_set():
            consumer: KafkaConsumer | None = None
            try:
                consumer = connection.connect(self._settings)
                connected_at = time.monotonic()
                self._say("")
                self._read(consumer)
            except (BrokerUnavailable, KafkaError, ConfigurationError) as error:
                refused = refusal(error, self._settings)
                if connected_at and consumer and time.monotonic() - connected_at > SETTLED_SECONDS:
                    refusals = 0
                refusals += refused is not None
                if refused and (connected_at is None or refusals >= REFUSALS):
                    return self._fail(refused)
                self._say(str(error))
            except BaseException as error:
                return self._fail(error)
            finally:
                if consumer is not None:
                    connection.close(consumer)
                with self._changed:
                    self._suspended.clear()
                    self._lose(self._assigned())
            self._stop.wait(RETRY_SECONDS)

    def _read(self, consumer: KafkaConsumer) -> None:
        consumer.subscribe(list(self._settings.topics), listener=_Listener(self, consumer))
        self._held = False
        rest = SHORTEST_REST_SECONDS
        while not self._stop.is_set():
            self._place(consumer)
            self._hand_over()
            room = self._room()
            if room == 0 and _is_stable(consumer) and self._worker_takes_a_chunk():
                continue
            self._hold(consumer, room == 0)
            try:
                fetched = consumer.poll(_poll_ms(consumer), max(room, 1))
                self._take(consumer, fetched)
                if fetched:
                    rest = SHORTEST_REST_SECONDS
                elif _is_stable(consumer):
                    self._stop.wait(rest)
                    rest = min(2 * rest, LONGEST_REST_SECONDS)
            except OffsetOutOfRangeError as error:
                self._bridge(consumer, error.args[0])
            except LogTruncationError as error:
                raise _truncated(sorted(error.divergent_offsets)) from None
            self._commit(consumer)
        self._commit(consumer, wait=True)

    def _worker_takes_a_chunk(self) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._chunks) < QUEUED_CHUNKS or self._stop.is_set(), HOLD_SECONDS
            )

    def _place(self, consumer: KafkaConsumer) -> None:
        """Seek newly assigned and rewound partitions to where the store wants them."""
        now = time.monotonic()
        with self._changed:
            unplaced = frozenset(self._unplaced)
            assignments = self._assignments
        if not unplaced or now < self._place_at:
            return
        consumer.pause(*map(_native, unplaced))
        try:
            stored = self._start_offsets(unplaced)
            fresh = self._fresh_offsets(consumer, unplaced - stored.keys())
        except (Retry, KafkaError) as error:
            self._place_at = now + RETRY_SECONDS
            self._say(f"where to read from is not known: {error}")
            return
        with self._changed:
            if assignments != self._assignments:
                return  # rewound meanwhile: ask again
            for partition, offset in {**fresh, **stored}.items():
                self._assignments += 1
                consumer.seek(_native(partition), offset)
                self._stored[partition] = offset
                self._readings.begin(
                    partition,
                    offset,
                    assignment=self._assignments,
                    told=partition in stored or self._settings.start_at == "earliest",
                    now=now,
                )
            self._unplaced -= unplaced
        if not self._held:
            consumer.resume(*map(_native, unplaced))
        self._say("")
        log.info("kafka.reading", partitions=_names(unplaced), without_stored_offset=_names(fresh))

    def _fresh_offsets(
        self, consumer: KafkaConsumer, partitions: Collection[Partition]
    ) -> dict[Partition, int]:
        if not partitions:
            return {}
        earliest = self._settings.start_at == "earliest"
        look_up = consumer.beginning_offsets if earliest else consumer.end_offsets
        found = _looked_up(look_up, map(_native, partitions))
        return {_key(native): offset for native, offset in found.items()}

    def _room(self) -> int:
        """How many records the chunk that is being filled can still take."""
        with self._changed:
            if self._readings.full:
                return 0
            return max(0, self._ingest.chunk_records - self._readings.records)

    def _hold(self, consumer: KafkaConsumer, hold: bool) -> None:
        with self._changed:
            placed = [_native(partition) for partition in self._readings.assignments]
        if hold:
            consumer.pause(*placed)
        elif self._held:
            consumer.resume(*placed)
        self._held = hold

    def _take(self, consumer: KafkaConsumer, fetched: Mapping[TopicPartition, list[Any]]) -> None:
        now = time.monotonic()
        moved = set(fetched)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            moved |= consumer.assignment()
            for (topic, number), lag in self.lag().items():
                METRICS.lag.labels(topic=topic, partition=str(number)).set(lag)
        for native in moved & consumer.assignment():
            records = [_raw(record) for record in fetched.get(native, ())]
            position = consumer.position(native, timeout_ms=0) or 0
            with self._changed:
                self._readings.add(
                    _key(native),
                    records,
                    position=position,
                    log_end=consumer.highwater(native),
                    now=now,
                )

    def _hand_over(self) -> None:
        with self._changed:
            full = self._readings.full or self._readings.records >= self._ingest.chunk_records
            waited = self._readings.waited(time.monotonic())
            due = full or waited >= self._ingest.chunk_wait.total_seconds()
            if due and len(self._chunks) < QUEUED_CHUNKS:
                chunk = self._readings.cut()
                if chunk:
                    self._chunks.append(chunk)
                    self._changed.notify_all()

    def _bridge(self, consumer: KafkaConsumer, out_of_range: Mapping[TopicPartition, int]) -> None:
        """The stored offset is not in the log: go on behind a gap, or stop loudly."""
        earliest = _looked_up(consumer.beginning_offsets, out_of_range)
        latest = _looked_up(consumer.end_offsets, out_of_range)
        for native, offset in out_of_range.items():
            if offset > latest[native]:
                raise _truncated([native])
            partition = _key(native)
            lost = max(0, earliest[native] - offset)
            consumer.seek(native, max(offset, earliest[native]))
            with self._changed:
                self._readings.add(
                    partition,
                    (),
                    position=earliest[native],
                    log_end=latest[native],
                    now=time.monotonic(),
                )
                self._gaps[partition] = self._gaps.get(partition, 0) + lost
            if lost:
                METRICS.offset_gaps.labels(topic=native.topic).inc(lost)
                log.error(
                    "kafka.records_lost",
                    partition=_names([partition]),
                    offsets=lost,
                    first=offset,
                    reason="retention removed them before they were read",
                )

    def _commit(self, consumer: KafkaConsumer, *, wait: bool = False) -> None:
        with self._changed:
            owned = self._readings.assignments
            offsets = {
                _native(partition): OffsetAndMetadata(offset, "", -1)
                for partition, offset in self._to_commit.items()
                if partition in owned
            }
            self._to_commit.clear()
        if not offsets:
            return
        if not wait:
            consumer.commit_async(offsets, callback=_report_commit)
            return
        try:
            consumer.commit(offsets, timeout_ms=2_000)
        except KafkaError as error:
            _report_commit(offsets, error)

    # --- under the lock ------------------------------------------------------------------------

    def _assigned(self) -> frozenset[Partition]:
        return frozenset(self._unplaced | self._readings.assignments.keys())

    def _revoked(self, span: OffsetSpan) -> bool:
        return self._readings.assignments.get((span.topic, span.partition)) != span.assignment

    def _forget(self, partitions: Collection[Partition]) -> None:
        """These are read from the start again: whatever was read of them is void."""
        self._assignments += 1
        self._unplaced |= set(partitions)
        self._void(partitions)

    def _lose(self, partitions: Collection[Partition]) -> None:
        self._unplaced -= set(partitions)
        self._void(partitions)
        for topic, number in partitions:
            with suppress(KeyError):
                METRICS.lag.remove(topic, str(number))

    def _void(self, partitions: Collection[Partition]) -> None:
        self._readings.drop(partitions)
        for partition in partitions:
            self._to_commit.pop(partition, None)
            self._stored.pop(partition, None)
        remaining = (without(chunk, partitions) for chunk in self._chunks)
        self._chunks = deque(chunk for chunk in remaining if chunk)
        self._changed.notify_all()

    # --- reports -------------------------------------------------------------------------------

    def _say(self, problem: str) -> None:
        with self._changed:
            changed, self._problem = problem != self._problem, problem
        if changed and problem:
            log.warning("kafka.waiting", problem=problem)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            self._problem = str(error)
            self._changed.notify_all()
        if not isinstance(error, MonitorError):
            log.error("kafka.thread_failed", exc_info=error)

    def _on_revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """A rebalance begins; most partitions will come straight back, so nothing is dropped yet.

        What is stored meanwhile is safe: the store's compare-and-swap decides between owners.
        """
        with self._changed:
            self._suspended |= {_key(native) for native in partitions}

    def _on_assigned(self, consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """The rebalance is over. Called from within `KafkaConsumer.poll`, on its network thread."""
        assigned = {_key(native) for native in partitions}
        with self._changed:
            gone = self._assigned() - assigned
            new = assigned - (self._suspended & self._readings.assignments.keys())
            self._suspended.clear()
            self._lose(gone)
            self._forget(new)
        if gone or new:
            METRICS.rebalances.inc()
        # A position of any kind keeps the library from looking for one; paused, it is not used.
        consumer.pause(*map(_native, new))
        for partition in new:
            consumer.seek(_native(partition), 0)
        log.info(
            "kafka.rebalanced", gone=_names(gone), new=_names(new), kept=_names(assigned - new)
        )

    def _on_lost(self, partitions: Iterable[TopicPartition]) -> None:
        """We were thrown out of the group: others may have read on already."""
        lost = {_key(native) for native in partitions}
        with self._changed:
            self._suspended -= lost
            self._lose(lost)
        log.warning("kafka.membership_lost", partitions=_names(lost))


class _Listener(ConsumerRebalanceListener):
    """Passes on what the group decided. Never blocks: heartbeats run on the same thread."""

    def __init__(self, source: KafkaSource, consumer: KafkaConsumer) -> None:
        self._source = source
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._source._on_assigned(self._consumer, assigned)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._source._on_revoked(revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._source._on_lost(lost)


def _looked_up(
    look_up: Callable[[list[TopicPartition], int], dict[TopicPartition, int]],
    natives: Iterable[TopicPartition],
) -> dict[TopicPartition, int]:
    try:
        return look_up(list(natives), OFFSETS_MS)
    except KeyError as error:  # how the library says that a partition has no leader just now
        raise BrokerUnavailable(f"the log's limits are not known: {error}") from None


def _is_stable(consumer: KafkaConsumer) -> bool:
    return bool(consumer.group_metadata().state == MemberState.STABLE)


def _poll_ms(consumer: KafkaConsumer) -> float:
    """How long one poll may block.

    While the group rebalances we must be inside of `KafkaConsumer.poll`: the library throws away an
    assignment that arrives between two polls and joins again, which two short-polling members can
    go on doing to each other for ever.
    """
    return 1_000 * (POLL_SECONDS if _is_stable(consumer) else JOIN_POLL_SECONDS)


def _native(partition: Partition) -> TopicPartition:
    return TopicPartition(*partition)


def _key(native: TopicPartition) -> Partition:
    return (native.topic, native.partition)


def _names(partitions: Iterable[Partition]) -> list[str]:
    return [f"{topic}/{number}" for topic, number in sorted(partitions)]


def _raw(record: Any) -> RawRecord:
    """A record of the client library; a timestamp outside of the calendar is moved to its border."""
    return RawRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=_EPOCH + timedelta(milliseconds=min(max(record.timestamp, 0), _LAST_MS)),
        value=record.value,
        key=record.key,
        headers=tuple((name, content or b"") for name, content in record.headers or ()),
    )


def _truncated(natives: Iterable[TopicPartition]) -> StopLoudly:
    names = ", ".join(f"{native.topic}/{native.partition}" for native in natives)
    return StopLoudly(
        f"the log of {names} ends before the stored offset: the topic was made anew, records were "
        "lost in an unclean leader election, or this is another cluster",
        hint="Nothing was skipped. When this is what you want, give the monitor another "
        "kafka.group_id: it then begins at kafka.start_at.",
    )


def _report_commit(_: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
    # A commit that meets a rebalance fails; the store holds the truth.
    if isinstance(outcome, Exception):
        log.info("kafka.commit_failed", error=type(outcome).__name__)
