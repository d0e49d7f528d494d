"""The store's side of reading: what the source asks and tells, each in a transaction of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from uuid import UUID

from sqlalchemy import Engine

from monitor.store import reading
from monitor.store.database import transaction
from monitor.values.reading import Partition, ReadingPoint


class StoredPoints:
    """The reading points of one group (see `monitor.ingest.kafka.ReadingPoints`).

    Every method may raise `Retry`.
    """

    def __init__(self, database: Engine, *, group_id: str, worker_id: str) -> None:
        self._database = database
        self._group_id = group_id
        self._worker_id = worker_id

    def topics(self, names: Collection[str]) -> Mapping[str, UUID | None]:
        with transaction(self._database) as c:
            return reading.topics_begun(c, self._group_id, names)

    def know_topic(self, topic: str, topic_id: UUID) -> None:
        with transaction(self._database) as c:
            reading.know_topic(c, self._group_id, topic, topic_id)

    def begin_topic(self, topic: str, topic_id: UUID | None, starts: Mapping[int, int]) -> None:
        with transaction(self._database) as c:
            reading.begin_topic(c, self._group_id, self._worker_id, topic, topic_id, starts)

    def begin_partitions(self, starts: Mapping[Partition, int]) -> None:
        with transaction(self._database) as c:
            reading.begin_partitions(c, self._group_id, self._worker_id, starts)

    def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
        with transaction(self._database) as c:
            return reading.reading_points(c, self._group_id, partitions)
