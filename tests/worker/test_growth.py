"""Topics that grow: what a partition added later holds is read from its beginning, whatever `start_at` says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kafka import KafkaAdminClient
from sqlalchemy import Engine

from monitor.ingest.kafka import group
from tests.scenes.growing import at_work, begun, reading, send_to
from tests.worker.working import number, prompts, send, wait_for, working

STORED = "SELECT count(*) FROM monitor_data.scores"


@pytest.fixture
def grow(kafka_bootstrap: str) -> Callable[[str, int], None]:
    """``grow(topic, 6)``: the topic has six partitions from now on."""

    def to(topic: str, partitions: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        try:
            admin.create_partitions({topic: partitions})
        finally:
            admin.close()

    return to


@pytest.mark.parametrize("start_at", ["latest", "earliest"])
def test_what_is_sent_to_new_partitions_before_they_are_noticed_is_stored(
    start_at: str,
    database: Engine,
    kafka_bootstrap: str,
    make_topic: Callable[..., str],
    grow: Callable[[str, int], None],
) -> None:
    topic = make_topic(partitions=3)
    with at_work(database, reading(kafka_bootstrap, topic, start_at=start_at)):
        wait_for(begun(database, 3), "reading has begun")
        send_to(kafka_bootstrap, topic, range(3), 30)
        grow(topic, 6)
        send_to(kafka_bootstrap, topic, range(6), 60)
        wait_for(lambda: number(database, STORED) == 90, "everything is stored")


def test_a_join_that_ends_between_two_polls_is_finished(
    database: Engine,
    kafka_bootstrap: str,
    make_topic: Callable[..., str],
    grow: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client library forgets one that new partitions began: then every partition is silent for good."""
    monkeypatch.setattr(group, "POLL_SECONDS", 0.0005)
    topic = make_topic(partitions=1)
    with at_work(database, reading(kafka_bootstrap, topic)):
        wait_for(begun(database, 1), "reading has begun")
        for partitions in range(2, 6):
            grow(topic, partitions)
            wait_for(begun(database, partitions), f"partition {partitions - 1} is read")


def test_partitions_added_while_no_worker_runs_are_read_from_their_beginning(
    database: Engine,
    kafka_bootstrap: str,
    make_topic: Callable[..., str],
    grow: Callable[[str, int], None],
) -> None:
    topic = make_topic(partitions=1)
    settings = reading(kafka_bootstrap, topic)
    with at_work(database, settings):
        wait_for(begun(database, 1), "reading has begun")
    grow(topic, 3)
    send_to(kafka_bootstrap, topic, range(3), 30)
    with at_work(database, settings):
        wait_for(lambda: number(database, STORED) == 30, "everything is stored")


def test_a_topic_that_is_added_to_the_configuration_begins_at_start_at(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    first, second = make_topic(), make_topic()
    with at_work(database, reading(kafka_bootstrap, first)):
        wait_for(begun(database, 1), "reading has begun")
    send(kafka_bootstrap, second, prompts(20))
    with at_work(database, reading(kafka_bootstrap, first, second)):
        wait_for(begun(database, 2), "the second topic has begun")
        send(kafka_bootstrap, second, prompts(5, start=20))
        wait_for(lambda: number(database, STORED) == 5, "what came since is stored")


def test_all_partitions_of_a_topic_begin_together_whoever_they_belong_to(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    """Else a worker that dies before it has stored its first offsets leaves the rest for new ones."""
    topic = make_topic(partitions=4)
    send_to(kafka_bootstrap, topic, range(4), 40)
    settings = reading(kafka_bootstrap, topic)
    # Two members, neither of which stores a chunk.
    with working(database, settings), working(database, settings):
        wait_for(begun(database, 4), "all have begun")
    with at_work(database, settings):
        send_to(kafka_bootstrap, topic, range(4), 8)
        wait_for(lambda: number(database, STORED) == 8, "what came since is stored")
