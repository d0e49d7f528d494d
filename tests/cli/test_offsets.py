"""`monitor offsets` as a person calls it: look, be asked, move, and be refused with the field named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from monitor.settings import load
from tests.cli.conftest import Cli
from tests.scenes.growing import at_work
from tests.scenes.moving import STORED
from tests.worker.working import number, prompts, send, wait_for


@pytest.fixture
def read(
    database: Engine,
    migrated_url: str,
    kafka_bootstrap: str,
    topic: str,
    configured: Callable[..., Path],
) -> Path:
    """The configuration of a group that has read ten records of its topic; two came since."""
    config = configured(
        postgres={"url": migrated_url},
        kafka={
            "bootstrap_servers": kafka_bootstrap,
            "topics": [topic],
            "group_id": topic,
            "start_at": "earliest",
            "dead_letter_topic": None,
        },
    )
    send(kafka_bootstrap, topic, prompts(10))
    with at_work(database, load(config)):
        wait_for(lambda: number(database, STORED) == 10, "ten are stored")
    send(kafka_bootstrap, topic, prompts(2, start=10))
    return config


def test_what_is_left_to_read_is_shown_moved_and_asked_for(cli: Cli, read: Path) -> None:
    (row,) = json.loads(cli("offsets", "show", "--json", config=read).out)
    assert (row["reads_on_at"], row["log_end"], row["to_read"]) == (10, 12, 2)
    refused = cli("offsets", "move", "--to", "latest", config=read)
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert "2 offsets that were never read are skipped" in refused.err
    done = cli("offsets", "move", "--to", "latest", "--yes", "--json", config=read)
    assert done.code == 0
    (row,) = json.loads(cli("offsets", "show", "--json", config=read).out)
    assert (row["reads_on_at"], row["to_read"]) == (12, 0)
    assert cli("offsets", "move", "--to", "2020-01-01T00:00:00Z", "--yes", config=read).code == 0
    (row,) = json.loads(cli("offsets", "show", "--json", config=read).out)
    assert (row["reads_on_at"], row["to_read"]) == (0, 2), "ten were read already"


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("soon", "write earliest, latest, an offset, or a time like"),
        ("2026-03-01T12:00:00", "say the zone"),
        ("99", "the log holds the offsets 0 to 12, not 99"),
    ],
)
def test_a_target_that_cannot_be_is_refused(cli: Cli, read: Path, to: str, said: str) -> None:
    refused = cli("offsets", "move", "--to", to, "--yes", config=read)
    assert (refused.code, said in " ".join(refused.err.split())) == (2, True), refused.err
