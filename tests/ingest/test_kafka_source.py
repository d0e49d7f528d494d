"""The consumer against a real broker: order, contiguity, rebalances, restarts.

The broker of the wheel (noida-db 0.2) differs from Apache Kafka in what it persists (about once a
second) and in that it neither compacts nor expires records; gaps are made by deleting records.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.consumer import ConsumerCoordinator

from monitor.demo.services import Broker, create_topic, free_port
from monitor.errors import ConfigurationError, DatabaseUnavailable, StaleChunk, StopLoudly
from monitor.ingest.kafka import KafkaSource, group
from monitor.settings import KafkaSettings
from monitor.values.reading import Partition, ReadingPoint
from tests.kafka.apache import USERS, Cluster
from tests.scenes.kafka_source import (
    SOON,
    Offsets,
    assert_contiguous,
    drain,
    holding,
    ingest,
    produce,
    settings,
    spans_of,
    wait_for,
    wait_until_settled,
)

pytestmark = pytest.mark.slow


def test_three_partitions_in_order_with_contiguous_spans(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=3)
    produce(kafka_bootstrap, topic, range(600), partitions=3)
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), Offsets()) as source:
        chunks = drain(source, holding(600))
        assert source.assigned() == {(topic, 0), (topic, 1), (topic, 2)}
    assert_contiguous(chunks)
    assert all(len(chunk.records) <= 50 for chunk in chunks)
    read: dict[int, list[int]] = defaultdict(list)
    for chunk in chunks:
        covered = {(span.topic, span.partition): span for span in chunk.spans}
        for record in chunk.records:
            span = covered[record.topic, record.partition]
            assert span.start <= record.offset < span.end
            assert record.value is not None
            read[record.partition].append(int(record.value))
    assert read == {number: list(range(number, 600, 3)) for number in range(3)}
    for (_, _), spans in spans_of(chunks).items():
        assert (spans[0].start, spans[-1].end, spans[-1].log_end) == (0, 200, 200)


def test_reading_begins_where_the_store_says_not_where_kafka_says(
    kafka_bootstrap: str, topic: str
) -> None:
    produce(kafka_bootstrap, topic, range(100))
    offsets = Offsets()
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        for chunk in drain(source, holding(100)):
            source.commit(chunk.spans)
        wait_for(lambda: committed(kafka_bootstrap, topic) == 100, "the commit reaches Kafka")
    offsets.next = {(topic, 0): 37}
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        again = drain(source, holding(63))
    assert [int(r.value or b"") for chunk in again for r in chunk.records] == list(range(37, 100))


def committed(bootstrap: str, topic: str) -> int | None:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=f"group-{topic}")
    try:
        return consumer.committed(TopicPartition(topic, 0))
    finally:
        consumer.close(autocommit=False)


def test_start_at_latest_is_told_to_the_store_before_any_record(
    kafka_bootstrap: str, topic: str
) -> None:
    produce(kafka_bootstrap, topic, range(10))
    asked, offsets = settings(kafka_bootstrap, topic, start_at="latest"), Offsets()
    with KafkaSource(asked, ingest(), offsets) as source:
        wait_for(lambda: offsets.next == {(topic, 0): 10}, "the store is told")
        produce(kafka_bootstrap, topic, range(10, 15))
        later = drain(source, holding(5))
    assert [record.offset for chunk in later for record in chunk.records] == [10, 11, 12, 13, 14]


def test_the_queue_is_bounded_and_everything_arrives_late(kafka_bootstrap: str, topic: str) -> None:
    produce(kafka_bootstrap, topic, range(1_000))
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), Offsets()) as source:
        drain(source, lambda chunks: len(chunks) == 1)
        time.sleep(1.0)
        assert len(source._holdings._chunks) == 2
        assert source._holdings._readings.records <= 50
        rest = drain(source, holding(950))
    assert [r.offset for chunk in rest for r in chunk.records] == list(range(50, 1_000))


@pytest.mark.slow
def test_a_chunk_may_outlast_the_poll_interval(kafka_bootstrap: str, topic: str) -> None:
    produce(kafka_bootstrap, topic, range(500))
    asked = settings(kafka_bootstrap, topic, max_poll_interval_ms=2_000)
    with KafkaSource(asked, ingest(), Offsets()) as source:
        (first,) = drain(source, lambda chunks: len(chunks) == 1)
        time.sleep(5.0)
        assert not source.is_revoked(first.spans[0])
        rest = drain(source, holding(450))
        assert not source.is_revoked(first.spans[0])
    assert_contiguous([first, *rest])


def test_rewind_reads_again_and_revokes_what_was_handed_out(
    kafka_bootstrap: str, topic: str
) -> None:
    produce(kafka_bootstrap, topic, range(200))
    offsets = Offsets()
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        first, second = drain(source, lambda chunks: len(chunks) == 2)
        offsets.store(first)
        wait_for(
            lambda: len(source._holdings._chunks) == 2, "more is read ahead, and must be dropped"
        )
        source.rewind()
        assert source.is_revoked(first.spans[0])
        assert source.is_revoked(second.spans[0])
        again = drain(source, holding(150))
        assert not source.is_revoked(again[0].spans[0])
    assert again[0].spans[0].start == 50
    assert [r.offset for chunk in again for r in chunk.records] == list(range(50, 200))


def test_a_store_that_is_away_is_waited_for(kafka_bootstrap: str, topic: str) -> None:
    produce(kafka_bootstrap, topic, range(10))

    class Away(Offsets):
        attempts = 0

        def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
            self.attempts += 1
            if self.attempts <= 2:
                raise DatabaseUnavailable("starting up")
            return super().points(partitions)

    offsets = Away({(topic, 0): 4})
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        wait_for(lambda: "starting up" in source.problem, "the problem is told")
        (chunk,) = drain(source, holding(6))
        assert source.problem == ""
    assert chunk.spans[0].start == 4


def test_lag_counts_what_is_not_committed(kafka_bootstrap: str, topic: str) -> None:
    produce(kafka_bootstrap, topic, range(60))
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), Offsets()) as source:
        chunks = drain(source, holding(60))
        assert source.lag() == {(topic, 0): 60}
        source.commit(chunks[0].spans)
        assert source.lag() == {(topic, 0): 60 - len(chunks[0].records)}


# --- rebalances ------------------------------------------------------------------------------------


def test_a_group_that_lets_nobody_in_is_named(
    kafka_bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that does not poll holds a join up for as long as it said that it may be busy."""
    monkeypatch.setattr(group, "JOIN_SECONDS", 1.0)
    busy = KafkaConsumer(topic, bootstrap_servers=kafka_bootstrap, group_id=f"group-{topic}")
    wait_for(lambda: busy.poll(100) is not None and bool(busy.assignment()), "it has joined")
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), Offsets()) as source:
        named = f"the group group-{topic} has not let this worker in"
        wait_for(lambda: named in source.problem, "it is told")
        assert any(named in said for said in source.remarks())
        wait_for(lambda: busy.poll(100) is not None and not source.problem, "both are let in")
    busy.close()


@contextmanager
def member(asked: KafkaSettings, offsets: Offsets, seconds: float = 0.0) -> Iterator[KafkaSource]:
    """A worker in a thread of its own: poll, take its time, store, commit."""
    stop = threading.Event()
    with KafkaSource(asked, ingest(chunk_records=20), offsets) as source:

        def work() -> None:
            while not stop.is_set():
                chunk = source.poll(0.1)
                if chunk is None:
                    continue
                time.sleep(seconds)
                try:
                    offsets.store(chunk)
                except StaleChunk:
                    source.rewind()
                else:
                    source.commit(chunk.spans)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield source
        finally:
            stop.set()
            thread.join()


def test_a_member_that_closes_slowly_leaves_the_group(
    kafka_bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that waits for the group may take a second; a line cut after that leaves the member behind."""
    leave = ConsumerCoordinator.maybe_leave_group_async

    async def late(self: ConsumerCoordinator, *arguments: object) -> None:
        await self._manager._net.sleep(1.2)
        await leave(self, *arguments)

    monkeypatch.setattr(ConsumerCoordinator, "maybe_leave_group_async", late)
    asked = settings(kafka_bootstrap, topic)
    with KafkaSource(asked, ingest(), Offsets()) as source:
        wait_for(source.assigned, "it has joined")
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    try:
        assert admin.describe_groups([asked.group_id])[asked.group_id]["members"] == []
    finally:
        admin.close()


def test_two_then_three_then_one_members_lose_nothing_and_repeat_nothing(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    """One change at a time: when a member leaves in the middle of a rebalance, noida-db 0.2 leaves
    the others' JoinGroup without an answer until ``max_poll_interval_ms``; Apache Kafka answers.
    """
    topic = make_topic(partitions=6)
    asked, offsets = settings(kafka_bootstrap, topic), Offsets()
    produced = 0

    def produce_more() -> None:
        nonlocal produced
        produce(kafka_bootstrap, topic, range(produced, produced + 600), partitions=6)
        produced += 600

    def owners(*sources: KafkaSource) -> list[int]:
        return sorted(len(source.assigned()) for source in sources)

    with member(asked, offsets, 0.01) as first:
        with member(asked, offsets, 0.01) as second:
            produce_more()
            wait_until_settled(lambda: owners(first, second) == [3, 3], "two members share")
            with member(asked, offsets, 0.01) as third:
                produce_more()
                wait_until_settled(
                    lambda: owners(first, second, third) == [2, 2, 2], "three members share"
                )
                produce_more()
            wait_until_settled(lambda: owners(first, second) == [3, 3], "two members share again")
        produce_more()
        wait_for(lambda: owners(first) == [6], "one member has all")
        wait_for(lambda: offsets.count >= produced, "everything is stored")
    stored = {number: offsets.values[topic, number] for number in range(6)}
    assert stored == {number: list(range(number, produced, 6)) for number in range(6)}


def test_a_partition_that_moved_revokes_its_spans_and_no_others(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    produce(kafka_bootstrap, topic, range(400), partitions=2)
    asked, offsets = settings(kafka_bootstrap, topic), Offsets()
    with KafkaSource(asked, ingest(), offsets) as stays:
        handed = drain(stays, lambda chunks: len(spans_of(chunks)) == 2)
        with KafkaSource(asked, ingest(), offsets) as comes:
            wait_for(
                lambda: len(comes.assigned()) == len(stays.assigned()) == 1, "the two members share"
            )
            moved = comes.assigned()
            for key, spans in spans_of(handed).items():
                assert all(stays.is_revoked(span) == (key in moved) for span in spans)
            # What was buffered of the moved partition is gone, the other one goes on.
            produce(kafka_bootstrap, topic, range(400, 800), partitions=2)
            kept = {(topic, 0), (topic, 1)} - moved
            rest = drain(stays, lambda chunks: any(s.end == 400 for c in chunks for s in c.spans))
            assert spans_of(rest).keys() == kept
            assert_contiguous([*handed, *rest])


@pytest.mark.slow
def test_a_member_that_is_evicted_reads_again_from_the_store(
    kafka_bootstrap: str, topic: str
) -> None:
    """The thread hangs in the store for longer than the poll interval; membership is lost."""
    produce(kafka_bootstrap, topic, range(100))
    hang = threading.Event()

    class Slow(Offsets):
        def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
            if hang.is_set():
                hang.clear()
                time.sleep(4.0)
            return super().points(partitions)

    offsets = Slow()
    asked = settings(kafka_bootstrap, topic, max_poll_interval_ms=1_500)
    with KafkaSource(asked, ingest(), offsets) as source:
        (first,) = drain(source, lambda chunks: len(chunks) == 1)
        offsets.store(first)
        hang.set()
        source.rewind()
        rest = drain(source, holding(50))
    assert [r.offset for chunk in rest for r in chunk.records] == list(range(50, 100))


# --- when the broker is away, or says no -----------------------------------------------------------


@pytest.mark.slow
def test_a_broker_restart_in_mid_stream_loses_and_repeats_nothing(
    restartable_broker: Broker,
) -> None:
    bootstrap, topic, offsets = restartable_broker.bootstrap, "stream", Offsets()
    restartable_broker.create_topic(topic, partitions=3)
    produce(bootstrap, topic, range(300), partitions=3)
    with member(settings(bootstrap, topic), offsets, 0.05):
        wait_for(lambda: offsets.count > 50, "reading has begun")
        restartable_broker.stop()
        time.sleep(1.0)
        restartable_broker.start()
        produce(bootstrap, topic, range(300, 600), partitions=3)
        wait_for(lambda: offsets.count >= 600, "everything is stored", 60.0)
    stored = {number: offsets.values[topic, number] for number in range(3)}
    assert stored == {number: list(range(number, 600, 3)) for number in range(3)}


@pytest.mark.slow
def test_a_broker_that_comes_later_is_waited_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    broker = Broker(tmp_path_factory.mktemp("late"), port=free_port())
    with KafkaSource(settings(broker.bootstrap, "late"), ingest(), Offsets()) as source:
        assert source.poll(1.5) is None
        assert "no Kafka broker answers" in source.problem
        with broker:
            create_topic(broker.bootstrap, "late")
            produce(broker.bootstrap, "late", range(5))
            drain(source, holding(5))
            assert source.problem == ""


@pytest.mark.slow
def test_an_unknown_topic_is_named(kafka_bootstrap: str) -> None:
    asked = settings(kafka_bootstrap, "no-such-topic")
    with (
        KafkaSource(asked, ingest(), Offsets()) as source,
        pytest.raises(ConfigurationError, match=r"no-such-topic not found"),
    ):
        source.poll(SOON)


def test_a_password_is_shown_and_another_mechanism_is_refused(
    restartable_broker: Broker | Cluster, tmp_path: Path
) -> None:
    """The broker of the wheel takes PLAIN with any password, at any listener, and no other mechanism."""
    restartable_broker.create_topic("shown")
    produce(restartable_broker.bootstrap, "shown", range(5))
    address = restartable_broker.bootstrap
    if isinstance(restartable_broker, Cluster):
        address = restartable_broker.addresses("SASL_PLAINTEXT")
        restartable_broker.allow("User:monitor", "Read", on=("--topic", "shown", "--group", "*"))
    protocol = {"security_protocol": "SASL_PLAINTEXT"}
    plain = settings(
        address,
        "shown",
        sasl_mechanism="PLAIN",
        sasl_username="monitor",
        sasl_password=USERS["monitor"],
        **protocol,
    )
    with KafkaSource(plain, ingest(), Offsets()) as source:
        drain(source, holding(5))
    token = tmp_path / "token"
    token.write_text("a.b.c", encoding="utf-8")
    other = settings(
        address, "shown", sasl_mechanism="OAUTHBEARER", oauth_token_file=token, **protocol
    )
    with (
        KafkaSource(other, ingest(), Offsets()) as source,
        pytest.raises(ConfigurationError, match="UnsupportedSaslMechanismError") as refused,
    ):
        source.poll(SOON)
    assert "kafka.sasl_mechanism (OAUTHBEARER)" in refused.value.hint


def test_an_error_of_the_store_that_does_not_pass_reaches_the_worker(
    kafka_bootstrap: str, topic: str
) -> None:
    class Broken(Offsets):
        def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
            raise ZeroDivisionError("a bug")

    with (
        KafkaSource(settings(kafka_bootstrap, topic), ingest(), Broken()) as source,
        pytest.raises(ZeroDivisionError),
    ):
        source.poll(SOON)


def test_records_removed_by_retention_are_counted_and_covered_by_a_span(
    kafka_bootstrap: str, topic: str
) -> None:
    produce(kafka_bootstrap, topic, range(100))
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.delete_records({TopicPartition(topic, 0): 60})
    admin.close()
    offsets = Offsets()
    offsets.next = {(topic, 0): 10}
    with KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source:
        chunks = drain(source, holding(40))
        assert source.gaps == {(topic, 0): 50}
    assert chunks[0].spans[0].start == 10
    assert_contiguous(chunks)
    assert [r.offset for chunk in chunks for r in chunk.records] == list(range(60, 100))


def test_a_stored_offset_beyond_the_log_stops_loudly(kafka_bootstrap: str, topic: str) -> None:
    produce(kafka_bootstrap, topic, range(10))
    offsets = Offsets()
    offsets.next = {(topic, 0): 1_000}
    with (
        KafkaSource(settings(kafka_bootstrap, topic), ingest(), offsets) as source,
        pytest.raises(StopLoudly, match="ends before the stored offset"),
    ):
        source.poll(SOON)


def test_a_large_record_comes_through_whole(kafka_bootstrap: str, topic: str) -> None:
    """Records above every fetch limit still arrive: the parser decides what is oversize."""
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    producer.send(topic, value=b"x" * 900_000, headers=[("kind", b"large")])
    producer.flush(30)
    producer.close()
    asked = settings(kafka_bootstrap, topic, max_partition_fetch_bytes=1_024)
    with KafkaSource(asked, ingest(), Offsets()) as source:
        (chunk,) = drain(source, holding(1))
    assert len(chunk.records[0].value or b"") == 900_000
    assert chunk.records[0].headers == (("kind", b"large"),)
