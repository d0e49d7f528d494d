"""The consumer: a thread of its own reads ahead into a bounded queue of chunks.

The thread goes on polling whatever the worker does: while the queue is full the partitions are
paused, so a chunk may take longer than the poll interval without costing the membership. Where to
read from is decided by the store alone: a partition that is assigned to us waits, paused, until
the store has answered. Kafka's own commits follow the store, for lag tools.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from monitor.errors import BrokerUnavailable, ConfigurationError, MonitorError, Retry
from monitor.ingest.kafka import connection
from monitor.ingest.kafka.committed import ours, set_by_others, told
from monitor.ingest.kafka.ends import Ends, EndsAsked
from monitor.ingest.kafka.group import Listener, finish_join, is_stable, poll_ms
from monitor.ingest.kafka.holdings import Holdings
from monitor.ingest.kafka.natives import (
    key_of,
    look_up,
    names_of,
    native,
    positions,
    raw_record,
    topic_id,
    truncated,
)
from monitor.ingest.kafka.options import consumer_options, refusal
from monitor.ingest.kafka.placing import (
    OFFSETS_MS,
    ReadingPoints,
    reading_points,
    require_same_topics,
)
from monitor.ingest.kafka.standing import Standing
from monitor.logs import Once, get_logger
from monitor.metrics import METRICS
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import Chunk, OffsetSpan
from monitor.values.reading import Partition, ReadingPoint

log = get_logger(__name__)

SHORTEST_REST_SECONDS: Final = 0.05
LONGEST_REST_SECONDS: Final = 0.4
"""Rest after empty polls, twice as long after each: some brokers answer an empty fetch at once, and
polling on would spin beside the model."""
HOLD_SECONDS: Final = 0.5
"""While the queue is full, one poll in this time keeps the membership."""
SWEEP_SECONDS: Final = 1.0
"""How often positions that moved without a record are looked for."""
SHOW_SECONDS: Final = 3.0
"""How often the lag is shown, and the topics' ids are looked at."""
RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 5.0
"""Rest before connecting again, twice as long after each failure: brokers log every attempt, too."""
REFUSALS: Final = 3
"""Refusals that end a source which has worked before: the first may be a secret being rotated."""
SETTLED_SECONDS: Final = 60.0
"""A connection that lasted this long makes earlier refusals forgotten."""
SAY_SECONDS: Final = 60.0
"""How often a problem that lasts is logged."""
SAID_SECONDS: Final = 3_600.0
"""How long what is said once stays on the page."""
NOT_YET: Final = "not connected yet"
LEAVE_SECONDS: Final = 1.0
"""Enough to commit and leave the group where the broker answers; then the line is cut."""
CUT_AGAIN_SECONDS: Final = 0.1
CLOSE_SECONDS: Final = 5.0


class Stalled(Exception):
    """A partition stands still for no reason: a new consumer is tried."""


class KafkaSource:
    """A member of the consumer group; a context manager.

    ``points`` is asked where to read from, and told where topics and partitions begin that the store does
    not know (see `reading_points`), before anything is read of them. It is called from the source's own
    thread and may raise `Retry`, which is waited out. Records that hold halves which still wait are read
    again (`Chunk.recalled`).

    Chunks come with contiguous spans per partition. All methods may be called from any thread.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        ingest: IngestSettings,
        points: ReadingPoints,
    ) -> None:
        consumer_options(settings)  # refuses what is wrong before anything is started
        self._settings = settings
        self._points = points
        self._holdings = Holdings(ingest)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        # Written by the thread alone, read by all.
        self._failure: BaseException | None = None
        self._problem = NOT_YET
        self._once = Once(SAY_SECONDS)
        self._connected = False
        self._line = connection.Line()
        # The source's own thread alone uses these.
        self._ends = EndsAsked()
        self._standing = Standing()
        self._topics: dict[str, UUID | None] = {}
        self._said, self._said_until = "", 0.0
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
        """Drop all that is buffered and read every partition again from where the store wants it.

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

    def remarks(self) -> tuple[str, ...]:
        """Sentences about what is wrong with what is read, for the page."""
        problem = self._problem
        said = (f"Kafka: {problem}",) if problem not in ("", NOT_YET) else ()
        if self._said and time.monotonic() < self._said_until:
            said = (*said, self._said)
        return (*said, *self._standing.said())

    def close(self) -> None:
        """Commit what was told, leave the group, end the thread: within a second or two.

        A thread that the store does not answer is left behind after `CLOSE_SECONDS`.
        """
        self._stop.set()
        self._holdings.wake()
        if self._thread.ident is None:
            return
        began = time.monotonic()
        if self._connected:
            self._thread.join(LEAVE_SECONDS)
        while self._thread.is_alive() and time.monotonic() - began < CLOSE_SECONDS:
            self._line.cut()
            self._thread.join(CUT_AGAIN_SECONDS)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        refusals, connected_at, rest = 0, None, RETRY_SECONDS
        while not self._stop.is_set():
            consumer: KafkaConsumer | None = None
            try:
                consumer = connection.connect(self._settings, self._line)
                connected_at, rest = time.monotonic(), RETRY_SECONDS
                self._connected = True
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
            except Stalled as error:
                log.warning("kafka.new_consumer", reason=str(error))
            except BaseException as error:
                return self._fail(error)
            finally:
                if consumer is not None:
                    connection.close(consumer)
                self._connected = False
                self._holdings.lose_all()
            self._stop.wait(rest)
            rest = min(2 * rest, LONGEST_RETRY_SECONDS)

    def _read(self, consumer: KafkaConsumer) -> None:
        consumer.subscribe(list(self._settings.topics), listener=Listener(self._holdings, consumer))
        self._held = False
        self._topics.clear()
        self._standing.restart()
        rest = SHORTEST_REST_SECONDS
        while not self._stop.is_set():
            self._place(consumer)
            self._look_around(consumer)
            self._holdings.hand_over(time.monotonic())
            room = self._holdings.room()
            if room == 0 and is_stable(consumer) and self._worker_takes_a_chunk():
                continue
            self._hold(consumer, room == 0)
            finish_join(consumer)
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
                at, diverged = positions(consumer), error.divergent_offsets
                raise truncated(
                    {
                        key_of(one): (at.get(key_of(one), 0), end.offset if end else None)
                        for one, end in diverged.items()
                    }
                ) from None
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
            points = reading_points(consumer, self._points, unplaced, self._settings.start_at)
        except (Retry, KafkaError) as error:
            self._place_at = now + RETRY_SECONDS
            self._say(f"where to read from is not known: {error}")
            return
        begun = self._holdings.begin(
            points,
            state=state,
            seek=lambda partition, offset: consumer.seek(native(partition), offset),
        )
        if not begun:
            return  # rewound meanwhile: ask again
        if points.keys() < unplaced:
            self._place_at = now + RETRY_SECONDS  # another member is just beginning the topic
        if not self._held:
            consumer.resume(*map(native, points))
        self._say("")
        self._topics |= {topic: topic_id(consumer, topic) for topic, _ in points}
        log.info("kafka.reading", partitions=names_of(points))
        self._compare_commits(consumer, points)

    def _compare_commits(
        self, consumer: KafkaConsumer, points: Mapping[Partition, ReadingPoint]
    ) -> None:
        """Say once that somebody else set the group's offsets, and commit ours over them."""
        others = set_by_others(consumer, points)
        if others:
            self._said = told(others, points)
            self._said_until = time.monotonic() + SAID_SECONDS
            log.warning("kafka.offsets_set_from_outside", said=self._said)
            self._holdings.commit_again(others)

    def _look_around(self, consumer: KafkaConsumer) -> None:
        """Ask for the ends of the logs when it is time, and show the lag: whatever is paused."""
        now = time.monotonic()
        if is_stable(consumer):
            ends = self._ends.ask(consumer, self._holdings.being_read())
            if ends:
                self._holdings.ends_told(ends.log, ends.asked_at)
                self._watch(ends, now)
        if now < self._show_at:
            return
        self._show_at = now + SHOW_SECONDS
        require_same_topics(consumer, self._topics)
        for (topic, number), lag in self._holdings.lag().items():
            METRICS.lag.labels(topic=topic, partition=str(number)).set(lag)

    def _watch(self, ends: Ends, now: float) -> None:
        """Name the partitions that stand still; raises `Stalled` when a new consumer is to be tried."""
        if self._held:
            return
        stalled = self._standing.look(ends, now)
        METRICS.behind_transactions.set(len(self._standing.behind_transactions))
        for topic, _ in stalled:
            METRICS.partitions_stalled.labels(topic=topic).inc()
        if stalled:
            log.error("kafka.partitions_stalled", partitions=names_of(stalled))
        if due := self._standing.cure(now):
            raise Stalled(f"{', '.join(names_of(due))} stood still while the log grew")

    def _hold(self, consumer: KafkaConsumer, hold: bool) -> None:
        placed = [native(partition) for partition in self._holdings.being_read()]
        if hold:
            consumer.pause(*placed)
        elif self._held:
            consumer.resume(*placed)
        self._held = hold
        if hold:
            self._standing.held_up()

    def _take(self, consumer: KafkaConsumer, fetched: Mapping[TopicPartition, list[Any]]) -> None:
        now = time.monotonic()
        if not fetched and now < self._sweep_at:
            return
        standing = positions(consumer)
        moved = {key_of(one) for one in fetched} & standing.keys()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            moved |= self._holdings.moved(standing)
        assigned = consumer.assignment()
        for partition in moved:
            one = native(partition)
            if one in assigned:
                self._holdings.add(
                    partition,
                    [raw_record(record) for record in fetched.get(one, ())],
                    position=standing[partition],
                    log_end=consumer.highwater(one),
                    now=now,
                )
                beyond = self._holdings.beyond(partition, standing[partition])
                if beyond > standing[partition]:
                    consumer.seek(one, beyond)

    def _bridge(self, consumer: KafkaConsumer, out_of_range: Mapping[TopicPartition, int]) -> None:
        """The stored offset is not in the log: go on behind a gap, or stop loudly."""
        wanted = {key_of(one): offset for one, offset in out_of_range.items()}
        earliest = look_up(consumer.beginning_offsets, wanted, OFFSETS_MS)
        latest = look_up(consumer.end_offsets, wanted, OFFSETS_MS)
        for partition, offset in wanted.items():
            if offset > latest[partition]:
                raise truncated({partition: (offset, latest[partition])})
            lost = self._holdings.lost_below(partition, offset, earliest[partition])
            consumer.seek(native(partition), max(offset, earliest[partition]))
            self._holdings.add(
                partition,
                (),
                position=earliest[partition],
                log_end=latest[partition],
                now=time.monotonic(),
            )
            if lost:
                METRICS.offset_gaps.labels(topic=partition[0]).inc(lost)
                log.error(
                    "kafka.records_lost",
                    partition=names_of([partition]),
                    offsets=lost,
                    first=offset,
                    end=earliest[partition],
                    reason="retention removed them before they were read",
                )

    def _commit(self, consumer: KafkaConsumer, *, wait: bool = False) -> None:
        offsets = ours(self._holdings.take_commits())
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
