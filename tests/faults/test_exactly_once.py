"""Nothing lost, nothing twice: real worker processes, killed, restarted and rebalanced under load.

The workers run everything but the model (`benchmarks.null_worker`): parsing, exactly-once storage,
group membership. Afterwards the store must agree with what was sent, record by record.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import yaml
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from monitor.demo.services import Broker, Postgres, create_topic
from monitor.settings import PostgresSettings
from monitor.store.database import migrate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
PATIENCE_SECONDS = 120.0


class Load:
    """Sends records from a thread; every seventh cannot be read. Counts what the broker took."""

    def __init__(self, bootstrap: str, topic: str, *, per_second: float = 150.0) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._pause = 1.0 / per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self.valid = self.broken = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self._bootstrap, acks="all", retries=0)
        number = 0
        while not self._stop.wait(self._pause):
            number += 1
            broken = number % 7 == 0
            value = (
                b"{broken"
                if broken
                else json.dumps(
                    {"id": f"p{number}", "prompt": f"text {number}", "response": "yes"}
                ).encode()
            )
            try:
                producer.send(self._topic, value, partition=number % PARTITIONS).get(timeout=10)
            except KafkaError:
                continue  # not acknowledged: it may be on the topic or not, and is not counted
            self.broken += broken
            self.valid += not broken
        producer.close()


class Fleet:
    """Worker processes on one configuration."""

    def __init__(self, folder: Path, bootstrap: str, topic: str, url: str, **kafka: object) -> None:
        self.url = url
        self._config = folder / "monitor.yaml"
        self._folder = folder
        self._config.write_text(
            yaml.safe_dump(
                {
                    "kafka": {
                        "bootstrap_servers": bootstrap,
                        "topics": [topic],
                        "group_id": topic,
                        "dead_letter_topic": None,
                        "session_timeout_ms": 6_000,
                        # A broker waits for a killed member this long at most.
                        "max_poll_interval_ms": 10_000,
                        "heartbeat_interval_ms": 1_000,
                        **kafka,
                    },
                    "ingest": {"chunk_records": 40, "chunk_wait": 0.2},
                    "postgres": {"url": url},
                    "shutdown_grace": 15,
                }
            )
        )
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, seconds_per_prompt: float = 0.002) -> subprocess.Popen[bytes]:
        log = (self._folder / f"worker-{time.monotonic_ns()}.log").open("wb")
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.null_worker"),
                *(str(self._config), str(seconds_per_prompt)),
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={k: v for k, v in os.environ.items() if not k.startswith("MONITOR_")},
        )
        self.running.append(worker)
        return worker

    def end(self, worker: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> int:
        worker.send_signal(how)
        self.running.remove(worker)
        return worker.wait(30)

    def close(self) -> None:
        for worker in list(self.running):
            self.end(worker, signal.SIGKILL)

    def number(self, query: str) -> int:
        with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0] or 0)

    def stored(self) -> int:
        return self.number(
            "SELECT (SELECT count(*) FROM monitor_data.scores)"
            " + (SELECT count(*) FROM monitor_data.dead_letters)"
        )

    def wait_for(self, count: int, seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.stored() >= count:
                return
            time.sleep(0.2)
        pytest.fail(f"{self.stored()} of {count} records stored after {seconds} s")


def records_on(bootstrap: str, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    ends = consumer.end_offsets(partitions)
    consumer.close()
    return sum(ends.values())


def check(fleet: Fleet, load: Load, *, on_topic: int | None = None) -> None:
    """What the store holds is what was sent (or is ``on_topic``): each once, and sums that agree."""
    scored = fleet.number("SELECT count(*) FROM monitor_data.scores")
    dead = fleet.number("SELECT count(*) FROM monitor_data.dead_letters")
    if on_topic is None:
        assert (scored, dead) == (load.valid, load.broken)
    else:
        assert scored + dead == on_topic
    key = "(topic, partition, record_offset, record_index)"
    assert fleet.number(f"SELECT count(DISTINCT {key}) FROM monitor_data.scores") == scored
    assert fleet.number(f"SELECT count(DISTINCT {key}) FROM monitor_data.dead_letters") == dead
    assert fleet.number("SELECT sum(next_offset) FROM monitor_data.offsets") == scored + dead
    for feature in range(4):
        where = f"FROM monitor_data.buckets WHERE feature = {feature} AND segment = 'all'"
        assert fleet.number(f"SELECT sum(n) {where}") == scored
        assert (
            fleet.number(
                f"SELECT round((abs((SELECT sum(total) {where})"
                f" - (SELECT sum(scores[{feature + 1}]::float8) FROM monitor_data.scores)) * 1e3)::numeric)"
            )
            == 0
        )
    counted = "SELECT sum(n) FROM monitor_data.ingest_counts WHERE outcome"
    assert fleet.number(f"{counted} = 'scored'") == scored
    assert fleet.number(f"{counted} LIKE 'dead:%'") == dead


@pytest.fixture
def fleet(
    tmp_path: Path, kafka_bootstrap: str, make_topic, migrated_url: str
) -> Iterator[tuple[Fleet, str, str]]:
    topic = make_topic(partitions=PARTITIONS)
    workers = Fleet(tmp_path, kafka_bootstrap, topic, migrated_url)
    yield workers, kafka_bootstrap, topic
    workers.close()


def test_sigterm_finishes_the_chunk_in_hand_and_exits_0(fleet) -> None:
    workers, bootstrap, topic = fleet
    with Load(bootstrap, topic) as load:
        worker = workers.start()
        workers.wait_for(50)
        started = time.monotonic()
        assert workers.end(worker) == 0
        assert time.monotonic() - started < 15
    workers.start()
    workers.wait_for(load.valid + load.broken)
    check(workers, load)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_under_load(
    tmp_path: Path, kafka_bootstrap: str, make_topic, migrated_url: str, kills: int
) -> None:
    """The worker is a static member, as in a StatefulSet: the next one takes its place at once.

    The embedded broker, unlike Apache Kafka, waits for ever for a killed dynamic member.
    """
    topic = make_topic(partitions=PARTITIONS)
    static = {"client_options": {"group_instance_id": "worker-0"}}
    workers = Fleet(tmp_path, kafka_bootstrap, topic, migrated_url, **static)
    chance = random.Random(20)
    with closing(workers), Load(kafka_bootstrap, topic, per_second=60) as load:
        for _ in range(kills):
            before = workers.stored()
            worker = workers.start()
            workers.wait_for(before + 1)
            time.sleep(chance.uniform(0.0, 0.6))
            workers.end(worker, signal.SIGKILL)
    with closing(workers):
        workers.start(seconds_per_prompt=0.0)
        workers.wait_for(load.valid + load.broken)
        check(workers, load)


@pytest.mark.timeout(600)
def test_two_then_three_then_one_worker(fleet) -> None:
    workers, bootstrap, topic = fleet
    with Load(bootstrap, topic) as load:
        first, second = workers.start(), workers.start()
        workers.wait_for(300)
        third = workers.start()
        time.sleep(10)
        workers.end(first)
        time.sleep(3)
        workers.end(second)
        time.sleep(10)
    workers.wait_for(load.valid + load.broken)
    assert third.poll() is None
    check(workers, load)


@pytest.mark.timeout(300)
def test_a_chunk_that_outlasts_the_poll_interval(
    tmp_path: Path, kafka_bootstrap: str, make_topic, migrated_url: str
) -> None:
    topic = make_topic(partitions=PARTITIONS)
    workers = Fleet(tmp_path, kafka_bootstrap, topic, migrated_url, max_poll_interval_ms=6_000)
    with closing(workers):
        with Load(kafka_bootstrap, topic, per_second=40) as load:
            worker = workers.start(seconds_per_prompt=0.25)  # 40 records: 10 s
            time.sleep(4)
        workers.wait_for(load.valid + load.broken)
        assert worker.poll() is None
        check(workers, load)


@pytest.mark.timeout(600)
def test_broker_and_postgres_restart_under_load(
    tmp_path: Path, restartable_broker: Broker, restartable_postgres: Postgres
) -> None:
    """Counted against the topic: the embedded broker may lose what it acknowledged when it stops."""
    topic = "restarts"
    create_topic(restartable_broker.bootstrap, topic, partitions=PARTITIONS)
    url = restartable_postgres.create_database("monitor")
    migrate(PostgresSettings(url=url))
    workers = Fleet(tmp_path, restartable_broker.bootstrap, topic, url)
    with closing(workers):
        with Load(restartable_broker.bootstrap, topic) as load:
            workers.start()
            workers.wait_for(100)
            restartable_postgres.stop()
            time.sleep(4)
            restartable_postgres.start()
            time.sleep(4)
            restartable_postgres.kill()
            time.sleep(2)
            restartable_postgres.start()
            before = workers.stored()
            workers.wait_for(before + 100)
            restartable_broker.stop()
            time.sleep(4)
            restartable_broker.start()
            before = workers.stored()
            workers.wait_for(before + 100)
        on_topic = records_on(restartable_broker.bootstrap, topic)
        assert on_topic > 200
        workers.wait_for(on_topic)
        check(workers, load, on_topic=on_topic)


def test_sigterm_before_the_first_connection_ends_at_once(
    tmp_path: Path, migrated_url: str
) -> None:
    """The listener takes connections and says nothing: the source waits for its first answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        workers = Fleet(tmp_path, address, "prompts", migrated_url)
        with closing(workers):
            worker = workers.start()
            listener.settimeout(60)
            listener.accept()
            time.sleep(1)
            started = time.monotonic()
            assert workers.end(worker) == 0
            assert time.monotonic() - started < 7  # what is waited for takes 15
    (log,) = tmp_path.glob("worker-*.log")
    assert "left_at_the_end_of_its_grace" not in log.read_text()


@pytest.mark.timeout(120)
def test_sigterm_while_postgres_is_down_ends_within_the_grace_period(
    tmp_path: Path, kafka_bootstrap: str, make_topic, restartable_postgres: Postgres
) -> None:
    topic = make_topic(partitions=PARTITIONS)
    url = restartable_postgres.create_database("monitor")
    migrate(PostgresSettings(url=url))
    workers = Fleet(tmp_path, kafka_bootstrap, topic, url)
    with closing(workers), Load(kafka_bootstrap, topic) as load:
        worker = workers.start()
        workers.wait_for(50)
        restartable_postgres.stop()
        time.sleep(2)
        started = time.monotonic()
        assert workers.end(worker) == 0
        assert time.monotonic() - started < 17
        restartable_postgres.start()
    with closing(workers):
        workers.start()
        workers.wait_for(load.valid + load.broken)
        check(workers, load)
