"""Every command but the loops: what it prints, how it refuses, and with which exit code."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
import yaml
from sqlalchemy import Engine

from monitor.research.texts import exchange
from monitor.score.pack import save_pack
from monitor.store.alerts import active_silences
from monitor.store.baselines import load_baseline
from monitor.store.database import current_revision, transaction
from monitor.values.features import Part
from monitor.values.prompts import Message
from tests.cli.conftest import Cli
from tests.cli.database import engine_of, fired
from tests.scenes.packs import drawn, feature, pack_of
from tests.traffic import Traffic, counted_by_the_release_before

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


# --- help and configuration ------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    commands = "run worker watcher courier web sidecar migrate doctor score demo"
    for command in f"{commands} baseline alerts deliveries canaries offsets pack config".split():
        assert f"│ {command} " in shown.out


@pytest.mark.parametrize("group", ["baseline", "alerts", "deliveries", "offsets", "pack", "config"])
def test_a_group_without_a_command_prints_its_help(cli: Cli, group: str) -> None:
    shown = cli(group)
    assert shown.code == 2
    assert "Commands" in shown.out + shown.err


def test_an_unknown_key_is_refused_with_the_near_one(
    cli: Cli, configured: Callable[..., Path]
) -> None:
    refused = cli("config", "show", config=configured(kafka={"bootstrap_server": "a:1"}))
    assert refused.code == 2
    assert "kafka.bootstrap_server: unknown key; did you mean 'bootstrap_servers'?" in refused.err
    assert "monitor config schema" in refused.err
    assert "Traceback" not in refused.err


def test_an_unknown_variable_is_refused_with_the_near_one(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITOR_KAFKKA__TOPICS", '["a"]')
    refused = cli("config", "show")
    assert refused.code == 2
    assert "MONITOR_KAFKKA__TOPICS is no setting; did you mean MONITOR_KAFKA__" in refused.err


def test_a_missing_configuration_file_is_refused_in_one_unbroken_sentence(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / ("long-" * 30) / "none.yaml"
    refused = cli("config", "show", config=path)
    assert refused.code == 2
    assert f"cannot read {path}: No such file" in refused.err


def test_show_hides_every_secret(cli: Cli, configured: Callable[..., Path]) -> None:
    config = configured(
        postgres={"url": "postgresql+psycopg://u:hunter2@db/monitor"},
        kafka={
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "u",
            "sasl_password": "hunter2",
            "client_options": {"ssl_password": "hunter2", "fetch_min_bytes": 10},
        },
        privacy={"hash_key": "hunter2"},
        alerts={
            "endpoints": [
                {
                    "name": "ops",
                    "url": "https://example.org/hook",
                    "secret": WHSEC,
                    "headers": {"authorization": "hunter2"},
                },
                {"name": "chat", "url": "https://u:hunter2@chat.test/hunter2", "format": "slack"},
            ]
        },
    )
    as_yaml, as_json = (
        cli("config", "show", config=config),
        cli("config", "show", "--json", config=config),
    )
    assert as_yaml.code == as_json.code == 0
    assert yaml.safe_load(as_yaml.out) == json.loads(as_json.out)
    for shown in (as_yaml.out, as_json.out):
        assert "hunter2" not in shown
        assert WHSEC not in shown
    content = json.loads(as_json.out)
    assert content["kafka"]["sasl_username"] == "u"
    assert content["kafka"]["client_options"]["fetch_min_bytes"] == 10
    assert content["alerts"]["endpoints"][1]["url"].startswith("https://chat.test/")


def test_the_schema_is_a_json_schema_that_accepts_what_show_prints(
    cli: Cli, configured: Callable[..., Path]
) -> None:
    schema = json.loads(cli("config", "schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    shown = json.loads(cli("config", "show", "--json", config=configured()).out)
    assert list(validator.iter_errors(shown)) == []
    assert not validator.is_valid(shown | {"kafak": {}})


# --- the schema and an empty database --------------------------------------------------------------


def test_migrate_makes_the_schema_and_every_list_is_empty(
    cli: Cli, postgres_url: str, configured: Callable[..., Path]
) -> None:
    config = configured(postgres={"url": postgres_url})
    refused = cli("alerts", "list", config=config)
    assert refused.code == 2
    assert "monitor migrate" in refused.err

    assert cli("migrate", config=config).code == 0
    for group in ("baseline", "alerts", "deliveries"):
        listed = cli(group, "list", "--json", config=config)
        assert listed.code == 0
        assert json.loads(listed.out) == []
        assert cli(group, "list", config=config).out == "nothing to show\n"


def test_migrate_goes_down_and_refuses_what_it_does_not_know(cli: Cli, on_database: Path) -> None:
    head = current_revision(engine_of(on_database))
    assert cli("migrate", "--revision", "-1", "--yes", config=on_database).code == 0
    assert current_revision(engine_of(on_database)) != head
    refused = cli("migrate", "--revision", "nosuch", config=on_database)
    assert refused.code == 2
    assert "nosuch" in refused.err


def test_no_database_is_a_sentence_and_not_a_traceback(
    cli: Cli, configured: Callable[..., Path]
) -> None:
    config = configured(postgres={"url": "postgresql+psycopg://u:hunter2@127.0.0.1:1/none"})
    refused = cli("alerts", "list", config=config)
    assert refused.code == 2
    assert "Connection refused" in refused.err
    assert "hunter2" not in refused.err


# --- baselines -------------------------------------------------------------------------------------


def test_capture_without_a_worker_says_what_to_do_first(cli: Cli, on_database: Path) -> None:
    refused = cli("baseline", "capture", config=on_database)
    assert refused.code == 2
    assert "no worker has registered a pack yet: start one" in refused.err


def test_capture_of_too_few_prompts_names_how_many_are_needed(
    cli: Cli, on_database: Path, database: Engine
) -> None:
    Traffic(database).minutes(2)
    refused = cli("baseline", "capture", "--last", "6h", config=on_database)
    assert refused.code == 2
    assert "120" in refused.err
    assert "1000" in refused.err.replace(",", "")
    assert json.loads(cli("baseline", "list", "--json", config=on_database).out) == []


@pytest.mark.parametrize("span", ["24", "h", "0h", "-1h", "1w", "1.5h"])
def test_a_span_that_is_none_is_refused(cli: Cli, on_database: Path, span: str) -> None:
    refused = cli("baseline", "capture", f"--last={span}", config=on_database)
    assert refused.code == 2
    assert "write 90m, 24h or 7d" in refused.err


def test_a_baseline_is_captured_approved_replaced_and_retired(
    cli: Cli, on_database: Path, database: Engine
) -> None:
    Traffic(database).minutes(20)

    def capture(*more: str) -> str:
        made = cli("baseline", "capture", "--last", "6h", "--json", *more, config=on_database)
        assert made.code == 0, made.err
        (row,) = json.loads(made.out)
        assert row["n"] == 1_200
        assert row["status"] == ("approved" if more else "draft")
        return str(row["baseline_id"])

    def statuses() -> dict[str, str]:
        rows = json.loads(cli("baseline", "list", "--json", config=on_database).out)
        return {row["baseline_id"]: row["status"] for row in rows}

    first = capture()
    approved = cli("baseline", "approve", first, "--by", "ada", config=on_database)
    assert approved.code == 0
    assert approved.out == f"{first} is approved\n"
    with transaction(database) as c:
        in_force = load_baseline(c, pack_id="pack-1")
    assert in_force
    assert (in_force.baseline_id, in_force.approved_by) == (first, "ada")

    again = cli("baseline", "approve", first, config=on_database)
    assert again.code == 2
    assert "only a draft can be approved" in again.err

    second = capture("--approve", "--by", "bob", "--yes")
    assert statuses() == {first: "retired", second: "approved"}
    assert cli("baseline", "retire", second, "--yes", config=on_database).code == 0
    assert statuses() == {first: "retired", second: "retired"}
    unknown = cli("baseline", "retire", "bl-none", config=on_database)
    assert unknown.code == 2
    assert "bl-none" in unknown.err


def test_capture_and_approval_name_the_tails_that_the_release_before_left_wrong(
    cli: Cli, on_database: Path, database: Engine
) -> None:
    Traffic(database).minutes(20)
    counted_by_the_release_before(database)
    made = cli("baseline", "capture", "--last", "6h", "--json", config=on_database)
    (row,) = json.loads(made.out)
    approved = cli("baseline", "approve", row["baseline_id"], "--by", "ada", config=on_database)
    for said in (made, approved):
        assert said.code == 0
        assert f"the tail of assistant is not watched under {row['baseline_id']}" in said.err
        assert "Capture a baseline of traffic scored after" in said.err


def test_a_user_without_a_name_must_give_one(
    cli: Cli, on_database: Path, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the process may run as a number that no passwd knows."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    Traffic(database).minutes(20)
    monkeypatch.setattr(getpass, "getuser", nobody)
    refused = cli("baseline", "capture", "--last", "6h", "--approve", config=on_database)
    assert refused.code == 2
    assert "--by" in refused.err
    assert json.loads(cli("baseline", "list", "--json", config=on_database).out) == []


# --- alerts and deliveries -------------------------------------------------------------------------


def test_an_alert_is_listed_and_acknowledged(cli: Cli, on_database: Path, database: Engine) -> None:
    alert = fired(database, datetime.now(UTC))
    assert cli("alerts", "ack", alert.alert_id, "--by", "ada", config=on_database).code == 0
    (row,) = json.loads(cli("alerts", "list", "--json", config=on_database).out)
    assert row["feature"] == "toxic"
    assert row["state"] == "firing"
    assert row["acknowledged_by"] == "ada"
    table = cli("alerts", "list", config=on_database).out
    assert "toxic [drifted]" in table
    assert "AlertState" not in table
    unknown = cli("alerts", "ack", "alert-none", config=on_database)
    assert unknown.code == 2
    assert "alert-none" in unknown.err


def test_deliveries_are_listed_by_endpoint_and_sent_again(
    cli: Cli, on_database: Path, database: Engine
) -> None:
    fired(database, datetime.now(UTC))
    rows = json.loads(cli("deliveries", "list", "--json", config=on_database).out)
    assert {row["endpoint"] for row in rows} == {"ops", "chat"}
    assert {row["state"] for row in rows} == {"waiting"}
    (row,) = json.loads(
        cli("deliveries", "list", "--json", "--endpoint", "ops", config=on_database).out
    )
    assert cli("deliveries", "replay", row["delivery_id"], "--yes", config=on_database).code == 0
    assert cli("deliveries", "replay", 4_711, config=on_database).code == 2
    assert (
        "1"
        not in cli("deliveries", "list", "--json", "--state", "delivered", config=on_database).out
    )
    wrong = cli("deliveries", "list", "--state", "lost", config=on_database)
    assert wrong.code == 2
    assert "waiting" in wrong.err


def test_a_silence_is_stored_as_it_was_given(cli: Cli, on_database: Path, database: Engine) -> None:
    made = cli(
        *("alerts", "silence", "feature=toxic-*", "segment=all", "--for", "30m"),
        *("--by", "ada", "--comment", "retraining", "--json"),
        config=on_database,
    )
    assert made.code == 0
    (row,) = json.loads(made.out)
    assert row["matchers"] == {"feature": "toxic-*", "segment": "all"}
    with transaction(database) as c:
        (silence,) = active_silences(c, datetime.now(UTC))
    assert silence.ends_at - silence.starts_at == timedelta(minutes=30)
    assert (silence.created_by, silence.comment) == ("ada", "retraining")
    (listed,) = json.loads(cli("alerts", "silences", "--json", config=on_database).out)
    assert listed["silence_id"] == silence.silence_id
    assert cli("alerts", "unsilence", silence.silence_id, "--yes", config=on_database).code == 0
    assert json.loads(cli("alerts", "silences", "--json", config=on_database).out) == []


@pytest.mark.parametrize(
    ("match", "said"),
    [
        (["featur=toxic"], "unknown label 'featur': a silence matches on rule, feature, segment"),
        (["toxic"], "'toxic' is no label=glob"),
        (["feature="], "'feature=' is no label=glob"),
        (["feature=a", "feature=b"], "a label is given twice"),
        ([], "Missing argument"),
    ],
)
def test_a_silence_that_would_not_mean_what_it_says_is_refused(
    cli: Cli, on_database: Path, database: Engine, match: list[str], said: str
) -> None:
    refused = cli("alerts", "silence", *match, config=on_database)
    assert refused.code == 2
    assert said in refused.err
    with transaction(database) as c:
        assert active_silences(c, datetime.now(UTC)) == []


# --- packs -----------------------------------------------------------------------------------------


def test_inspect_shows_what_the_pack_reads(cli: Cli, pack_folder: Path) -> None:
    shown = cli("pack", "inspect", pack_folder)
    assert shown.code == 0
    for word in ("tiny", "curt", "toxic", "layers.1", "response"):
        assert word in shown.out
    content = json.loads(cli("pack", "inspect", pack_folder, "--json").out)
    assert content == json.loads((pack_folder / "pack.json").read_text())


def test_a_composite_shows_its_sites_and_its_canaries_are_verified(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    parts = (Part(site=2, weight=drawn(4)), Part(site=0, weight=drawn(5)))
    both = feature("both", drawn(3), parts=parts)
    canary = exchange((Message(role="user", content="hello"),), "good day")
    pack = pack_of(model_folder, [both], canary=canary)
    save_pack(pack, tmp_path / "pack")
    assert "layers.0+1+2" in cli("pack", "inspect", tmp_path / "pack").out
    assert cli("pack", "verify", tmp_path / "pack", "--model", model_folder).code == 0
    other = both.along(-both.direction)
    save_pack(replace(pack, features=(other,)), tmp_path / "turned")
    turned = cli("pack", "verify", tmp_path / "turned", "--model", model_folder, "--json")
    assert turned.code == 1
    assert json.loads(turned.out)[0]["canary_deviation"] > 0.05


def test_inspect_refuses_a_folder_without_a_pack(cli: Cli, tmp_path: Path) -> None:
    refused = cli("pack", "inspect", tmp_path / "none")
    assert refused.code == 2
    assert "does not exist" in refused.err


def test_verify_tells_the_packs_model_from_another(
    cli: Cli, pack_folder: Path, model_folder: Path, other_model_folder: Path
) -> None:
    well = cli("pack", "verify", pack_folder, "--model", model_folder, "--json")
    assert well.code == 0
    (report,) = json.loads(well.out)
    assert report["problems"] == []
    assert report["canary_deviation"] <= report["tolerance"]

    other = cli("pack", "verify", pack_folder, "--model", other_model_folder, "--json")
    assert other.code == 1
    (report,) = json.loads(other.out)
    assert "the model's weights differ" in report["problems"][0]
    assert report["canary_deviation"] > report["tolerance"]
