"""Whatever stands on the command line is a value: never SQL, never a format, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from sqlalchemy import Engine, text

from monitor.cli.main import app
from tests.cli.conftest import Cli

GROUPS = ("alerts", "baseline", "deliveries", "offsets")
HOSTILE = (
    "x'; DROP SCHEMA monitor_data CASCADE; --",
    "1 OR 1=1",
    "%s %(x)s %",
    ":now {0} {x.__class__}",
    "\\'; SELECT pg_sleep(100); --",
    "[/red] [link=http://x]y[/link]",
    "\u202e\ud800\x1b[2J\n\r\u2028",
    "x" * 100_000,
)


def commands() -> Iterator[tuple[str, ...]]:
    root: Any = typer.main.get_command(app)
    for group in GROUPS:
        for name in root.commands[group].commands:
            yield group, name
    yield ("migrate",)


def of(path: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(app)
    for name in path:
        found = found.commands[name]
    return found


def calls(path: tuple[str, ...], value: str) -> Iterator[list[str]]:
    """The command with ``value`` as its arguments, and in each option that takes one."""
    params = of(path).params
    given = [value for one in params if one.param_type_name == "argument"]
    needed: list[str] = []
    for one in params:
        if one.param_type_name == "option" and one.required:
            needed += [one.opts[0], value]
    tail = ["--yes"] if any("--yes" in one.opts for one in params) else []
    yield [*path, *needed, *tail, "--", *given]
    for one in params:
        name = one.opts[0]
        if one.param_type_name == "option" and not one.is_flag and name not in ("--config",):
            yield [*path, *needed, name, value, *tail, "--", *given]


@pytest.fixture
def config(tmp_path: Path, migrated_url: str, kafka_bootstrap: str, topic: str) -> Path:
    path = tmp_path / "monitor.yaml"
    content = {
        "postgres": {"url": migrated_url},
        "kafka": {"bootstrap_servers": kafka_bootstrap, "topics": [topic]},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def tables(database: Engine) -> int:
    with database.connect() as c:
        return c.scalar(text("SELECT count(*) FROM pg_class WHERE relname !~ '_p2'")) or 0


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_an_argument_is_a_value(
    cli: Cli, config: Path, database: Engine, path: tuple[str, ...]
) -> None:
    before = tables(database)
    for value in HOSTILE:
        for call in calls(path, value):
            ended = cli(*call[: call.index("--")], "--config", config, *call[call.index("--") :])
            said = ended.out + ended.err
            assert "Traceback" not in said, f"{call}: {said[-2_000:]}"
            assert "syntax error" not in said, f"{call}: {said[-2_000:]}"
            assert "defect of the monitor" not in said, f"{call}: {said[-2_000:]}"
            assert ended.code in (0, 1, 2), call
            assert "\x1b[2J" not in said, "a terminal would do what it says"
    assert tables(database) == before
