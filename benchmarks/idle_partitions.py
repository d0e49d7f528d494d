"""What a source costs that reads many partitions on which nothing comes.

``python -m benchmarks.idle_partitions BOOTSTRAP [PARTITIONS] [SECONDS]`` makes a topic, reads it, and prints the share of
a core that the whole process takes, after it has settled.
"""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Collection, Mapping
from uuid import UUID

from monitor.demo.services import create_topic
from monitor.ingest.kafka import KafkaSource
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.reading import Partition, ReadingPoint

SETTLE_SECONDS = 8.0


class Points:
    """Reading points in memory."""

    def __init__(self) -> None:
        self._next: dict[Partition, int] = {}

    def topics(self, names: Collection[str]) -> Mapping[str, UUID | None]:
        return {topic: None for topic, _ in self._next if topic in names}

    def know_topic(self, topic: str, topic_id: UUID) -> None:
        pass

    def begin_topic(self, topic: str, topic_id: UUID | None, starts: Mapping[int, int]) -> None:
        self.begin_partitions({(topic, number): at for number, at in starts.items()})

    def begin_partitions(self, starts: Mapping[Partition, int]) -> None:
        self._next = {**starts, **self._next}

    def points(self, partitions: Collection[Partition]) -> Mapping[Partition, ReadingPoint]:
        return {
            one: ReadingPoint(next_offset=self._next[one])
            for one in partitions
            if one in self._next
        }


def main() -> None:
    bootstrap = sys.argv[1]
    partitions = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 30.0
    logging.disable(logging.CRITICAL)
    topic = f"idle-{secrets.token_hex(4)}"
    create_topic(bootstrap, topic, partitions=partitions)
    settings = KafkaSettings(bootstrap_servers=bootstrap, topics=(topic,), group_id=topic)
    with KafkaSource(settings, IngestSettings(), Points()) as source:
        while len(source.log_ends()) < partitions:
            source.poll(0.5)
        time.sleep(SETTLE_SECONDS)
        started, spent = time.monotonic(), time.process_time()
        while time.monotonic() - started < seconds:
            source.poll(0.5)
        share = (time.process_time() - spent) / (time.monotonic() - started)
    print(f"{partitions} idle partitions: {share:.2%} of a core")


if __name__ == "__main__":
    main()
