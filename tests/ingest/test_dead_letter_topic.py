"""The dead-letter topic, away in every way: the worker goes on, and the topic is told later."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from monitor.demo.services import Broker, create_topic, free_port
from monitor.ingest.kafka import DeadLetterTopic, dead_letter_topic
from monitor.metrics import METRICS
from monitor.settings import KafkaSettings
from tests.scenes.kafka_source import wait_for
from tests.scenes.letters import letters, told


def away(address: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=address, dead_letter_topic="dead")


def test_letters_have_arrived_when_sending_returns(kafka_bootstrap: str, topic: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_bootstrap, dead_letter_topic=topic)
    with DeadLetterTopic(settings) as sink:
        sink.send(letters(0, 3))
        assert sink.problem == ""
        assert told(kafka_bootstrap, topic, 3) == [0, 1, 2]


def test_patience_is_paid_once_and_the_topic_is_told_when_it_is_back(tmp_path: Path) -> None:
    broker = Broker(tmp_path, port=free_port())
    with DeadLetterTopic(away(broker.bootstrap)) as sink:
        for chunk in range(20):
            sink.send(letters(10 * chunk, 10))
        assert "dead" in sink.problem
        assert "no Kafka broker answers" in sink.problem
        assert METRICS.dead_letters_waiting._value.get() == 200
        with broker:
            create_topic(broker.bootstrap, "dead")
            wait_for(lambda: not sink.problem, "the topic is back", 90.0)
            sink.send(letters(200, 1))
            assert told(broker.bootstrap, "dead", 201) == list(range(201))
            assert METRICS.dead_letters_waiting._value.get() == 0


def test_what_waits_is_bounded_and_the_oldest_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_topic, "MOST_LETTERS", 50)
    broker = Broker(tmp_path, port=free_port())
    before = METRICS.dead_letters_untold._value.get()
    with DeadLetterTopic(away(broker.bootstrap)) as sink:
        for chunk in range(8):
            sink.send(letters(10 * chunk, 10))
        assert METRICS.dead_letters_untold._value.get() - before == 30
        with broker:
            create_topic(broker.bootstrap, "dead")
            wait_for(lambda: not sink.problem, "the topic is back", 90.0)
            assert told(broker.bootstrap, "dead", 50) == list(range(30, 80))


def test_a_worker_that_stops_does_not_wait_for_the_topic() -> None:
    before = set(threading.enumerate())
    with DeadLetterTopic(away(f"127.0.0.1:{free_port()}")) as sink:
        sink.send(letters(0, 1))
        started = time.monotonic()
    assert time.monotonic() - started < 4.0
    assert not [one for one in set(threading.enumerate()) - before if one.is_alive()]


@pytest.mark.parametrize("name", ["", ".", "..", "dead letters", "tot/e", "x" * 250, "späne"])
def test_an_illegal_name_is_refused_at_start(name: str) -> None:
    with pytest.raises(ValidationError, match="dead_letter_topic"):
        KafkaSettings(dead_letter_topic=name)
    with pytest.raises(ValidationError, match="topics"):
        KafkaSettings(topics=("prompts", name))


def test_letters_are_not_sent_to_a_topic_that_is_read() -> None:
    with pytest.raises(ValidationError, match="dead_letter_topic"):
        KafkaSettings(topics=("prompts",), dead_letter_topic="prompts")
