"""`monitor offsets`: moving a reading point, without counting a record twice, and topics made anew."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from sqlalchemy import Engine

from monitor.errors import BadInput
from monitor.ingest.kafka import KafkaSource
from monitor.offsets import EARLIEST, LATEST, offsets_shown, planned
from monitor.reading_points import StoredPoints
from monitor.settings import Settings
from monitor.store.database import transaction
from monitor.store.workers import heartbeat
from tests.scenes.growing import at_work, begun, reading, send_to
from tests.scenes.moving import STORED, moved
from tests.worker.working import number, prompts, send, wait_for, working

DIFFERENT = "SELECT count(DISTINCT (topic, partition, record_offset)) FROM monitor_data.scores"


def read_up_to(database: Engine, settings: Settings, count: int) -> None:
    with at_work(database, settings):
        wait_for(lambda: number(database, STORED) >= count, f"{count} are stored")
    stored = number(database, STORED)
    assert (stored, number(database, DIFFERENT)) == (count, count)


def test_what_latest_passed_over_is_read_and_nothing_is_read_twice(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    send(kafka_bootstrap, topic, prompts(40))
    settings = reading(kafka_bootstrap, topic)
    with at_work(database, settings):
        wait_for(begun(database, 1), "reading has begun")
        send(kafka_bootstrap, topic, prompts(20, start=40))
        wait_for(lambda: number(database, STORED) == 20, "what came since is stored")
    (planned_move,) = moved(database, settings, EARLIEST)
    assert (planned_move.before, planned_move.after) == (60, 0)
    assert (planned_move.to_read, planned_move.passed_over) == (40, 20)
    send(kafka_bootstrap, topic, prompts(5, start=60))
    read_up_to(database, settings, 65)
    (again,) = moved(database, settings, EARLIEST)
    assert (again.to_read, again.passed_over) == (0, 65)
    send(kafka_bootstrap, topic, prompts(1, start=65))
    read_up_to(database, settings, 66)


def test_forward_and_back_again(database: Engine, kafka_bootstrap: str, topic: str) -> None:
    settings = reading(kafka_bootstrap, topic, start_at="earliest")
    send(kafka_bootstrap, topic, prompts(10))
    read_up_to(database, settings, 10)
    send(kafka_bootstrap, topic, prompts(30, start=10))
    (forward,) = moved(database, settings, LATEST)
    assert (forward.skipped, forward.to_read) == (30, 0)
    send(kafka_bootstrap, topic, prompts(10, start=40))
    read_up_to(database, settings, 20)
    (back,) = moved(database, settings, 20)
    assert (back.to_read, back.passed_over) == (20, 10)
    read_up_to(database, settings, 40)
    (row,) = offsets_shown(database, settings)
    assert (row["reads_on_at"], row["log_end"], row["to_read"]) == (50, 50, 0)


def test_to_a_moment_and_one_partition_alone(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    settings = reading(kafka_bootstrap, topic)
    with at_work(database, settings):
        wait_for(begun(database, 2), "reading has begun")
    send_to(kafka_bootstrap, topic, range(2), 20)
    moved(database, settings, LATEST)
    (only,) = moved(database, settings, datetime.now(UTC) - timedelta(hours=1), 1)
    assert (only.partition, only.before, only.after, only.to_read) == (1, 10, 0, 10)
    read_up_to(database, settings, 10)


def test_nothing_moves_while_a_worker_of_the_group_is_alive(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings, now = reading(kafka_bootstrap, topic), datetime.now(UTC)
    with working(database, settings):
        wait_for(begun(database, 1), "a member is in the group, whose worker does not say so yet")
        with pytest.raises(BadInput, match="is being read: persona-monitor at"):
            planned(database, settings, [topic], (), EARLIEST, now)
    with transaction(database) as c:
        heartbeat(c, "w-1", settings.kafka.group_id, "p", "running", now)
    with pytest.raises(BadInput, match="is being read: w-1"):
        planned(database, settings, [topic], (), EARLIEST, now)


@pytest.mark.parametrize("wrong", [{"to": 7}, {"partitions": {3}}])
def test_what_cannot_be_is_refused(
    database: Engine, kafka_bootstrap: str, topic: str, wrong: dict
) -> None:
    settings = reading(kafka_bootstrap, topic)
    asked = {"partitions": (), "to": EARLIEST, "now": datetime.now(UTC), "topics": [topic]} | wrong
    with pytest.raises(BadInput):
        planned(database, settings, **asked)


def test_offsets_that_kafkas_tool_has_set_are_told_once_and_move_nothing(
    database: Engine, kafka_bootstrap: str, topic: str
) -> None:
    settings = reading(kafka_bootstrap, topic, start_at="earliest")
    send(kafka_bootstrap, topic, prompts(10))
    read_up_to(database, settings, 10)
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.alter_group_offsets(
        settings.kafka.group_id, {TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)}
    )
    admin.close()
    points = StoredPoints(database, group_id=settings.kafka.group_id, worker_id="test")
    with KafkaSource(settings.kafka, settings.ingest, points) as source:
        wait_for(lambda: bool(source.remarks()), "it is told")
        (said,) = source.remarks()
        assert f"{topic}/0 to 0 (read on from 10)" in said
        assert f"monitor offsets move --topic {topic}" in said
        wait_for(
            lambda: offsets_shown(database, settings)[0]["committed_in_kafka"] == 10,
            "ours is committed over it",
        )
    with KafkaSource(settings.kafka, settings.ingest, points) as source:
        wait_for(lambda: bool(source.log_ends()), "reading has begun")
        assert source.remarks() == ()
