"""A worker on a real broker and a real Postgres, with a replay that has no model and may be held up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from kafka import KafkaProducer
from sqlalchemy import Engine, text

from benchmarks.null_replay import NullReplay, null_pack
from monitor.canaries import Replay
from monitor.ingest.kafka import DeadLetterTopic, KafkaSource
from monitor.reading_points import StoredPoints
from monitor.score.pack import Pack, manifest
from monitor.settings import IngestSettings, KafkaSettings, Settings
from monitor.store.database import transaction
from monitor.store.packs import register_pack
from monitor.worker import Worker

FEATURES = 4


def settings_for(bootstrap: str, topic: str, **ingest: object) -> Settings:
    return Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap, topics=(topic,), group_id=topic, dead_letter_topic=None
        ),
        ingest=IngestSettings(**{"chunk_records": 50, "chunk_wait": 0.2, **ingest}),
    )


@contextmanager
def working(
    database: Engine,
    settings: Settings,
    replay: Replay | None = None,
    *,
    pack: Pack | None = None,
    worker_id: str = "test",
    letters_to: DeadLetterTopic | None = None,
) -> Iterator[Worker]:
    pack = pack or null_pack(FEATURES)
    with transaction(database) as c:
        register_pack(c, pack.pack_id, pack.name, manifest(pack), pack.features)

    with ExitStack() as parts:
        points = StoredPoints(database, group_id=settings.kafka.group_id, worker_id=worker_id)
        source = parts.enter_context(KafkaSource(settings.kafka, settings.ingest, points))
        sink = letters_to
        if settings.kafka.dead_letter_topic:
            sink = parts.enter_context(DeadLetterTopic(settings.kafka))
        yield Worker(
            source=source,
            replay=replay or NullReplay(FEATURES),
            pack=pack,
            database=database,
            settings=settings,
            hash_key=b"test",
            worker_id=worker_id,
            dead_letters=sink,
            remarks=lambda: [sink.problem] if sink and sink.problem else [],
        )


def send(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value)
    producer.flush()
    producer.close()


def prompts(count: int, *, start: int = 0) -> list[bytes]:
    return [
        json.dumps({"id": f"p{i}", "prompt": f"text {i}", "response": "yes"}).encode()
        for i in range(start, start + count)
    ]


def number(database: Engine, query: str) -> float:
    with transaction(database) as c:
        return c.execute(text(query)).scalar_one() or 0


def run_until(worker: Worker, database: Engine, query: str, wanted: float) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and number(database, query) != wanted:
        time.sleep(0.1)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert number(database, query) == wanted


class HeldUp(NullReplay):
    """Replays ``chunks`` chunks, then holds the worker up until `go`."""

    def __init__(self, chunks: int) -> None:
        super().__init__(FEATURES)
        self.left = chunks
        self.holds = threading.Event()
        self.go = threading.Event()

    def run(self, prepared: Sequence[Any]) -> list[Any]:
        if prepared and self.left == 0:
            self.holds.set()
            assert self.go.wait(60)
        self.left -= bool(prepared) and self.left > 0
        return super().run(prepared)


@contextmanager
def at_work(worker: Worker, replay: HeldUp) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        replay.go.set()
        thread.join(30)
        assert not thread.is_alive()


def lag_shown(database: Engine) -> dict[int, int]:
    with transaction(database) as c:
        rows = c.execute(text("SELECT partition, lag FROM monitor.ingest_lag")).all()
    return {row.partition: row.lag for row in rows}


def stored(database: Engine) -> dict[int, int]:
    with transaction(database) as c:
        rows = c.execute(text("SELECT partition, next_offset FROM monitor_data.offsets")).all()
    return {row.partition: row.next_offset for row in rows}


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
