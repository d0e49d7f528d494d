"""The consumer: a thread of its own reads ahead into a bounded queue of chunks.

The thread goes on polling whatever the worker does: while the queue is full the partitions are
paused, so a chunk may take longer than the poll interval without costing the membership. Where to
read from is decided by the store alone: a partition that is assigned to us waits, paused, until
``start_offsets`` has answered. Kafka's own commits follow the store, for lag tools.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from monitor.errors import BrokerUnavailable, ConfigurationError, MonitorError, Retry
from monitor.ingest.kafka import connection
from monitor.ingest.kafka.ends import EndsAsked
from monitor.ingest.kafka.group import Listener, is_stable, poll_ms
from monitor.ingest.kafka.holdings import Holdings
from monitor.ingest.kafka.natives import (
    key_of,
    look_up,
    names_of,
    native,
    raw_record,
    truncated,
)
from monitor.ingest.kafka.options import consumer_options, refusal
from monitor.ingest.kafka.reading import Partition, Places
from monitor.logs import Once, get_logger
from monitor.metrics import METRICS
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import Chunk, OffsetSpan

log = get_logger(__name__)

SHORTEST_REST_SECONDS: Final = 0.05
LONGEST_REST_SECONDS: Final = 0.4
"""Rest after empty polls, twice as long after each: some brokers answer an empty fetch at once, and
polling on would spin beside the model."""
HOLD_SECONDS: Final = 0.5
"""While the queue is full, one poll in this time keeps the membership."""
SWEEP_SECONDS: Final = 1.0
"""How often positions that moved without a record are looked for, and the lag is shown."""
RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 5.0
"""Rest before connecting again, twice as long after each failure: brokers log every attempt, too."""
REFUSALS: Final = 3
"""Refusals that end a source which has worked before: the first may be a secret being rotated."""
SETTLED_SECONDS: Final = 60.0
"""A connection that lasted this long makes earlier refusals forgotten."""
SAY_SECONDS: Final = 60.0
"""How often a problem that lasts is logged."""
OFFSETS_MS: Final = 10_000
CLOSE_SECONDS: Final = 15.0

StartOffsets = Callable[[Collection[Partition]], Mapping[Partition, int]]
Waiting = Callable[[Collection[Partition]], Mapping[Partition, Places]]


def none_waits(partitions: Collection[Partition]) -> Mapping[Partition, Places]:
    return {}


class KafkaSource:
    """A member of the consumer group; a context manager.

    ``start_offsets`` answers, for (topic, partition) pairs, the next offset that the store waits
    for; a partition that it leaves out begins at ``settings.start_at``. It is called from the
    source's own thread and may raise `Retry`, which is waited out. ``waiting`` answers, after it, which
    records below that offset hold halves that still wait: these are read again (`Chunk.recalled`).

    Chunks come with contiguous spans per partition. All methods may be called from any thread.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        ingest: IngestSettings,
        start_offsets: StartOffsets,
        waiting: Waiting = none_waits,
    ) -> None:
        consumer_options(settings)  # refuses what is wrong before anything is started
        self._settings = settings
        self._start_offsets = start_offsets
        self._waiting = waiting
        self._holdings = Holdings(ingest)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        # Written by the thread alone, read by all.
        self._failure: BaseException | None = None
        self._problem = "not connected yet"
        self._once = Once(SAY_SECONDS)
        # The source's own thread alone uses these.
        self._ends = EndsAsked()
        self._held = False
        self._sweep_at = 0.0
        self._show_at = 0.0
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
        chunk = self._holdings.take_chunk(timeout_seconds, lambda: self._failure is not None)
        if chunk is None and self._failure:
            raise self._failure
        return chunk

    def commit(self, spans: Collection[OffsetSpan]) -> None:
        """Tell Kafka, later and at best effort, that the store holds these spans."""
        self._holdings.store_holds(spans)

    def rewind(self) -> None:
        """Drop all that is buffered and read every partition again from ``start_offsets``.

        Returns at once; spans handed out before are revoked.
        """
        self._holdings.rewind()

    def is_revoked(self, span: OffsetSpan) -> bool:
        """Whether the span's partition was taken away, or is read again, since it was handed out."""
        return self._holdings.is_revoked(span)

    def assigned(self) -> frozenset[Partition]:
        """The (topic, partition) pairs that this member owns now."""
        return self._holdings.assigned()

    def lag(self) -> dict[Partition, int]:
        """Records between what is committed (else where reading began) and the log's end.

        As last told by the broker, which is asked on a schedule (see `ends`), whatever is paused.
        """
        return self._holdings.lag()

    def log_ends(self) -> tuple[LogEnd, ...]:
        """What the broker answered when it was last asked for the ends of the logs that are read."""
        return self._holdings.log_ends()

    @property
    def gaps(self) -> dict[Partition, int]:
        """Offsets per partition that retention removed before they were read."""
        return self._holdings.gaps()

    @property
    def problem(self) -> str:
        """What keeps the source from connecting or from beginning to read; empty when nothing does.

        A broker that goes away later is waited for by the client library, which logs it.
        """
        return self._problem

    def close(self) -> None:
        """Commit what was told, leave the group, end the thread; within `CLOSE_SECONDS`."""
        self._stop.set()
        self._holdings.wake()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        refusals, connected_at, rest = 0, None, RETRY_SECONDS
        while not self._stop.is_set():
            consumer: KafkaConsumer | None = None
            try:
                consumer = connection.connect(self._settings)
                connected_at, rest = time.monotonic(), RETRY_SECONDS
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
                self._holdings.lose_all()
            self._stop.wait(rest)
            rest = min(2 * rest, LONGEST_RETRY_SECONDS)

    def _read(self, consumer: KafkaConsumer) -> None:
        consumer.subscribe(list(self._settings.topics), listener=Listener(self._holdings, consumer))
        self._held = False
        rest = SHORTEST_REST_SECONDS
        while not self._stop.is_set():
            self._place(consumer)
            self._look_around(consumer)
            self._holdings.hand_over(time.monotonic())
            room = self._holdings.room()
            if room == 0 and is_stable(consumer) and self._worker_takes_a_chunk():
                continue
            self._hold(consumer, room == 0)
            try:
                fetched = consumer.poll(poll_ms(consumer), max(room, 1))
                self._take(consumer, fetched)
                if fetched:
                    rest = SHORTEST_REST_SECONDS
                elif is_stable(consumer):
                    self._stop.wait(rest)
                    rest = min(2 * rest, LONGEST_REST_SECONDS)
            except OffsetOutOfRangeError as error:
                self._bridge(consumer, error.args[0])
            except LogTruncationError as error:
                raise truncated(map(key_of, error.divergent_offsets)) from None
            self._commit(consumer)
        self._commit(consumer, wait=True)

    def _worker_takes_a_chunk(self) -> bool:
        return self._holdings.wait_for_room(HOLD_SECONDS, self._stop.is_set)

    def _place(self, consumer: KafkaConsumer) -> None:
        """Seek newly assigned and rewound partitions to where the store wants them."""
        now = time.monotonic()
        unplaced, state = self._holdings.unplaced()
        if not unplaced or now < self._place_at:
            return
        consumer.pause(*map(native, unplaced))
        try:
            stored = self._start_offsets(unplaced)
            wanted = self._waiting(unplaced)
            fresh = self._fresh_offsets(consumer, unplaced - stored.keys())
        except (Retry, KafkaError) as error:
            self._place_at = now + RETRY_SECONDS
            self._say(f"where to read from is not known: {error}")
            return
        begun = self._holdings.begin(
            {**fresh, **stored},
            told=unplaced if self._settings.start_at == "earliest" else stored.keys(),
            state=state,
            seek=lambda partition, offset: consumer.seek(native(partition), offset),
            now=now,
            wanted=wanted,
        )
        if not begun:
            return  # rewound meanwhile: ask again
        if not self._held:
            consumer.resume(*map(native, unplaced))
        self._say("")
        log.info(
            "kafka.reading", partitions=names_of(unplaced), without_stored_offset=names_of(fresh)
        )

    def _fresh_offsets(
        self, consumer: KafkaConsumer, partitions: Collection[Partition]
    ) -> dict[Partition, int]:
        if not partitions:
            return {}
        earliest = self._settings.start_at == "earliest"
        ask = consumer.beginning_offsets if earliest else consumer.end_offsets
        return look_up(ask, partitions, OFFSETS_MS)

    def _look_around(self, consumer: KafkaConsumer) -> None:
        """Ask for the ends of the logs when it is time, and show the lag: whatever is paused."""
        if is_stable(consumer):
            told = self._ends.ask(consumer, self._holdings.being_read())
            if told:
                self._holdings.ends_told(*told)
        now = time.monotonic()
        if now < self._show_at:
            return
        self._show_at = now + SWEEP_SECONDS
        for (topic, number), lag in self._holdings.lag().items():
            METRICS.lag.labels(topic=topic, partition=str(number)).set(lag)

    def _hold(self, consumer: KafkaConsumer, hold: bool) -> None:
        placed = [native(partition) for partition in self._holdings.being_read()]
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
        for one in moved & consumer.assignment():
            self._holdings.add(
                key_of(one),
                [raw_record(record) for record in fetched.get(one, ())],
                position=consumer.position(one, timeout_ms=0) or 0,
                log_end=consumer.highwater(one),
                now=now,
            )

    def _bridge(self, consumer: KafkaConsumer, out_of_range: Mapping[TopicPartition, int]) -> None:
        """The stored offset is not in the log: go on behind a gap, or stop loudly."""
        wanted = {key_of(one): offset for one, offset in out_of_range.items()}
        earliest = look_up(consumer.beginning_offsets, wanted, OFFSETS_MS)
        latest = look_up(consumer.end_offsets, wanted, OFFSETS_MS)
        for partition, offset in wanted.items():
            if offset > latest[partition]:
                raise truncated([partition])
            # Below the end of what is read stand only records that would have been read again.
            lost = max(0, earliest[partition] - max(offset, self._holdings.end(partition)))
            consumer.seek(native(partition), max(offset, earliest[partition]))
            self._holdings.add(
                partition,
                (),
                position=earliest[partition],
                log_end=latest[partition],
                now=time.monotonic(),
            )
            self._holdings.lost_records(partition, lost)
            if lost:
                METRICS.offset_gaps.labels(topic=partition[0]).inc(lost)
                log.error(
                    "kafka.records_lost",
                    partition=names_of([partition]),
                    offsets=lost,
                    first=offset,
                    reason="retention removed them before they were read",
                )

    def _commit(self, consumer: KafkaConsumer, *, wait: bool = False) -> None:
        offsets = {
            native(partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in self._holdings.take_commits().items()
        }
        if not offsets:
            return
        if not wait:
            consumer.commit_async(offsets, callback=_report_commit)
            return
        try:
            consumer.commit(offsets, timeout_ms=2_000)
        except KafkaError as error:
            _report_commit(offsets, error)

    # --- reports -------------------------------------------------------------------------------

    def _say(self, problem: str) -> None:
        self._problem = problem
        if problem and self._once.may_say(problem, time.monotonic()):
            log.warning("kafka.waiting", problem=problem)

    def _fail(self, error: BaseException) -> None:
        self._failure, self._problem = error, str(error)
        self._holdings.wake()
        if not isinstance(error, MonitorError):
            log.error("kafka.thread_failed", exc_info=error)


def _report_commit(_: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
    # A commit that meets a rebalance fails; the store holds the truth.
    if isinstance(outcome, Exception):
        log.info("kafka.commit_failed", error=type(outcome).__name__)
