"""What one connection of the source does: poll, place partitions, hold them, watch them, commit.

Where to read from is decided by the store alone: a partition that is assigned to us waits, paused, until
the store has answered. While the queue is full the partitions are paused, and polling goes on for the
membership. Kafka's own commits follow the store, for lag tools.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from monitor.errors import Retry
from monitor.ingest.kafka.committed import ours, set_by_others, told
from monitor.ingest.kafka.ends import Ends, EndsAsked
from monitor.ingest.kafka.group import Joining, Listener, finish_join, is_stable, poll_ms
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
from monitor.ingest.kafka.placing import (
    OFFSETS_MS,
    ReadingPoints,
    reading_points,
    require_same_topics,
)
from monitor.ingest.kafka.standing import Standing
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import KafkaSettings
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
PLACE_SECONDS: Final = 1.0
"""Rest before the store is asked again where to read from."""
COMMIT_SECONDS: Final = 1.0
"""How long the last commit may take; the store holds the truth."""
SAID_SECONDS: Final = 3_600.0
"""How long what is said once stays on the page."""


class Stalled(Exception):
    """A partition stands still for no reason: a new consumer is tried."""


class Member:
    """The member of the group that `KafkaSource` is, on its thread; the same over all connections.

    ``say`` is told what keeps it from reading, and an empty text when nothing does any more.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        points: ReadingPoints,
        holdings: Holdings,
        stop: threading.Event,
        say: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._points = points
        self._holdings = holdings
        self._stop = stop
        self._say = say
        self._ends = EndsAsked(clock)
        self._standing = Standing()
        self._joining = Joining(settings)
        self._waiting = ""
        self._topics: dict[str, UUID | None] = {}
        self._said, self._said_until = "", 0.0
        self._held = False
        self._sweep_at = 0.0
        self._show_at = 0.0
        self._place_at = 0.0

    def remarks(self) -> tuple[str, ...]:
        """What was said lately of offsets and of partitions that stand still; from any thread."""
        said = (self._said,) if self._said and time.monotonic() < self._said_until else ()
        return (*said, *self._standing.said())

    def read(self, consumer: KafkaConsumer) -> None:
        """Read until ``stop`` is set. Raises what the client library does, `Stalled`, and `StopLoudly`."""
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
            self._place_at = now + PLACE_SECONDS
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
            self._place_at = now + PLACE_SECONDS  # another member is just beginning the topic
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
        stable = is_stable(consumer)
        waiting = self._joining.look(stable, now)
        if waiting or self._waiting:
            self._say(waiting)
        self._waiting = waiting
        if stable:
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
            consumer.commit(offsets, timeout_ms=1_000 * COMMIT_SECONDS)
        except KafkaError as error:
            _report_commit(offsets, error)


def _report_commit(_: Mapping[TopicPartition, OffsetAndMetadata], outcome: object) -> None:
    # A commit that meets a rebalance fails; the store holds the truth.
    if isinstance(outcome, Exception):
        log.info("kafka.commit_failed", error=type(outcome).__name__)
