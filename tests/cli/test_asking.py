"""Commands that destroy something, or cannot be undone: they say what will be lost, and ask."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine

from monitor import operate
from monitor.cli.main import app
from monitor.score.pack import load_pack
from monitor.store.alerts import active_silences
from monitor.store.baselines import load_baseline
from monitor.store.database import current_revision, transaction
from monitor.store.outbox import Tried, list_deliveries, record_attempts
from monitor.values.alerts import Attempt, DeliveryState, Outcome
from tests.cli.conftest import Cli
from tests.cli.database import engine_of, fired
from tests.traffic import Traffic, settings_of

ASKS = {
    "migrate": "a step down drops tables and columns",
    "demo": "what an earlier demo left running ends, and its history goes",
    "baseline capture": "with --approve the baseline in force is retired",
    "baseline approve": "the baseline in force is retired",
    "baseline retire": "retired is for good",
    "alerts unsilence": "what it held back is announced",
    "deliveries replay": "people are told again",
    "deliveries enable": "what waited is sent",
    "pack build contrast": "a pack in --out is replaced",
    "pack import sae": "a pack in --out is replaced",
    "pack import vectors": "a pack in --out is replaced",
    "pack join": "a pack in --out is replaced",
    "pack covariates": "a pack in --out is replaced",
    "pack select": "a pack in --out is replaced",
    "pack judge": "with --write the pack gets another id",
    "offsets move": "records that were not read are passed over",
}
HARMLESS = {
    **dict.fromkeys(("run", "worker", "watcher", "courier", "web", "sidecar"), "runs"),
    **dict.fromkeys(("doctor", "score", "steer", "gate"), "looks; its reports may be made again"),
    **dict.fromkeys(("config show", "config schema"), "prints"),
    **dict.fromkeys(("backtest", "power"), "read the history; a plot may be made again"),
    "canaries ask": "asks the served endpoint a few short questions; stores nothing",
    "canaries choose": "prints",
    **dict.fromkeys(("baseline list", "alerts list", "alerts silences", "offsets show"), "prints"),
    **dict.fromkeys(("deliveries list", "pack inspect", "pack verify", "pack requalify"), "prints"),
    "alerts ack": "the alert stays, with its end announced; who took it is recorded",
    "alerts silence": "it ends by itself, or by unsilence",
    "realign": "refuses a folder that holds a run",
    "pack build diff": "refuses a folder that holds a pack",
    "model cut": "refuses a folder that is in use",
}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def test_every_command_either_asks_or_is_known_to_be_harmless() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert ASKS.keys() | HARMLESS.keys() == found.keys()
    asking = {
        name
        for name, command in found.items()
        if any("--yes" in parameter.opts for parameter in command.params)
    }
    assert asking == ASKS.keys()


# --- the schema ------------------------------------------------------------------------------------


@pytest.fixture
def with_scores(database: Engine) -> Traffic:
    traffic = Traffic(database)
    traffic.minutes(20)
    return traffic


def test_going_down_says_how_many_rows_of_which_time_go_and_refuses_without_a_yes(
    cli: Cli, on_database: Path, with_scores: Traffic
) -> None:
    head = current_revision(engine_of(on_database))
    refused = cli("migrate", "--revision", "base", config=on_database)
    assert refused.code == 2
    assert "--yes" in refused.err
    lost = " ".join(refused.err.split())
    assert f"from {head} to base" in lost
    with transaction(engine_of(on_database)) as c:
        n, since, until = c.exec_driver_sql(
            "SELECT count(*), min(bucket_start), max(bucket_start) FROM monitor_data.buckets"
        ).one()
    assert f"buckets: {n} rows, {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}" in lost
    assert "views" in lost
    assert "feature_scores" in lost
    assert current_revision(engine_of(on_database)) == head, "asking changed nothing"
    assert cli("migrate", "--revision", "-1", config=on_database).code == 2
    older = cli("migrate", "--revision", "0001", config=on_database)
    assert older.code == 2
    assert "views" in older.err
    assert "buckets: " not in older.err, "tables of 0001 stay"

    done = cli("migrate", "--revision", "base", "--yes", config=on_database)
    assert done.code == 0
    assert "buckets:" in done.err, "what was lost is said with --yes as well"
    assert current_revision(engine_of(on_database)) is None


def test_going_up_asks_nothing(
    cli: Cli, postgres_url: str, configured: Callable[..., Path]
) -> None:
    config = configured(postgres={"url": postgres_url})
    for _ in range(2):
        up = cli("migrate", config=config)
        assert up.code == 0
        assert "lost" not in up.err


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_at_a_terminal_a_person_decides(on_database: Path, answer: str, code: int) -> None:
    head = current_revision(engine_of(on_database))
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "monitor", "migrate", "--revision", "base"),
            *("--config", str(on_database)),
        ],
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == code, ended.stderr
    assert ("nothing was changed" in ended.stderr) == (code == 1)
    assert current_revision(engine_of(on_database)) == (head if code else None)


# --- baselines -------------------------------------------------------------------------------------


def test_retiring_or_replacing_the_baseline_in_force_asks(
    cli: Cli, on_database: Path, database: Engine, with_scores: Traffic
) -> None:
    with_scores.approve(settings_of())
    with transaction(database) as c:
        in_force = load_baseline(c, pack_id="pack-1")
        assert in_force
        draft = operate.capture_baseline(
            c,
            settings_of(),
            name="the next",
            start=datetime.now(UTC) - timedelta(hours=6),
            end=datetime.now(UTC),
            now=datetime.now(UTC),
        )
    replacing = ("baseline", "capture", "--last", "6h", "--approve")
    for command in (
        ("baseline", "retire", in_force.baseline_id),
        ("baseline", "approve", draft.baseline_id),
        replacing,
    ):
        refused = cli(*command, config=on_database)
        assert refused.code == 2, command
        assert in_force.name in refused.err
        assert "1200 prompts" in refused.err
        assert "--yes" in refused.err
    rows = json.loads(cli("baseline", "list", "--json", config=on_database).out)
    assert {row["status"] for row in rows} == {"draft", "approved"}
    assert len(rows) == 2, "nothing was captured either"
    retired = cli("baseline", "retire", in_force.baseline_id, "--yes", config=on_database)
    assert retired.code == 0
    assert "no drift is seen" in retired.err
    first = cli("baseline", "approve", draft.baseline_id, config=on_database)
    assert first.code == 0, "nothing is replaced: nothing is asked"


# --- alerts and deliveries -------------------------------------------------------------------------


def test_ending_a_silence_asks(cli: Cli, on_database: Path, database: Engine) -> None:
    made = cli(
        *("alerts", "silence", "feature=toxic-*", "--by", "ada", "--comment", "retraining"),
        "--json",
        config=on_database,
    )
    (row,) = json.loads(made.out)
    refused = cli("alerts", "unsilence", row["silence_id"], config=on_database)
    assert refused.code == 2
    for word in ("feature=toxic-*", "ada", "retraining", "--yes"):
        assert word in refused.err
    with transaction(database) as c:
        assert len(active_silences(c, datetime.now(UTC))) == 1
    assert cli("alerts", "unsilence", row["silence_id"], "--yes", config=on_database).code == 0


def test_sending_again_says_who_is_told_what(cli: Cli, on_database: Path, database: Engine) -> None:
    now = datetime.now(UTC)
    fired(database, now)
    with transaction(database) as c:
        (delivery,) = list_deliveries(c, endpoint="ops")
        attempt = Attempt(
            attempted_at=now,
            outcome=Outcome.DELIVERED,
            status=200,
            latency_seconds=0.1,
            error="",
        )
        record_attempts(
            c,
            [
                Tried(
                    delivery_id=delivery.delivery_id,
                    attempt=attempt,
                    state=DeliveryState.DELIVERED,
                    next_at=None,
                )
            ],
        )
    refused = cli("deliveries", "replay", delivery.delivery_id, config=on_database)
    assert refused.code == 2
    for word in ("ops", "drift.detected", "toxic [drifted]"):
        assert word in refused.err
    with transaction(database) as c:
        assert list_deliveries(c, endpoint="ops")[0].state is DeliveryState.DELIVERED
    assert cli("deliveries", "replay", 4_711, "--yes", config=on_database).code == 2
    waiting = cli("deliveries", "enable", "chat", config=on_database)
    assert waiting.code == 2
    assert "1 delivery waits" in waiting.err
    assert cli("deliveries", "enable", "ops", config=on_database).code == 0, "nothing waits"
    again = cli("deliveries", "replay", delivery.delivery_id, "--yes", config=on_database)
    assert again.code == 0


# --- folders ---------------------------------------------------------------------------------------


def test_a_pack_in_the_way_is_named_and_not_overwritten(
    cli: Cli, pack_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(pack_folder, taken := tmp_path / "taken")
    before = load_pack(taken).pack_id
    model = tmp_path / "no-model"
    for command in (
        ("pack", "join", pack_folder, pack_folder, "--name", "a", "--version", "2"),
        ("pack", "build", "contrast", "--model", model),
        ("pack", "import", "sae", tmp_path / "none", "--latent", 1, "--model", model),
    ):
        refused = cli(*command, "--out", taken)
        assert refused.code == 2, refused.err
        said = " ".join(refused.err.split())
        assert f"tiny 1, id {before[:12]}" in said
        assert "--yes" in said
    assert load_pack(taken).pack_id == before


def test_a_demo_never_deletes_a_folder_that_is_not_its_own(cli: Cli, tmp_path: Path) -> None:
    for name in ("postgres", "letters"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    (tmp_path / "mine" / "letters" / "one.txt").write_text("dear")
    for more in ((), ("--yes",)):
        refused = cli("demo", "--state", tmp_path / "mine", "--cache", tmp_path / "cache", *more)
        assert refused.code == 2
        assert "is not a demo's" in refused.err
    assert (tmp_path / "mine" / "letters" / "one.txt").read_text() == "dear"
