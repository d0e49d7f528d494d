"""The servers that the tests and the demo start: they start, survive, restart and leave nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from monitor.demo.services import Broker, Postgres
from monitor.errors import RefuseToStart


def _query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(statement).fetchall()


def _write(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(statement)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgres_keeps_port_and_committed_rows(restartable_postgres: Postgres, end: str) -> None:
    url = restartable_postgres.create_database("kept")
    _write(url, "CREATE TABLE t AS SELECT 7 AS n")
    getattr(restartable_postgres, end)()
    with pytest.raises(psycopg.OperationalError):
        _query(url, "SELECT 1")
    restartable_postgres.start()
    assert _query(url, "SELECT n FROM t") == [(7,)]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_broker_keeps_port_topics_and_records(restartable_broker: Broker, end: str) -> None:
    restartable_broker.create_topic("kept", partitions=2)
    producer = KafkaProducer(bootstrap_servers=restartable_broker.bootstrap)
    for number in range(100):
        producer.send("kept", value=b"%d" % number, partition=number % 2)
    producer.flush()
    producer.close()
    if end == "kill":
        time.sleep(2.0)  # noida-db saves about once a second; Apache Kafka would need no wait.
    getattr(restartable_broker, end)()
    restartable_broker.start()
    consumer = KafkaConsumer(bootstrap_servers=restartable_broker.bootstrap)
    partitions = [TopicPartition("kept", partition) for partition in (0, 1)]
    assert consumer.end_offsets(partitions) == dict.fromkeys(partitions, 50)
    consumer.close()


def test_nothing_runs_after_the_context(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres") as postgres, Broker(tmp_path / "broker") as broker:
        here = {str(postgres.folder), str(broker.folder)}
        assert len(_running_in(here)) >= 2
    assert _running_in(here) == []


def test_a_server_left_behind_is_ended_before_the_next_start(tmp_path: Path) -> None:
    left = Broker(tmp_path / "broker")
    left.start()
    with Broker(tmp_path / "broker", port=left.port) as broker:
        assert len(_running_in({str(broker.folder)})) == 1
    left.stop()


def test_a_kept_server_goes_on(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        broker.keep()
    assert len(_running_in({str(broker.folder)})) == 1
    broker.stop()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres"):
        pass
    unusable = Postgres(tmp_path / "postgres", options={"shared_buffers": "nonsense"})
    with pytest.raises(RefuseToStart, match="shared_buffers"):
        unusable.start()


def test_an_empty_database_is_empty(postgres_url: str) -> None:
    tables = _query(
        postgres_url, "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    )
    assert tables == [(0,)]


def _running_in(folders: set[str]) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if any(folder in line for folder in folders):
            found.append(process.pid)
    return found
