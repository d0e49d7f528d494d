"""Exchanges in two records, on a real broker and a real Postgres: exactly once, whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, text

from monitor.settings import Settings
from monitor.store.database import transaction
from monitor.worker import Worker
from tests.ingest.halves import ANSWER, QUESTION, kserve, logs, message
from tests.worker.working import number, prompts, run_until, send, settings_for, wait_for, working

pytestmark = pytest.mark.slow

SCORED = "SELECT count(*) FROM monitor_data.scores"
WAITING = "SELECT count(*) FROM monitor_data.halves"
READ = "SELECT coalesce(sum(next_offset), 0) FROM monitor_data.offsets"
_SECOND = timedelta(seconds=1)
UNPAIRED = (
    "SELECT coalesce(sum(n), 0) FROM monitor_data.ingest_counts WHERE outcome = 'skipped:unpaired'"
)


def encoded(documents: list[dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps(document) for document in documents]


def halves(side: str, *numbers: int) -> list[bytes]:
    return encoded([kserve(side, n) for n in numbers])


def send_to(bootstrap: str, topic: str, partition: int, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(topic, value, key=b"k", partition=partition)
    producer.flush()
    producer.close()


def test_a_worker_that_dies_between_the_halves_loses_and_repeats_nothing(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    """The offset is past the requests, and prompts behind them are scored, when the worker ends."""
    settings = settings_for(kafka_bootstrap, topic)
    send(kafka_bootstrap, topic, [*halves("request", 1, 2), *prompts(20)])
    with working(database, settings) as worker:
        run_until(worker, database, READ, 22)
    assert number(database, SCORED) == 20
    assert number(database, WAITING) == 2
    send(
        kafka_bootstrap,
        topic,
        [*halves("response", 2), *prompts(5, start=20), *halves("response", 1)],
    )
    with working(database, settings) as worker:
        run_until(worker, database, READ, 29)
    assert number(database, SCORED) == 27
    assert number(database, "SELECT count(DISTINCT prompt_id) FROM monitor_data.scores") == 27
    assert number(database, WAITING) == 0


def test_a_worker_killed_before_it_stores_starts_over(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic, chunk_records=1)
    send(kafka_bootstrap, topic, [*halves("request", 1), *halves("response", 1)])
    with working(database, settings) as worker:
        step_until(worker, lambda: number(database, READ) == 1)
        prepared = None
        while prepared is None:  # joined in memory, then the process is gone
            prepared = worker._fetching.fetch()
    assert (number(database, SCORED), number(database, WAITING)) == (0, 1)
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 1)
    assert number(database, WAITING) == 0


def step_until(worker: Worker, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        worker.step()


def test_messages_of_a_span_outlive_a_restart(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    first = [logs(message("system", "Be brief.")), logs(message("user"))]
    send_to(kafka_bootstrap, topic, 0, encoded(first))
    with working(database, settings) as worker:
        run_until(worker, database, READ, 2)
    send_to(kafka_bootstrap, topic, 0, encoded([logs(message("choice", ANSWER))]))
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 1)
    assert number(database, WAITING) == 0


def test_a_rebalance_takes_the_waiting_halves_along(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    """Each worker gives the halves of a partition that it loses to the one that gets it."""
    topic = make_topic(partitions=2)
    settings = settings_for(kafka_bootstrap, topic)
    for partition in (0, 1):
        values = halves("request", *range(10 * partition, 10 * partition + 10))
        send_to(kafka_bootstrap, topic, partition, values)
    with working(database, settings, worker_id="one") as one, running(one):
        wait_for(lambda: number(database, WAITING) == 20, "all requests wait")
        with working(database, settings, worker_id="two") as two, running(two):
            source = two._fetching._source
            wait_for(lambda: len(source.assigned()) == 1, "the partitions are shared")
            for partition in (0, 1):
                values = halves("response", *range(10 * partition, 10 * partition + 10))
                send_to(kafka_bootstrap, topic, partition, values)
            wait_for(lambda: number(database, SCORED) == 20, "every exchange is scored")
    assert number(database, "SELECT count(DISTINCT prompt_id) FROM monitor_data.scores") == 20
    assert number(database, WAITING) == 0
    workers = "SELECT count(DISTINCT worker_id) FROM monitor_data.offsets"
    assert number(database, workers) == 2


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_halves_in_two_partitions_meet_in_the_worker_that_reads_both(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    settings = settings_for(kafka_bootstrap, topic)
    send_to(kafka_bootstrap, topic, 0, halves("request", 1))
    with working(database, settings) as worker:
        run_until(worker, database, WAITING, 1)
    send_to(kafka_bootstrap, topic, 1, halves("response", 1))
    with working(database, settings) as worker:
        run_until(worker, database, SCORED, 1)
    assert number(database, WAITING) == 0


def test_what_never_meets_is_given_up_and_counted(
    database: Engine, kafka_bootstrap: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more comes: the broker's answer that the log has ended is what ends the wait."""
    monkeypatch.setattr("monitor.ingest.kafka.ends.ASK_SECONDS", 0.5)
    settings = short(settings_for(kafka_bootstrap, topic))
    send(kafka_bootstrap, topic, halves("request", 1, 2, 3))
    with working(database, settings) as worker:
        run_until(worker, database, UNPAIRED, 3)
    assert (number(database, WAITING), number(database, SCORED)) == (0, 0)
    assert number(database, READ) == 3
    with working(database, settings) as worker:
        send(kafka_bootstrap, topic, halves("response", 1))
        run_until(worker, database, UNPAIRED, 4)


def short(settings: Settings) -> Settings:
    join = settings.ingest.join.model_copy(update={"window": _SECOND})
    ingest = settings.ingest.model_copy(update={"join": join})
    return settings.model_copy(update={"ingest": ingest})


def test_a_place_that_somebody_else_settled_makes_the_chunk_stale(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = settings_for(kafka_bootstrap, topic)
    send(kafka_bootstrap, topic, halves("request", 1))
    with working(database, settings) as worker:
        step_until(worker, lambda: number(database, WAITING) == 1)
        with transaction(database) as c:
            c.execute(text("DELETE FROM monitor_data.halves"))
        send(kafka_bootstrap, topic, halves("response", 1))
        step_until(worker, lambda: number(database, READ) == 2)
    assert (number(database, SCORED), number(database, WAITING)) == (0, 1)


def test_no_text_of_a_half_reaches_the_database(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, halves("request", 1))
    with working(database, settings_for(kafka_bootstrap, topic)) as worker:
        run_until(worker, database, WAITING, 1)
    with transaction(database) as c:
        names = c.execute(
            text(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'monitor_data'"
            )
        ).scalars()
        rows = [c.execute(text(f'SELECT * FROM monitor_data."{name}"')).all() for name in names]
    assert QUESTION not in str(rows)
    assert "call-1" not in str(rows)
