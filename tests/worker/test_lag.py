"""How far behind the worker is, whatever it is doing: in the view, in the metric, in the lag rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, text

from monitor import progress
from monitor.ingest.kafka import ends
from monitor.metrics import METRICS
from monitor.settings import Settings
from monitor.store.database import transaction
from monitor.store.ingest import ingest_health
from tests.worker.working import (
    HeldUp,
    at_work,
    lag_shown,
    prompts,
    settings_for,
    stored,
    wait_for,
    working,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.2)


def produce(bootstrap: str, topic: str, count: int, *, partitions: int = 2) -> None:
    """``count`` prompts into each partition."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in prompts(count):
        for partition in range(partitions):
            producer.send(topic, value, partition=partition)
    producer.flush()
    producer.close()


def lag_measured(topic: str) -> dict[int, float]:
    return {
        int(sample.labels["partition"]): sample.value
        for metric in METRICS.lag.collect()
        for sample in metric.samples
        if sample.labels["topic"] == topic
    }


def lag_rule_sees(database: Engine, settings: Settings) -> int:
    now = datetime.now(UTC)
    with transaction(database) as c:
        health = ingest_health(c, now - timedelta(hours=1), now, group_id=settings.kafka.group_id)
    return sum((health.lag or {}).values())


def test_lag_is_the_true_one_while_a_chunk_holds_the_worker_up(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    produce(kafka_bootstrap, topic, 200)
    settings, replay = settings_for(kafka_bootstrap, topic), HeldUp(chunks=2)
    with working(database, settings, replay) as worker, at_work(worker, replay):
        assert replay.holds.wait(30)
        produce(kafka_bootstrap, topic, 700)

        def true_lag() -> dict[int, int]:
            return {partition: 900 - stored(database).get(partition, 0) for partition in (0, 1)}

        wait_for(lambda: lag_shown(database) == true_lag(), "the view tells the true lag")
        wait_for(lambda: lag_measured(topic) == true_lag(), "the metric tells the true lag")
        assert sum(true_lag().values()) >= 1_600
        assert lag_rule_sees(database, settings) == sum(true_lag().values())


def test_a_partition_that_was_never_read_has_a_lag(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=3)
    produce(kafka_bootstrap, topic, 40, partitions=2)
    settings, replay = settings_for(kafka_bootstrap, topic), HeldUp(chunks=0)
    with working(database, settings, replay) as worker, at_work(worker, replay):
        assert replay.holds.wait(30)
        wait_for(lambda: lag_shown(database) == {0: 40, 1: 40, 2: 0}, "all partitions are shown")
        assert stored(database) == {0: 0, 1: 0, 2: 0}  # begun, and nothing stored of them
        assert lag_rule_sees(database, settings) == 80


def test_lag_stays_true_when_partitions_move_to_another_worker(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    settings = settings_for(kafka_bootstrap, topic)

    def owners() -> set[str]:
        with transaction(database) as c:
            return set(c.scalars(text("SELECT owner FROM monitor.ingest_lag")))

    first, second = HeldUp(chunks=1_000), HeldUp(chunks=0)
    with working(database, settings, first) as worker, at_work(worker, first):
        produce(kafka_bootstrap, topic, 60)
        wait_for(lambda: stored(database) == {0: 60, 1: 60}, "all is stored")
        with (
            working(database, settings, second, worker_id="other") as other,
            at_work(other, second),
        ):
            wait_for(lambda: owners() == {"test", "other"}, "both ask about what is theirs")
            produce(kafka_bootstrap, topic, 90)
            wait_for(
                lambda: sorted(lag_shown(database).values()) == [0, 90],
                "one is read on, the other is held up and says so",
            )


def test_the_lag_of_a_dead_worker_says_how_old_it_is(
    database: Engine, kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=2)
    produce(kafka_bootstrap, topic, 20)
    settings, replay = settings_for(kafka_bootstrap, topic), HeldUp(chunks=1_000)
    with working(database, settings, replay) as worker, at_work(worker, replay):
        wait_for(lambda: stored(database) == {0: 20, 1: 20}, "all is stored")
        wait_for(lambda: lag_shown(database) == {0: 0, 1: 0}, "the broker was asked")
    ended = datetime.now(UTC)
    produce(kafka_bootstrap, topic, 30)
    time.sleep(1.0)
    with transaction(database) as c:
        rows = c.execute(text("SELECT lag, asked_at, asked_ago FROM monitor.ingest_lag")).all()
    assert [row.lag for row in rows] == [0, 0], "nobody asks any more"
    for row in rows:
        assert row.asked_at < ended
        assert row.asked_ago > timedelta(seconds=1)
