"""`monitor doctor`: every part is looked at, whatever the others are like."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.score.pack import load_pack, save_pack
from tests.cli.conftest import Cli, Ended
from tests.test_watcher import Traffic, settings_of

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def parts_of(ended: Ended) -> dict[str, dict[str, Any]]:
    return {row["part"]: row for row in json.loads(ended.out)}


@pytest.fixture
def listening() -> Iterator[int]:
    """The port of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_every_part_that_is_wrong_says_so_and_how_to_mend_it(
    cli: Cli, configured: Callable[..., Path], tmp_path: Path
) -> None:
    config = configured(
        replay={"model": str(tmp_path / "no-model")},
        pack={"path": str(tmp_path / "no-pack")},
        postgres={"url": "postgresql+psycopg://u:hunter2@127.0.0.1:1/none"},
        kafka={"bootstrap_servers": "127.0.0.1:1"},
        alerts={
            "endpoints": [
                {"name": "deaf", "url": "http://127.0.0.1:1/hook", "format": "slack"},
                {"name": "keyless", "url": "http://127.0.0.1:1/hook", "secret": "not-a-key"},
                {"name": "hostless", "url": "http://", "format": "slack"},
                {"name": "portless", "url": "http://a:99999999/", "format": "slack"},
                {"name": "fileless", "url": "http://a/", "secret_file": str(tmp_path / "none")},
            ]
        },
    )
    ended = cli("doctor", "--json", config=config)
    assert ended.code == 1
    assert "hunter2" not in ended.out + ended.err
    parts = parts_of(ended)
    assert [name for name, row in parts.items() if row["well"]] == ["configuration"]
    said = {
        "pack": "no-pack does not exist",
        "model": "no-model",
        "postgres": "Connection refused",
        "baseline": "Connection refused",
        "kafka": "127.0.0.1:1: Connection refused",
        "endpoint deaf": "127.0.0.1 cannot be reached",
        "endpoint keyless": "secret",
        "endpoint hostless": "names no host",
        "endpoint portless": "",
        "endpoint fileless": "secret_file: cannot read",
    }
    assert set(parts) == {"configuration", *said}
    for part, words in said.items():
        assert words in parts[part]["seen"]
    assert "no " in cli("doctor", "--skip-model", config=config).out


def test_nothing_configured_names_the_schema_the_topics_and_the_endpoints(
    cli: Cli, configured: Callable[..., Path], postgres_url: str, kafka_bootstrap: str
) -> None:
    config = configured(
        postgres={"url": postgres_url},
        kafka={
            "bootstrap_servers": kafka_bootstrap,
            "topics": ["no-such-topic"],
            "dead_letter_topic": "no-such-dead-letters",
        },
    )
    ended = cli("doctor", "--skip-model", "--json", config=config)
    assert ended.code == 1
    parts = parts_of(ended)
    assert "model" not in parts
    assert "monitor migrate" in parts["postgres"]["mend"]
    assert not parts["baseline"]["well"]
    assert parts["kafka"]["seen"] == (
        "topics that do not exist: no-such-topic, no-such-dead-letters"
    )
    assert parts["endpoints"]["seen"] == "nobody is told of alerts"


def test_all_is_well_with_real_parts(
    cli: Cli,
    configured: Callable[..., Path],
    database: Engine,
    migrated_url: str,
    kafka_bootstrap: str,
    make_topic: Callable[..., str],
    model_folder: Path,
    pack_folder: Path,
    listening: int,
) -> None:
    topic = make_topic(partitions=3)
    config = configured(
        replay={"model": str(model_folder), "device": "cpu"},
        pack={"path": str(pack_folder)},
        postgres={"url": migrated_url},
        kafka={"bootstrap_servers": kafka_bootstrap, "topics": [topic], "dead_letter_topic": None},
        alerts={
            "endpoints": [{"name": "ops", "url": f"http://127.0.0.1:{listening}/", "secret": WHSEC}]
        },
    )
    missing = parts_of(cli("doctor", "--json", config=config))
    assert [name for name, row in missing.items() if not row["well"]] == ["baseline"]
    assert "monitor baseline capture" in missing["baseline"]["mend"]

    traffic = Traffic(database)
    traffic.minutes(20)
    traffic.approve(settings_of())
    ended = cli("doctor", "--json", config=config)
    parts = parts_of(ended)
    assert ended.code == 0, parts
    assert parts["kafka"]["seen"] == f"{topic}: 3 partitions"
    assert "canaries within" in parts["model"]["seen"]
    assert parts["baseline"]["seen"] == "normal, 1200 prompts, approved by a person"


def test_a_pack_of_another_model_and_one_without_canaries(
    cli: Cli,
    configured: Callable[..., Path],
    model_folder: Path,
    other_model_folder: Path,
    pack_folder: Path,
    tmp_path: Path,
) -> None:
    closed = {
        "postgres": {"url": "postgresql+psycopg://127.0.0.1:1/none"},
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
    }

    def model_part(model: Path, pack: Path, **more: bool) -> dict[str, Any]:
        config = configured(
            replay={"model": str(model), "device": "cpu"},
            pack={"path": str(pack), **more},
            **closed,
        )
        return parts_of(cli("doctor", "--json", config=config))["model"]

    silent = configured(
        replay={"model": str(model_folder), "device": "cpu"},
        pack={"path": str(pack_folder)},
        drift={
            "rules": [
                {"name": "typo", "features": ["rekless"], "severities": {"info": {"shift": 1}}}
            ]
        },
        **closed,
    )
    pack_part = parts_of(cli("doctor", "--json", config=silent))["pack"]
    assert "the rule typo selects none of the features" in pack_part["seen"]
    refused = model_part(other_model_folder, pack_folder)
    assert not refused["well"]
    assert "weights differ" in refused["seen"]
    moved = model_part(other_model_folder, pack_folder, other_weights=True)
    assert not moved["well"]
    assert "does not reproduce the pack's canaries" in moved["seen"]

    save_pack(replace(load_pack(pack_folder), canaries=()), bare := tmp_path / "bare")
    unchecked = model_part(model_folder, bare)
    assert unchecked["well"]
    assert "the pack has no canaries" in unchecked["seen"]
