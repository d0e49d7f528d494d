"""Reading points in memory, for tests that are about brokers and not about the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

from monitor.values.reading import Partition, ReadingPoint


class Kept:
    """`monitor.ingest.kafka.placing.ReadingPoints` of one process; ``begun`` is there from the start."""

    def __init__(self, begun: Mapping[Partition, int] | None = None) -> None:
        self._next: dict[Partition, int] = dict(begun or {})
        self._ids: dict[str, UUID] = {}

    def topics(self, names: Collection[str]) -> Mapping[str, UUID | None]:
        return {topic: self._ids.get(topic) for topic, _ in self._next if topic in names}

    def know_topic(self, topic: str, topic_id: UUID) -> None:
        self._ids[topic] = topic_id

    def begin_topic(self, topic: str, topic_id: UUID | None, starts: Mapping[int, int]) -> None:
        if topic_id:
            self.know_topic(topic, topic_id)
        self.begin_partitions({(topic, number): at for number, at in starts.items()})

    def begin_partitions(self, starts: Mapping[Partition, int]) -> None:
        self._next = {**starts, **self._next}

    def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
        return {
            one: ReadingPoint(next_offset=self._next[one])
            for one in partitions
            if one in self._next
        }
