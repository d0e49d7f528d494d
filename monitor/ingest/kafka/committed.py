"""Kafka's own committed offsets: ours follow the store, and what somebody else put there moves nothing.

Each commit of ours carries a mark in its metadata. So one without it, at another place than the store's, was
made by another: by Kafka's own tool, or by a member that is none of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from monitor.ingest.kafka.natives import key_of, native
from monitor.logs import get_logger
from monitor.values.reading import Partition, ReadingPoint

log = get_logger(__name__)

MARK: Final = "persona-monitor"
TIMEOUT_MS: Final = 3_000
NAMED: Final = 5


def ours(offsets: Mapping[Partition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    """``offsets`` as we commit them."""
    return {native(one): OffsetAndMetadata(offset, MARK, -1) for one, offset in offsets.items()}


def committed(consumer: KafkaConsumer, partitions: list[Partition]) -> dict[Partition, int]:
    """What is committed of them for the group, by whomever."""
    return {one: found.offset for one, found in _fetched(consumer, partitions).items()}


def set_by_others(
    consumer: KafkaConsumer, points: Mapping[Partition, ReadingPoint]
) -> dict[Partition, int]:
    """Where somebody else set the group's committed offsets, if not to where the store reads on anyhow.

    Empty when the broker does not tell.
    """
    try:
        found = _fetched(consumer, list(points))
    except KafkaError as error:
        log.info("kafka.committed_offsets_not_told", error=str(error) or type(error).__name__)
        return {}
    return {
        one: known.offset
        for one, known in found.items()
        if known.metadata != MARK and known.offset != points[one].next_offset
    }


def told(others: Mapping[Partition, int], points: Mapping[Partition, ReadingPoint]) -> str:
    """One sentence on what was set, and what does move the reading point."""
    ordered = sorted(others.items())
    named = ", ".join(
        f"{topic}/{number} to {offset} (read on from {points[topic, number].next_offset})"
        for (topic, number), offset in ordered[:NAMED]
    )
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    topics = " ".join(f"--topic {topic}" for topic in sorted({topic for topic, _ in others}))
    return (
        f"Kafka: the group's committed offsets were set from outside, {named}{more}. They move nothing: "
        f"Postgres says where reading goes on. `monitor offsets move {topics} --to …` moves it."
    )


def _fetched(
    consumer: KafkaConsumer, partitions: list[Partition]
) -> dict[Partition, OffsetAndMetadata]:
    wanted = [native(one) for one in partitions]
    found = consumer._coordinator.fetch_committed_offsets(wanted, timeout_ms=TIMEOUT_MS)
    return {key_of(one): offset for one, offset in found.items() if offset.offset >= 0}
