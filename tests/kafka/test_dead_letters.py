"""A dead-letter topic of Apache Kafka that may not be written, or is not there."""

from __future__ import annotations

import time

import pytest

from monitor.ingest.kafka import DeadLetterTopic
from monitor.settings import KafkaSettings
from tests.kafka.apache import USERS, Cluster
from tests.scenes.kafka_source import wait_for
from tests.scenes.letters import letters, told


def by_password(kafka: Cluster, topic: str) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=kafka.addresses("SASL_SSL"),
        dead_letter_topic=topic,
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="monitor",
        sasl_password=USERS["monitor"],
        ssl_cafile=kafka.authority.certificate,
    )


def test_a_topic_that_may_not_be_written_is_told_once_the_right_is_there(kafka: Cluster) -> None:
    kafka.create_topic("letters")
    kafka.allow("User:monitor", "Describe", on=("--topic", "letters"))
    with DeadLetterTopic(by_password(kafka, "letters")) as sink:
        started = time.monotonic()
        for chunk in range(10):
            sink.send(letters(chunk, 1))
        assert time.monotonic() - started < 30.0, "patience is paid once"
        assert "WRITE and DESCRIBE the topic letters" in sink.problem
        kafka.allow("User:monitor", "Write", on=("--topic", "letters"))
        wait_for(lambda: not sink.problem, "the topic is told", 90.0)
    assert told(kafka.bootstrap, "letters", 10) == list(range(10))


@pytest.mark.slow
def test_a_topic_that_is_not_there_is_told_once_it_is(kafka: Cluster) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap, dead_letter_topic="letters-later")
    with DeadLetterTopic(settings) as sink:
        for chunk in range(10):
            sink.send(letters(chunk, 1))
        assert "letters-later" in sink.problem
        kafka.create_topic("letters-later")
        wait_for(lambda: not sink.problem, "the topic is told", 120.0)
    assert told(kafka.bootstrap, "letters-later", 10) == list(range(10))
