"""A source at work on a topic, with a store that remembers what it is asked."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

from kafka import KafkaProducer

from monitor.errors import StaleChunk
from monitor.ingest.kafka import KafkaSource
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.prompts import Chunk, OffsetSpan
from monitor.values.reading import Partition, ReadingPoint

SOON = 20.0


class Offsets:
    """Stands in for the store: offsets advanced by compare-and-swap, and what was stored."""

    def __init__(self, begun: Mapping[Partition, int] | None = None) -> None:
        self.lock = threading.Lock()
        self.next: dict[Partition, int] = dict(begun or {})
        self.ids: dict[str, UUID] = {}
        self.values: dict[Partition, list[int]] = defaultdict(list)

    def topics(self, names: Collection[str]) -> Mapping[str, UUID | None]:
        with self.lock:
            return {topic: self.ids.get(topic) for topic, _ in self.next if topic in names}

    def know_topic(self, topic: str, topic_id: UUID) -> None:
        with self.lock:
            self.ids[topic] = topic_id

    def begin_topic(self, topic: str, topic_id: UUID | None, starts: Mapping[int, int]) -> None:
        if topic_id:
            self.know_topic(topic, topic_id)
        self.begin_partitions({(topic, number): at for number, at in starts.items()})

    def begin_partitions(self, starts: Mapping[Partition, int]) -> None:
        with self.lock:
            self.next = {**starts, **self.next}

    def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
        with self.lock:
            return {
                key: ReadingPoint(next_offset=self.next[key])
                for key in partitions
                if key in self.next
            }

    def store(self, chunk: Chunk) -> None:
        with self.lock:
            for span in chunk.spans:
                if self.next.get((span.topic, span.partition), span.start) != span.start:
                    raise StaleChunk(f"{span} does not follow")
            for span in chunk.spans:
                self.next[span.topic, span.partition] = span.end
            for record in chunk.records:
                assert record.value is not None
                self.values[record.topic, record.partition].append(int(record.value))

    @property
    def count(self) -> int:
        with self.lock:
            return sum(map(len, self.values.values()))


def settings(bootstrap: str, topic: str, **changed: object) -> KafkaSettings:
    defaults: dict[str, object] = {
        "bootstrap_servers": bootstrap,
        "topics": (topic,),
        "group_id": f"group-{topic}",
        "heartbeat_interval_ms": 200,
        "session_timeout_ms": 6_000,
    }
    return KafkaSettings(**(defaults | changed))


def ingest(**changed: object) -> IngestSettings:
    defaults: dict[str, object] = {"chunk_records": 50, "chunk_wait": timedelta(seconds=0.2)}
    return IngestSettings(**(defaults | changed))


def produce(bootstrap: str, topic: str, numbers: range, *, partitions: int = 1) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in numbers:
        producer.send(topic, value=str(number).encode(), partition=number % partitions)
    producer.flush(30)
    producer.close()


def drain(source: KafkaSource, until: Callable[[list[Chunk]], bool]) -> list[Chunk]:
    chunks: list[Chunk] = []
    deadline = time.monotonic() + SOON
    while not until(chunks):
        assert time.monotonic() < deadline, f"{len(chunks)} chunks so far; {source.problem!r}"
        chunk = source.poll(0.2)
        if chunk:
            chunks.append(chunk)
    return chunks


def holding(count: int) -> Callable[[list[Chunk]], bool]:
    return lambda chunks: sum(len(chunk.records) for chunk in chunks) >= count


def wait_for(condition: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_until_settled(condition: Callable[[], bool], what: str, seconds: float = 1.0) -> None:
    """Until it holds and goes on to hold: a rebalance that is not over yet would change it."""
    deadline = time.monotonic() + SOON
    since = time.monotonic()
    while time.monotonic() < since + seconds:
        assert time.monotonic() < deadline, what
        if not condition():
            since = time.monotonic()
        time.sleep(0.02)


def spans_of(chunks: list[Chunk]) -> dict[Partition, list[OffsetSpan]]:
    spans: dict[Partition, list[OffsetSpan]] = defaultdict(list)
    for chunk in chunks:
        for span in chunk.spans:
            spans[span.topic, span.partition].append(span)
    return spans


def assert_contiguous(chunks: list[Chunk]) -> None:
    for spans in spans_of(chunks).values():
        for before, after in pairwise(spans):
            assert before.end == after.start
