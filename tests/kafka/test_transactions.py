"""A transaction that stays open: lag shows what waits behind it, and a minute later it is named."""

from __future__ import annotations

import pytest
from kafka import KafkaProducer

from monitor.ingest.kafka import KafkaSource, ends, standing
from tests.kafka.apache import Cluster
from tests.scenes.kafka_source import (
    Offsets,
    drain,
    holding,
    ingest,
    produce,
    settings,
    wait_for,
)


def test_lag_goes_to_the_end_of_the_log_and_the_transaction_is_named(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(standing, "STAND_SECONDS", 1.5)
    topic = "open-transaction"
    kafka.create_topic(topic)
    produce(kafka.bootstrap, topic, range(20))
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="open")
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(20, 30):
        producer.send(topic, str(number).encode(), partition=0)
    producer.flush()
    produce(kafka.bootstrap, topic, range(30, 35))
    offsets = Offsets()
    with KafkaSource(settings(kafka.bootstrap, topic), ingest(), offsets) as source:
        for chunk in drain(source, holding(20)):
            offsets.store(chunk)
            source.commit(chunk.spans)
        wait_for(lambda: source.lag() == {(topic, 0): 15}, "the lag goes to the end of the log")
        wait_for(
            lambda: any("up to a transaction" in said for said in source.remarks()), "it is named"
        )
        assert source.poll(0.5) is None
        producer.commit_transaction()
        for chunk in drain(source, holding(15)):
            offsets.store(chunk)
            source.commit(chunk.spans)
        wait_for(lambda: source.remarks() == (), "nothing waits any more")
    producer.close()
    assert offsets.values[topic, 0] == list(range(35))
