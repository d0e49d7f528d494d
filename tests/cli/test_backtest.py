"""`monitor backtest` as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from monitor.settings import load
from tests.cli.conftest import Cli
from tests.traffic import MINUTE, Traffic


@pytest.fixture
def past(on_database: Path, database: Engine) -> Path:
    """The configuration; behind it twenty ordinary minutes five hours ago, and twelve of a persona."""
    traffic = Traffic(database)
    traffic.minutes(20)
    traffic.approve(load(on_database), last=20 * MINUTE)
    traffic.minutes(12, shift=(2.0, 0.0))
    return on_database


@pytest.fixture
def rules(tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: object) -> Path:
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return file

    return write


LAX = {"name": "lax", "severities": {"info": {"shift": 9.0}}}


def test_the_table_the_drawing_and_the_json_tell_the_same(
    cli: Cli, past: Path, rules: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ["backtest", "--from", "5h", "--to", "4h", "--rules", rules(drift={"rules": [LAX]})]
    drawing = tmp_path / "alerts.svg"
    shown = cli(*asked, "--plot", drawing, config=past)
    assert shown.code == 0, shown.err
    for words in ("in force", "tried", "recorded", "open at the end", "toxic all", "critical"):
        assert words in shown.out
    assert "not_evaluated" in shown.err
    assert drawing.read_text().startswith("<svg")
    assert "toxic all" in drawing.read_text()

    found = json.loads(cli(*asked, "--json", config=past).out)
    alerts = {(a["feature"], a["segment"], a["severity"]) for a in found["in_force"]["alerts"]}
    assert ("toxic", "all", "critical") in alerts
    assert [a for a in found["tried"]["alerts"] if a["kind"] == "drift"] == []
    assert found["recorded"]["alerts"] == [], "no watcher ran"
    first = next(a for a in found["in_force"]["alerts"] if a["feature"] == "toxic")
    assert first["firing_seconds"] > 0
    assert first["fired_at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--from", "tomorrow"], "--from: 'tomorrow' is no date or time"),
        (["--to", "2026-13-01"], "--to: '2026-13-01' is no date or time"),
        (["--from", "1h", "--to", "2h"], "--from: "),
        (["--from", "2020-01-01", "--to", "2020-01-02"], "nothing is stored between"),
        (["--baseline", "none"], "--baseline: there is no baseline 'none'"),
    ],
)
def test_what_is_wrong_is_named(cli: Cli, past: Path, given: list[str], said: str) -> None:
    refused = cli("backtest", *given, config=past)
    assert refused.code == 2
    assert said in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"drift": {"rules": [{**LAX, "window": ["1h"]}]}},
            "drift.rules.0.window: unknown key; did you mean 'windows'?",
        ),
        (
            {"drift": {"confidense": 0.9}},
            "drift.confidense: unknown key; did you mean 'confidence'?",
        ),
        ({"drift": {"confidence": 2}}, "drift.confidence: "),
        ({"drfit": {}}, "drfit: unknown section; did you mean 'drift'?"),
        ({"rules": [LAX]}, "rules: unknown section; known: drift, identity, twin"),
        ({"drift": []}, "drift must hold a mapping"),
        ({"drift": {"bucket": "PT5M"}}, "drift.bucket: "),
        ({"identity": {"share": 0.5}}, "identity.share: stored history was made"),
    ],
)
def test_rules_that_are_wrong_name_the_field(
    cli: Cli, past: Path, rules: Callable[..., Path], sections: dict[str, object], said: str
) -> None:
    refused = cli("backtest", "--from", "5h", "--rules", rules(**sections), config=past)
    assert refused.code == 2
    assert said in refused.err


def test_a_database_without_scores_is_told(cli: Cli, on_database: Path) -> None:
    refused = cli("backtest", config=on_database)
    assert refused.code == 2
    assert "No worker has scored yet" in refused.err
