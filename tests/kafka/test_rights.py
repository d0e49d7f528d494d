"""What `monitor doctor` learns of a principal's rights, before there is a group or a record."""

from __future__ import annotations

import pytest

from monitor.ingest.kafka import rights
from monitor.settings import KafkaSettings
from tests.kafka.apache import USERS, Cluster


@pytest.fixture(scope="module")
def topics(kafka: Cluster) -> tuple[str, str]:
    for name in ("rights", "rights.dead"):
        kafka.create_topic(name)
    return "rights", "rights.dead"


def settings(kafka: Cluster, group: str, *, topic: str = "rights") -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=kafka.addresses("SASL_SSL"),
        security_protocol="SASL_SSL",
        ssl_cafile=kafka.authority.certificate,
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="monitor",
        sasl_password=USERS["monitor"],
        topics=(topic,),
        group_id=group,
        dead_letter_topic="rights.dead",
    )


def test_each_missing_right_is_told_and_the_commands_grant_it(
    kafka: Cluster, topics: tuple[str, str]
) -> None:
    asked = settings(kafka, "rights-group")
    lacking = rights(asked)
    assert lacking.principal == "User:monitor"
    assert [str(right) for right in lacking.missing] == [
        "READ on the topic rights",
        "READ on the group rights-group",
        "WRITE on the topic rights.dead",
    ]
    assert not lacking.granted
    for command in lacking.commands("there:9092").split("; "):
        name, *arguments = command.replace("there:9092", kafka.bootstrap).split()
        assert name == "kafka-acls.sh"
        kafka.tool("org.apache.kafka.tools.AclCommand", *arguments[2:])
    granted = rights(asked)
    assert not granted.missing
    assert not granted.untold
    assert set(granted.granted) == set(lacking.missing)


def test_to_describe_is_not_to_read(kafka: Cluster, topics: tuple[str, str]) -> None:
    kafka.create_topic("rights.seen")
    kafka.allow("User:monitor", "Describe", on=("--topic", "rights.seen"))
    kafka.allow("User:monitor", "Describe", on=("--group", "seen-group"))
    seen = rights(settings(kafka, "seen-group", topic="rights.seen"))
    assert {str(right) for right in seen.missing} >= {
        "READ on the topic rights.seen",
        "READ on the group seen-group",
    }


def test_who_may_do_all_lacks_nothing(kafka: Cluster, topics: tuple[str, str]) -> None:
    asked = KafkaSettings(
        bootstrap_servers=kafka.bootstrap,
        topics=("rights", "rights.not-there"),
        dead_letter_topic="rights.dead",
    )
    found = rights(asked)
    assert found.principal == "User:ANONYMOUS"
    assert not found.missing
    assert [right.name for right in found.untold] == ["rights.not-there"]
