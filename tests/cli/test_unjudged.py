"""A pack that nobody judged, or a rule on what does not ship: refused, unless the configuration allows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.alert.judged import not_shown
from monitor.alert.rules import watches
from monitor.demo.stage import RULES
from monitor.errors import RefuseToStart
from monitor.score.pack import SHIPPED, load_pack, save_pack
from monitor.settings import DriftRule, Settings
from monitor.watcher import Watcher
from tests.cli.conftest import Cli
from tests.traffic import Traffic, settings_of

RULE = {"name": "mine", "features": ["toxic"], "severities": {"warning": {"shift": 0.3}}}


@pytest.fixture(autouse=True)
def _as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONITOR_PACK__ALLOW_UNJUDGED")


@pytest.fixture
def judged_folder(tmp_path: Path, pack_folder: Path) -> Path:
    """``curt`` ships, ``toxic`` does not."""
    decisions = {"curt": "ship", "toxic": "watch-only"}
    features = {name: {"decision": decision} for name, decision in decisions.items()}
    pack = replace(load_pack(pack_folder), report={"judge": {"features": features}})
    save_pack(pack, tmp_path / "judged")
    return tmp_path / "judged"


@pytest.fixture
def started(
    cli: Cli, configured: Callable[..., Path], migrated_url: str, model_folder: Path
) -> Callable[..., Any]:
    """``started(command, pack, **sections)``: how a loop of that command ends."""

    def start(command: str, folder: Path, **sections: Any) -> Any:
        sections = {
            "postgres": {"url": migrated_url},
            # A refusal comes before anything of Kafka is asked.
            "kafka": {"bootstrap_servers": "127.0.0.1:1", "topics": ["t"]},
            "web": {"port": 0},
            "replay": {"model": str(model_folder), "device": "cpu", "dtype": "float32"},
            "pack": {"path": str(folder)},
        } | sections
        return cli(command, config=configured(**sections))

    return start


def test_the_shipped_pack_may_page_by_the_default_rules_and_the_demos() -> None:
    held = load_pack(SHIPPED / "smollm2-135m-instruct")
    for rules in (Settings().drift.rules, [DriftRule.model_validate(one) for one in RULES]):
        assert not_shown(rules, held.selectable, held.verdicts) == ()
        assert any(watches(rule, one) for rule in rules for one in held.selectable)


@pytest.mark.parametrize("command", ["run", "worker"])
def test_a_pack_without_a_report_is_refused(
    started: Callable[..., Any], pack_folder: Path, command: str
) -> None:
    ended = started(command, pack_folder)
    assert ended.code == 2
    assert "rule persona-drift pages on curt, toxic" in ended.err
    assert "monitor pack judge PACK --model PATH --write" in ended.err
    assert "pack.allow_unjudged: true" in ended.err


def test_a_rule_that_names_what_does_not_ship_is_refused(
    started: Callable[..., Any], judged_folder: Path
) -> None:
    ended = started("run", judged_folder, drift={"rules": [RULE]})
    assert ended.code == 2
    assert "rule mine pages on toxic, which the pack's judge calls watch-only" in ended.err


def test_doctor_tells_verdicts_and_what_is_overruled(
    cli: Cli, configured: Callable[..., Path], pack_folder: Path, judged_folder: Path
) -> None:
    def verdicts(folder: Path, **more: Any) -> dict[str, Any]:
        config = configured(
            pack={"path": str(folder)} | more.pop("pack", {}),
            kafka={"bootstrap_servers": "127.0.0.1:1"},
            postgres={"url": "postgresql://127.0.0.1:1/none"},
            **more,
        )
        found = json.loads(cli("doctor", "--skip-model", "--json", config=config).out)
        return next(one for one in found if one["part"] == "verdicts")

    shipped = verdicts(judged_folder)
    assert shipped["well"]
    assert shipped["seen"] == "ship: curt; watch-only: toxic"
    refused = verdicts(pack_folder)
    assert not refused["well"]
    assert "pages on curt, toxic" in refused["seen"]
    assert "pack.allow_unjudged: true" in refused["mend"]
    allowed = verdicts(pack_folder, pack={"allow_unjudged": True})
    assert allowed["well"]
    assert allowed["seen"].startswith("the pack holds no judge's verdict; rule persona-drift pages")
    assert "(allowed by pack.allow_unjudged: true)" in allowed["seen"]


def test_a_watcher_refuses_what_a_live_worker_reads_with(
    database: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The watcher pages, and may have another configuration than the worker."""
    traffic = Traffic(database)
    traffic.minutes(1)
    given = settings_of()
    with pytest.raises(RefuseToStart, match=r"pack test pack: rule .* pages on toxic"):
        Watcher(database, given, clock=traffic.now).step()
    allowing = given.model_copy(
        update={"pack": given.pack.model_copy(update={"allow_unjudged": True})}
    )
    watcher = Watcher(database, allowing, clock=traffic.now)
    watcher.step()
    assert "pack.not_judged" in "".join(capsys.readouterr())
    watcher.step()
    assert "pack.not_judged" not in "".join(capsys.readouterr()), "once"
