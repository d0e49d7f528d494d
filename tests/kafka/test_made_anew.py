"""A topic that is deleted and made again under the same name: nothing of it is skipped in silence."""

from __future__ import annotations

import threading

import pytest
from kafka import KafkaAdminClient
from sqlalchemy import Engine

from monitor.errors import StopLoudly
from monitor.offsets import EARLIEST
from tests.kafka.apache import Cluster
from tests.scenes.growing import reading
from tests.scenes.moving import STORED, moved
from tests.worker.working import number, prompts, run_until, send, wait_for, working


def make_anew(kafka: Cluster, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    admin.delete_topics([topic])
    admin.close()
    kafka.create_topic(topic)


def test_a_topic_that_was_made_anew_stops_loudly_and_a_command_decides(
    database: Engine, kafka: Cluster
) -> None:
    topic = "made-anew"
    kafka.create_topic(topic)
    settings = reading(kafka.bootstrap, topic, start_at="earliest")
    send(kafka.bootstrap, topic, prompts(20))
    with working(database, settings) as worker:
        run_until(worker, database, STORED, 20)
    make_anew(kafka, topic)
    send(kafka.bootstrap, topic, prompts(50, start=20))
    with (
        working(database, settings) as worker,
        pytest.raises(StopLoudly, match="made anew") as stopped,
    ):
        worker.run(threading.Event())
    assert f"monitor offsets move --topic {topic} --to earliest" in stopped.value.hint
    assert number(database, STORED) == 20
    (planned,) = moved(database, settings, EARLIEST)
    assert (planned.to_read, planned.passed_over) == (50, 0)
    with working(database, settings) as worker:
        run_until(worker, database, STORED, 70)


def test_it_is_noticed_while_a_worker_runs(database: Engine, kafka: Cluster) -> None:
    topic = "made-anew-running"
    kafka.create_topic(topic)
    settings = reading(kafka.bootstrap, topic, start_at="earliest")
    send(kafka.bootstrap, topic, prompts(20))
    with working(database, settings) as worker:
        wait_for(lambda: worker.step() or number(database, STORED) == 20, "all is stored")
        make_anew(kafka, topic)
        with pytest.raises(StopLoudly, match="made anew"):
            for _ in range(60):
                worker.step()
