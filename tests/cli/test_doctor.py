"""`monitor doctor`: every part is looked at, whatever the others are like."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from monitor.score.pack import load_pack, save_pack
from monitor.store.chunks import advance_offsets
from monitor.store.database import transaction
from monitor.store.progress import keep_log_ends
from monitor.values.progress import LogEnd
from monitor.values.prompts import OffsetSpan
from tests.cli.conftest import Cli, Ended
from tests.traffic import Traffic, counted_by_the_release_before, settings_of

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

CLOSED = {
    "postgres": {"url": "postgresql+psycopg://127.0.0.1:1/none"},
    "kafka": {"bootstrap_servers": "127.0.0.1:1"},
}


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
    assert [name for name, row in parts.items() if row["well"]] == ["configuration", "rules"]
    assert "the pack is not known" in parts["rules"]["seen"]
    said = {
        "pack": "no-pack does not exist",
        "model": "no-model",
        "postgres": "Connection refused",
        "packs in use": "Connection refused",
        "baseline": "Connection refused",
        "kafka": "127.0.0.1:1: Connection refused",
        "reading": "Connection refused",
        "endpoint deaf": "127.0.0.1 cannot be reached",
        "endpoint keyless": "secret",
        "endpoint hostless": "names no host",
        "endpoint portless": "",
        "endpoint fileless": "secret_file: cannot read",
    }
    assert set(parts) == {"configuration", "rules", *said}
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


RULE = {"name": "persona", "severities": {"warning": {"shift": 0.3}}}


@pytest.mark.parametrize(
    ("rule", "ingest", "seen", "mend"),
    [
        (
            {"segments": ["all", "route=*"]},
            {},
            "segments: 'route=*' can select nothing with ingest.segment_keys []",
            "Add route to ingest.segment_keys",
        ),
        (
            {"segments": ["rout=*"]},
            {"segment_keys": ["route", "tenant"]},
            "segments: 'rout=*' can select nothing",
            "Did you mean 'route=*'?",
        ),
        ({"segments": ["al"]}, {}, "segments: 'al' can select nothing", "Did you mean 'all'?"),
        ({"segments": ["canar*"]}, {}, "segments: 'canar*' can select nothing", "is reserved"),
        (
            {"features": ["curt", "toxik*"]},
            {},
            "features: 'toxik*' selects none of the pack's features",
            "Did you mean 'toxic'?",
        ),
        ({"features": ["tag:misaligned"]}, {}, "'tag:misaligned' selects none", "knows curt, toxic."),
        ({"features": ["*", "!*"]}, {}, "all that it selects is left out again", "curt, toxic"),
    ],
)  # fmt: skip
def test_a_rule_that_can_select_nothing_is_named_with_its_mend(
    rule: dict[str, Any],
    ingest: dict[str, Any],
    seen: str,
    mend: str,
    cli: Cli,
    configured: Callable[..., Path],
    pack_folder: Path,
) -> None:
    config = configured(
        pack={"path": str(pack_folder)}, ingest=ingest, drift={"rules": [RULE | rule]}, **CLOSED
    )
    ended = cli("doctor", "--skip-model", "--json", config=config)
    assert ended.code == 1
    part = parts_of(ended)["rule persona"]
    assert not part["well"]
    assert seen in part["seen"]
    assert mend in part["mend"]


def test_tags_are_looked_for_in_the_shipped_pack_too(
    cli: Cli, configured: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pack.path the pack is the one shipped for the model; the model's weights are not needed."""
    shipped = load_pack(resources.files("monitor") / "packs" / "smollm2-135m-instruct")
    monkeypatch.setattr("monitor.replay.model.identity_of", lambda _settings: shipped.model)

    def part(*features: str) -> dict[str, Any]:
        rules = [RULE | {"features": list(features)}]
        config = configured(replay={"model": str(tmp_path)}, drift={"rules": rules}, **CLOSED)
        found = parts_of(cli("doctor", "--skip-model", "--json", config=config))
        return found.get("rule persona") or found["rules"]

    assert part("tag:misaligned")["well"]
    wrong = part("tag:misalined", "!tag:watch-olny")
    assert "'tag:misalined' selects none of the pack's features" in wrong["seen"]
    assert "'!tag:watch-olny' leaves out none of the pack's features" in wrong["seen"]
    assert "Did you mean 'tag:misaligned'? Did you mean '!tag:watch-only'?" in wrong["mend"]


def test_no_rule_at_all_and_an_endpoint_that_no_rule_reaches(
    cli: Cli, configured: Callable[..., Path], pack_folder: Path
) -> None:
    none = configured(pack={"path": str(pack_folder)}, drift={"rules": []}, **CLOSED)
    parts = parts_of(cli("doctor", "--skip-model", "--json", config=none))
    assert "no drift is ever told" in parts["drift.rules"]["seen"]
    deaf = configured(
        pack={"path": str(pack_folder)},
        drift={"rules": [RULE], "silence_rules": []},
        alerts={
            "endpoints": [
                {"name": "pager", "url": "http://127.0.0.1:1/", "format": "slack",
                 "min_severity": "critical"}
            ]
        },
        **CLOSED,
    )  # fmt: skip
    parts = parts_of(cli("doctor", "--skip-model", "--json", config=deaf))
    found = parts["min_severity of endpoint pager"]
    assert "no rule reaches critical" in found["seen"]
    assert "Lower it to warning" in found["mend"]


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        ({"rules": [RULE | {"windows": ["15min"]}]}, "did you mean '15m'?"),
        ({"rules": [RULE | {"severities": {}}]}, "severities"),
        ({"rules": [RULE | {"segments": []}]}, "segments"),
        ({"windows": {}}, "windows"),
        ({"silence_rules": [{"name": "lag"}]}, "rule lag needs a limit (records)"),
        ({"average_run_length": "PT1S"}, "drift.average_run_length must be at least drift.bucket"),
    ],
)
def test_a_rule_that_could_never_fire_is_refused_where_no_pack_is_needed_to_tell(
    drift: dict[str, Any], said: str, cli: Cli, configured: Callable[..., Path]
) -> None:
    ended = cli("doctor", config=configured(drift=drift))
    assert ended.code == 2
    assert said in ended.err


def test_a_baseline_with_tails_of_the_release_before_is_to_be_taken_anew(
    cli: Cli, configured: Callable[..., Path], database: Engine, migrated_url: str
) -> None:
    traffic = Traffic(database)
    traffic.minutes(20)
    counted_by_the_release_before(database)
    traffic.approve(settings_of())
    config = configured(postgres={"url": migrated_url})
    found = parts_of(cli("doctor", "--skip-model", "--json", config=config))["baseline"]
    assert not found["well"]
    assert "the tail of assistant is not watched" in found["seen"]
    assert "Capture a baseline" in found["mend"]


def test_two_packs_at_work_are_told_and_each_needs_a_baseline(
    cli: Cli, configured: Callable[..., Path], database: Engine, migrated_url: str
) -> None:
    config = configured(postgres={"url": migrated_url}, kafka={"bootstrap_servers": "127.0.0.1:1"})

    def seen(part: str) -> dict[str, Any]:
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))[part]

    assert seen("packs in use")["seen"] == "no worker is alive"
    first = Traffic(database)
    first.minutes(20)
    first.approve(settings_of())
    other = Traffic(database, pack="pack-2", worker="w2", partition=1)
    now = datetime.now(UTC)
    for traffic in (first, other):
        traffic.minute = now
        traffic.alive()
    packs = seen("packs in use")
    assert packs["well"], "a rollout is no fault"
    assert packs["seen"].startswith("2 packs have live workers: test pack (pack-1, 1 worker), ")
    baseline = seen("baseline")
    assert not baseline["well"]
    assert "pack-2" in baseline["seen"]
    assert "pack-1" not in baseline["seen"]
    assert "capture --last 24h --pack pack-2" in baseline["mend"]
    other.alive("stopped")
    assert seen("packs in use")["seen"] == "test pack, live workers: 1"
    assert seen("baseline")["well"]


def test_a_pack_of_another_model_and_one_without_canaries(
    cli: Cli,
    configured: Callable[..., Path],
    model_folder: Path,
    other_model_folder: Path,
    pack_folder: Path,
    tmp_path: Path,
) -> None:
    def model_part(model: Path, pack: Path, **more: bool) -> dict[str, Any]:
        config = configured(
            replay={"model": str(model), "device": "cpu"},
            pack={"path": str(pack), **more},
            **CLOSED,
        )
        return parts_of(cli("doctor", "--json", config=config))["model"]

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


def test_a_worker_that_is_behind_is_told_with_how_far_and_why(
    cli: Cli, configured: Callable[..., Path], database: Engine, migrated_url: str
) -> None:
    config = configured(postgres={"url": migrated_url}, kafka={"bootstrap_servers": "127.0.0.1:1"})
    now = datetime.now(UTC)
    newest = now - timedelta(minutes=12)

    def told(log_end: int) -> dict[str, Any]:
        end = LogEnd(topic="prompts", partition=1, begins_at=0, log_end=log_end, asked_at=now)
        with transaction(database) as c:
            keep_log_ends(c, "monitor", "w", [end], now)
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))["reading"]

    nothing = parts_of(cli("doctor", "--skip-model", "--json", config=config))["reading"]
    assert nothing["well"]
    assert "has read anything yet" in nothing["seen"]
    span = OffsetSpan(topic="prompts", partition=1, start=0, end=900, log_end=900)
    with transaction(database) as c:
        advance_offsets(c, "monitor", "w", [span], {("prompts", 1): newest})
    assert told(900)["seen"] == "1 partitions, 0 records behind"
    late = told(1_962)
    assert not late["well"]
    assert "12 min behind" in late["seen"] or "13 min behind" in late["seen"]
    assert (
        f"prompts/1 is read up to {newest:%H:%M} UTC, 1062 records behind its end" in late["seen"]
    )
    assert "add workers" in late["mend"]
