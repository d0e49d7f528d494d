"""A password that is changed while the monitor reads: the file is read anew, and no record is missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import ConfigurationError
from monitor.ingest.kafka import KafkaSource
from monitor.settings import KafkaSettings
from tests.kafka.apache import Cluster, kafka_home
from tests.scenes.kafka_source import Offsets, drain, holding, ingest, produce, settings, wait_for

USER = "rotated"


@pytest.fixture(scope="module")
def forgetful(server_folder) -> Iterator[Cluster]:
    """A broker that wants to be told the password again every few seconds."""
    home, options = kafka_home(), {"connections.max.reauth.ms": "3000"}
    assert home
    with server_folder("kafka") as folder, Cluster(folder, home, options=options) as cluster:
        yield cluster


def change_password(kafka: Cluster, password: str) -> None:
    kafka.tool(
        "kafka.admin.ConfigCommand",
        *("--alter", "--entity-type", "users", "--entity-name", USER),
        *("--add-config", f"SCRAM-SHA-512=[password={password}]"),
    )


def by_file(kafka: Cluster, topic: str, password_file: Path) -> KafkaSettings:
    kafka.create_topic(topic)
    kafka.allow(f"User:{USER}", "Read", on=("--topic", topic))
    kafka.allow(f"User:{USER}", "Read", on=("--group", f"group-{topic}"))
    return settings(
        kafka.addresses("SASL_SSL"),
        topic,
        security_protocol="SASL_SSL",
        ssl_cafile=kafka.authority.certificate,
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username=USER,
        sasl_password_file=password_file,
    )


def test_the_new_password_is_taken_from_the_file(forgetful: Cluster, tmp_path: Path) -> None:
    file, offsets = tmp_path / "password", Offsets()
    file.write_text("before")
    change_password(forgetful, "before")
    asked = by_file(forgetful, "rotated-in-time", file)
    with KafkaSource(asked, ingest(), offsets) as source:
        produce(forgetful.bootstrap, "rotated-in-time", range(50))
        for chunk in drain(source, holding(50)):
            offsets.store(chunk)
            source.commit(chunk.spans)
        file.write_text("after")
        change_password(forgetful, "after")
        wait_for(lambda: not source.assigned(), "the old password is refused", 60.0)
        wait_for(lambda: bool(source.assigned()), "the new one is taken", 60.0)
        produce(forgetful.bootstrap, "rotated-in-time", range(50, 100))
        for chunk in drain(source, holding(50)):
            offsets.store(chunk)
        assert source.problem == ""
    assert offsets.values["rotated-in-time", 0] == list(range(100))


def test_a_file_that_stays_behind_ends_the_source_with_the_key(
    forgetful: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("before")
    change_password(forgetful, "before")
    with KafkaSource(by_file(forgetful, "rotated-too-late", file), ingest(), Offsets()) as source:
        wait_for(lambda: bool(source.assigned()), "reading has begun", 60.0)
        change_password(forgetful, "after")
        with pytest.raises(ConfigurationError, match=r"kafka\.sasl|Authentication failed"):
            drain(source, lambda _: False)
