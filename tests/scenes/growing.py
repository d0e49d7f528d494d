"""Workers that read topics which grow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kafka import KafkaProducer
from sqlalchemy import Engine

from monitor.settings import Settings
from tests.worker.working import number, prompts, settings_for, working


def reading(bootstrap: str, *topics: str, start_at: str = "latest") -> Settings:
    settings = settings_for(bootstrap, topics[0])
    kafka = settings.kafka.model_copy(
        update={
            "topics": topics,
            "start_at": start_at,
            "client_options": {"metadata_max_age_ms": 500},
        }
    )
    return settings.model_copy(update={"kafka": kafka})


@contextmanager
def at_work(database: Engine, settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    with working(database, settings) as worker:
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()


def begun(database: Engine, partitions: int) -> Callable[[], bool]:
    query = "SELECT count(*) FROM monitor_data.offsets"
    return lambda: number(database, query) == partitions


def send_to(bootstrap: str, topic: str, partitions: range, count: int) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for index, value in enumerate(prompts(count)):
        producer.send(topic, value, partition=partitions[index % len(partitions)])
    producer.flush(30)
    producer.close()
