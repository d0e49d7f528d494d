"""Dead letters and the doctor's probe, against a real broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from kafka import KafkaConsumer, TopicPartition

from monitor.demo.services import free_port
from monitor.errors import BrokerUnavailable, ConfigurationError
from monitor.ingest.kafka import DeadLetterProducer, dead_letters, describe
from monitor.settings import KafkaSettings
from monitor.values.prompts import DeadLetter, DeadReason, RecordKey

RECORDED_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def letter(offset: int, content: bytes | None = None) -> DeadLetter:
    return DeadLetter(
        key=RecordKey(topic="prompts", partition=2, offset=offset, index=1),
        recorded_at=RECORDED_AT,
        reason=DeadReason.NOT_JSON,
        detail="line 1 column 2",
        content=content,
    )


def test_letters_arrive_with_their_origin_and_their_content_only_when_given(
    kafka_bootstrap: str, topic: str
) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka_bootstrap, dead_letter_topic=topic)
    too_long = b"x" * (dead_letters.MAX_CONTENT_BYTES + 1)
    with DeadLetterProducer(settings) as producer:
        producer.send([letter(7), letter(8, b"\xff{"), letter(9, too_long)])
        producer.send([])
        producer.send([letter(10)])
    consumer = KafkaConsumer(
        bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=10_000
    )
    consumer.assign([TopicPartition(topic, 0)])
    records = [next(consumer) for _ in range(4)]
    consumer.close()
    values = [json.loads(record.value) for record in records]
    assert [value["offset"] for value in values] == [7, 8, 9, 10]
    assert values[0] == {
        "topic": "prompts",
        "partition": 2,
        "offset": 7,
        "index": 1,
        "reason": "not_json",
        "detail": "line 1 column 2",
        "recorded_at": "2026-03-04T05:06:07+00:00",
    }
    assert base64.b64decode(values[1]["content"]) == b"\xff{"
    assert "content" not in values[2]
    assert values[2]["content_bytes"] == len(too_long)
    assert dict(records[0].headers) == {
        "monitor.reason": b"not_json",
        "monitor.topic": b"prompts",
        "monitor.partition": b"2",
        "monitor.offset": b"7",
        "monitor.index": b"1",
    }


def test_a_broker_that_is_away_is_for_the_caller_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_letters, "FLUSH_SECONDS", 1.0)
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", dead_letter_topic="dead")
    with DeadLetterProducer(settings) as producer, pytest.raises(BrokerUnavailable):
        producer.send([letter(1)])


def test_without_a_topic_there_is_no_producer() -> None:
    with pytest.raises(ConfigurationError, match="dead_letter_topic"):
        DeadLetterProducer(KafkaSettings(dead_letter_topic=None))


def test_the_report_tells_what_is_there_and_what_is_missing(
    kafka_bootstrap: str, make_topic: Callable[..., str]
) -> None:
    topic = make_topic(partitions=3)
    report = describe(
        KafkaSettings(
            bootstrap_servers=kafka_bootstrap,
            topics=(topic, "no-such-topic"),
            dead_letter_topic="no-such-dead-letters",
        )
    )
    assert report.partitions == {topic: 3}
    assert report.missing_topics == ("no-such-topic",)
    assert report.dead_letter_topic_missing
    assert report.broker_version[0].isdigit()


def test_the_report_of_a_broker_that_is_away() -> None:
    with pytest.raises(BrokerUnavailable, match="no Kafka broker answers"):
        describe(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("servers", ["localhost:http", "localhost:"])
def test_an_address_that_is_none_is_refused(servers: str) -> None:
    with pytest.raises(ConfigurationError, match="bootstrap_servers"):
        describe(KafkaSettings(bootstrap_servers=servers))
