"""The cluster that these tests run on: its listeners, its ACLs, and brokers that come and go by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAuthorizationFailedError

from tests.kafka.apache import USERS, Cluster

PASSWORD = {"sasl_plain_username": "monitor", "sasl_plain_password": USERS["monitor"]}


@pytest.fixture
def certificates(kafka: Cluster) -> Mapping[str, Any]:
    own = str(kafka.authority.issue("client"))
    return {
        "ssl_cafile": str(kafka.authority.certificate),
        "ssl_certfile": own,
        "ssl_keyfile": own,
    }


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"])
@pytest.mark.parametrize("listener", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_a_password_lets_in_and_acls_say_what_may_be_read(
    kafka: Cluster, listener: str, mechanism: str
) -> None:
    topics = [f"{listener}-{mechanism}-{name}" for name in ("open", "shut")]
    for topic in topics:
        kafka.create_topic(topic)
    kafka.allow("User:monitor", "Read", on=("--topic", topics[0]))
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.addresses(listener),
        security_protocol=listener,
        sasl_mechanism=mechanism,
        ssl_cafile=str(kafka.authority.certificate),
        **PASSWORD,
    )
    assert consumer.partitions_for_topic(topics[0]) == {0}
    assert not consumer.partitions_for_topic(topics[1])
    consumer.close()


def test_a_certificate_is_a_principal(kafka: Cluster, certificates: Mapping[str, Any]) -> None:
    kafka.create_topic("by-certificate")
    producer = KafkaProducer(
        bootstrap_servers=kafka.addresses("SSL"),
        security_protocol="SSL",
        enable_idempotence=False,  # else the first refusal is this producer's last
        **certificates,
    )
    with pytest.raises(TopicAuthorizationFailedError):
        producer.send("by-certificate", b"1").get(10)
    kafka.allow("User:CN=client", "Write", on=("--topic", "by-certificate"))
    assert producer.send("by-certificate", b"2").get(10).offset == 0
    kafka.take_away("User:CN=client", "Write", on=("--topic", "by-certificate"))
    with pytest.raises(TopicAuthorizationFailedError):
        producer.send("by-certificate", b"3").get(10)
    producer.close()


def test_an_expired_certificate_is_served_on_its_own_listener(kafka: Cluster) -> None:
    with pytest.raises(KafkaError):
        KafkaConsumer(
            bootstrap_servers=kafka.addresses("EXPIRED"),
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            ssl_cafile=str(kafka.authority.certificate),
            bootstrap_timeout_ms=3_000,
            **PASSWORD,
        )


@pytest.mark.parametrize("end", ["kill", "stop", pytest.param("pause", marks=pytest.mark.nightly)])
def test_one_of_three_may_go_and_come_back(three_brokers: Cluster, end: str) -> None:
    topic, node = f"kept-{end}", three_brokers.nodes[0]
    three_brokers.create_topic(topic, partitions=3)
    producer = KafkaProducer(
        bootstrap_servers=three_brokers.bootstrap,
        acks="all",
        request_timeout_ms=5_000,  # of one that is paused
    )
    getattr(node, end)()
    for future in [producer.send(topic, b"while it is away", partition=one) for one in range(3)]:
        assert future.get(60).offset == 0
    (node.resume if end == "pause" else node.start)()
    for future in [producer.send(topic, b"since it is back", partition=one) for one in range(3)]:
        assert future.get(60).offset == 1
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=three_brokers.bootstrap)
    partitions = [TopicPartition(topic, number) for number in range(3)]
    assert consumer.end_offsets(partitions) == dict.fromkeys(partitions, 2)
    consumer.close()
