"""Where partitions are read from: the store decides, and is told of what it does not know yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal, Protocol
from uuid import UUID

from kafka import KafkaConsumer

from monitor.ingest.kafka.natives import look_up, made_anew, names_of, topic_id
from monitor.logs import get_logger
from monitor.values.reading import Partition, ReadingPoint

log = get_logger(__name__)

OFFSETS_MS: Final = 10_000


class ReadingPoints(Protocol):
    """What the store keeps of a group's reading. Every method may raise `Retry`."""

    def topics(self, names: Collection[str]) -> Mapping[str, UUID | None]:
        """Those that the group has begun to read, with their ids; None where no id is known."""

    def know_topic(self, topic: str, topic_id: UUID) -> None:
        """Keep the id of a topic that was begun without one."""

    def begin_topic(self, topic: str, topic_id: UUID | None, starts: Mapping[int, int]) -> None:
        """Begin a topic, all partitions at once; nothing when it has been begun."""

    def begin_partitions(self, starts: Mapping[Partition, int]) -> None:
        """Begin partitions; nothing for those that have been begun."""

    def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
        """Where reading goes on, of the partitions that have been begun."""


def reading_points(
    consumer: KafkaConsumer,
    store: ReadingPoints,
    partitions: Collection[Partition],
    start_at: Literal["earliest", "latest"],
) -> Mapping[Partition, ReadingPoint]:
    """Where to read ``partitions`` from; what the store did not know is begun there first.

    A topic begins at ``start_at``, with all the partitions that it has now, whoever they belong to. A
    partition that comes later begins at its beginning: its records were sent while the group read the
    topic. One may be missing in the answer while another worker begins its topic; ask again.

    Raises `BrokerUnavailable`, `Retry` and the client library's `KafkaError`; `StopLoudly` when a topic is
    not the one that the group began to read.
    """
    begun = store.topics({topic for topic, _ in partitions})
    require_same_topics(consumer, begun)
    for topic, kept in begun.items():
        told = topic_id(consumer, topic)
        if kept is None and told is not None:
            store.know_topic(topic, told)
    known = store.points(partitions)
    unknown = set(partitions) - known.keys()
    if not unknown:
        return known
    topics = {topic for topic, _ in unknown}
    for topic in sorted(topics - begun.keys()):
        numbers = {number for of, number in unknown if of == topic}
        _begin(consumer, store, topic, numbers, start_at)
    added = {partition for partition in unknown if partition[0] in begun}
    if added:
        store.begin_partitions(look_up(consumer.beginning_offsets, added, OFFSETS_MS))
        log.info("kafka.partitions_added", partitions=names_of(added), read_from="their beginning")
    return store.points(partitions)


def require_same_topics(consumer: KafkaConsumer, begun: Mapping[str, UUID | None]) -> None:
    """Raises `StopLoudly` when one of the topics has another id than the one it was begun with."""
    now = {topic: topic_id(consumer, topic) for topic in begun}
    changed = {
        topic: (kept, told)
        for topic, kept in begun.items()
        if kept is not None and (told := now[topic]) is not None and told != kept
    }
    if changed:
        raise made_anew(changed)


def _begin(
    consumer: KafkaConsumer,
    store: ReadingPoints,
    topic: str,
    numbers: Collection[int],
    start_at: Literal["earliest", "latest"],
) -> None:
    every = {(topic, number) for number in {*numbers, *consumer.partitions_for_topic(topic)}}
    ask = consumer.beginning_offsets if start_at == "earliest" else consumer.end_offsets
    starts = look_up(ask, every, OFFSETS_MS)
    store.begin_topic(
        topic, topic_id(consumer, topic), {number: at for (_, number), at in starts.items()}
    )
    log.info("kafka.topic_begun", topic=topic, partitions=len(starts), start_at=start_at)
