"""Four codecs, as three clients write them, read by the source of a plain installation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import confluent_kafka
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer

from monitor.ingest.kafka import KafkaSource
from monitor.settings import IngestSettings, KafkaSettings
from tests.kafka.points import Kept

RECORDS = 200
VALUES = [
    b'{"prompt": "%d", "response": "it compresses well"}' % number for number in range(RECORDS)
]


def by_kafka_python(bootstrap: str, topic: str, codec: str) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, linger_ms=50)
    for value in VALUES:
        producer.send(topic, value)
    producer.close()


def by_librdkafka(bootstrap: str, topic: str, codec: str) -> None:
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 50}
    )
    for value in VALUES:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def by_aiokafka(bootstrap: str, topic: str, codec: str) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=bootstrap, compression_type=codec, linger_ms=50
        ) as producer:
            for value in VALUES:
                await producer.send(topic, value)

    asyncio.run(send())


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("write", [by_kafka_python, by_librdkafka, by_aiokafka])
def test_what_a_client_compresses_is_read(
    kafka_bootstrap: str, topic: str, write: Callable[[str, str, str], None], codec: str
) -> None:
    write(kafka_bootstrap, topic, codec)
    settings = KafkaSettings(bootstrap_servers=kafka_bootstrap, topics=(topic,), group_id=topic)
    got: list[bytes | None] = []
    with KafkaSource(settings, IngestSettings(), Kept()) as source:
        while len(got) < RECORDS:
            chunk = source.poll(30.0)
            assert chunk is not None, "the records did not come"
            got += [one.value for one in chunk.records]
    assert got == VALUES
