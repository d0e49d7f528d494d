"""`monitor doctor`: every part is looked at, whatever the others are like."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import kafka.codec
import psycopg
import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine

from monitor.demo.receiver import Answer, Receiver
from monitor.demo.services import Postgres
from monitor.finding import Finding
from monitor.score.pack import load_pack, save_pack
from monitor.store.chunks import advance_offsets
from monitor.store.database import transaction
from monitor.store.outbox import disable_endpoint
from monitor.store.progress import keep_log_ends
from monitor.store.reading import begin_partitions
from monitor.values.fidelity import Fidelity
from monitor.values.progress import LogEnd
from monitor.values.prompts import OffsetSpan
from tests.cli.conftest import Cli, Ended
from tests.store.builders import chunk, keep, known_pack, scored
from tests.traffic import Traffic, counted_by_the_release_before, settings_of

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

CLOSED = {
    "postgres": {"url": "postgresql+psycopg://127.0.0.1:1/none"},
    "kafka": {"bootstrap_servers": "127.0.0.1:1"},
}


def parts_of(ended: Ended) -> dict[str, dict[str, Any]]:
    return {row["part"]: row for row in json.loads(ended.out)}


def test_a_failed_check_without_a_mend_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="kafka"):
        Finding(subject="kafka", well=False, seen="it is away")
    with pytest.raises(ValueError, match="kafka"):
        Finding(subject="kafka", well=False, seen="it is away", mend=" ")


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
                {
                    "name": "signed",
                    "url": "http://a/",
                    "format": "slack",
                    "secret_file": str(tmp_path / "none"),
                },
            ]
        },
    )
    ended = cli("doctor", "--json", config=config)
    assert ended.code == 1
    assert "hunter2" not in ended.out + ended.err
    parts = parts_of(ended)
    well = ["configuration", "rules", "kafka compression"]
    assert [name for name, row in parts.items() if row["well"]] == well
    assert "the pack is not known" in parts["rules"]["seen"]
    said = {
        "pack": "no-pack does not exist",
        "model": "no-model",
        "postgres": "Connection refused",
        "reader role": "Connection refused",
        "packs in use": "Connection refused",
        "baseline": "Connection refused",
        "kafka": "127.0.0.1:1: Connection refused",
        "records": "127.0.0.1:1: Connection refused",
        "reading": "Connection refused",
        "fidelity": "Connection refused",
        "endpoint deaf": "127.0.0.1 cannot be reached",
        "endpoint keyless": "secret",
        "endpoint hostless": "names no host",
        "endpoint portless": "",
        "endpoint fileless": "secret_file: cannot read",
        "endpoint signed": "secret_file: cannot read",
    }
    assert set(parts) == {*well, *said}
    for part, words in said.items():
        assert words in parts[part]["seen"]
        assert parts[part]["mend"], f"{part} names no mend"
    assert "kafka.bootstrap_servers" in parts["kafka"]["mend"]
    assert "postgres.url" in parts["postgres"]["mend"]
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
        "topics not found: no-such-topic, no-such-dead-letters; they do not exist, or "
        "User:ANONYMOUS may not DESCRIBE them"
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
    receiver: Receiver,
) -> None:
    topic = make_topic(partitions=3)
    config = configured(
        replay={"model": str(model_folder), "device": "cpu", "dtype": "float32"},
        pack={"path": str(pack_folder)},
        postgres={"url": migrated_url},
        kafka={"bootstrap_servers": kafka_bootstrap, "topics": [topic], "dead_letter_topic": None},
        alerts={"endpoints": [{"name": "ops", "url": receiver.url, "secret": WHSEC}]},
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
    assert f"{topic}: 3 partitions" in parts["kafka"]["seen"]
    assert "zstd" in parts["kafka compression"]["seen"]
    assert "monitor_reader" in parts["reader role"]["seen"]
    assert "not proven" in parts["endpoint ops"]["seen"]
    assert receiver.received == (), "nothing is posted unless it is asked for"
    assert "canaries within" in parts["model"]["seen"]
    assert parts["baseline"]["seen"] == "normal, 1200 prompts, approved by a person"
    assert parts["capacity"]["figures"]["prompts_looked_at"] == 0
    assert "assumed: the topic shows none" in parts["capacity"]["seen"]

    flooded = parts_of(cli("doctor", "--json", "--rate", "1e9", config=config))["capacity"]
    assert not flooded["well"]
    assert flooded["figures"]["sampling_rate_that_fits"] < 1.0
    assert "ingest.sampling_rate" in flooded["mend"]


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
    def model_part(
        model: Path, pack: Path, identity: Sequence[object] = (), **more: bool
    ) -> dict[str, Any]:
        config = configured(
            replay={"model": str(model), "device": "cpu", "dtype": "float32"},
            pack={"path": str(pack), **more},
            identity={"share": 0.1, "alternatives": list(identity)},
            **CLOSED,
        )
        return parts_of(cli("doctor", "--json", config=config))["model"]

    refused = model_part(other_model_folder, pack_folder)
    assert not refused["well"]
    assert "weights differ" in refused["seen"]
    moved = model_part(other_model_folder, pack_folder, other_weights=True)
    assert not moved["well"]
    assert "does not reproduce the pack's canaries" in moved["seen"]

    registered = [
        {"name": "turned", "steer": {"feature": "nobody", "strength": 1.0}},
        {"name": "candidate", "model": str(model_folder)},
    ]
    unknown = model_part(model_folder, pack_folder, identity=registered)
    assert not unknown["well"]
    assert "identity.alternatives: turned: the pack has no feature 'nobody'" in unknown["seen"]
    found = model_part(model_folder, pack_folder, identity=registered[1:])
    assert "answers are likened to candidate (" in found["seen"]

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
    with transaction(database) as c:
        begin_partitions(c, "monitor", "w", {("prompts", 1): 0})
    begun = parts_of(cli("doctor", "--skip-model", "--json", config=config))["reading"]
    assert (
        begun["seen"] == "0 partitions, 0 records behind; of 1 more the log's end is not known yet"
    )
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


def test_replays_that_differ_from_what_was_served_are_told_with_their_mend(
    cli: Cli, configured: Callable[..., Path], database: Engine, migrated_url: str
) -> None:
    config = configured(postgres={"url": migrated_url}, kafka={"bootstrap_servers": "127.0.0.1:1"})
    known_pack(database)
    at = datetime.now(UTC) - timedelta(minutes=20)

    def told(start: int, difference: int) -> dict[str, Any]:
        found = Fidelity(prompt_difference=difference, answer_difference=0)
        rows = [
            replace(scored(start + n, [0.0, 0.0, 0.0], at=at), fidelity=found) for n in range(30)
        ]
        keep(database, chunk(rows, start=start, end=start + 30))
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))["fidelity"]

    nothing = parts_of(cli("doctor", "--skip-model", "--json", config=config))["fidelity"]
    assert nothing["well"]
    assert "not measured" in nothing["seen"]
    same = told(0, 0)
    assert same["well"]
    assert same["seen"] == "0.0% of 30 prompts have other token counts than the server's own"
    other = told(30, -21)
    assert not other["well"]
    assert "50.0% of 60 prompts" in other["seen"]
    assert "of the prompt: 21 fewer in 30 of 30, a constant offset" in other["seen"]
    assert "replay.chat_template" in other["mend"]


# --- the topic's records ---------------------------------------------------------------------------

MARK = "zanzibar-marker"
ASKED = [{"role": "user", "content": MARK}]
TOOL = {"type": "function", "function": {"name": MARK, "parameters": {"type": "object"}}}
LOGGED_REQUEST = {
    "model": "m",
    "messages": ASKED,
    "tools": [TOOL],
    "temperature": 0.7,
}
ANSWERED = {
    "request": {"model": "m", "messages": ASKED},
    "response": {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": MARK}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    },
}


@pytest.fixture
def looked_at(
    cli: Cli, configured: Callable[..., Path], kafka_bootstrap: str, make_topic: Callable[..., str]
) -> Callable[..., dict[str, Any]]:
    """``looked_at(records, pack=folder)``: what doctor says of a new topic that holds them."""

    def look(records: list[bytes], pack: Path, **replay: Any) -> dict[str, Any]:
        topic = make_topic(partitions=2)
        producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all")
        for number, value in enumerate(records):
            producer.send(topic, value, partition=number % 2)
        producer.close()
        config = configured(
            kafka={
                "bootstrap_servers": kafka_bootstrap,
                "topics": [topic],
                "group_id": topic,
                "dead_letter_topic": None,
            },
            pack={"path": str(pack)},
            replay=replay,
            postgres=CLOSED["postgres"],
        )
        ended = cli("doctor", "--skip-model", "--json", config=config)
        assert MARK not in ended.out + ended.err, "no text of a prompt is printed"
        admin = kafka.KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        groups = {str(group) for group in admin.list_groups()}
        admin.close()
        assert not any(topic in group for group in groups), "the group is not joined"
        return parts_of(ended)["records"]

    return look


def test_what_the_topic_holds_is_told_with_its_shares(
    looked_at: Callable[..., dict[str, Any]], pack_folder: Path
) -> None:
    records = [json.dumps(one).encode() for one in (*[LOGGED_REQUEST] * 6, *[ANSWERED] * 2)]
    part = looked_at(
        [*records, b"{", json.dumps({"input": [1], "model": "e"}).encode()], pack_folder
    )
    figures = part["figures"]
    assert (figures["records"], figures["prompts"]) == (10, 8)
    assert figures["formats"] == {"openai": 8}
    assert figures["answered"] == 2
    assert figures["with_tools"] == 6
    assert figures["with_sampling"] == 6
    assert figures["with_counts"] == 2
    assert figures["with_model"] == 8
    assert figures["dead"]["not_json"] == 1
    assert sum(figures["dead"].values()) + sum(figures["skipped"].values()) == 2
    assert (
        "8 prompts in 10 records (openai 100%); 25% with an answer, 75% with tools" in part["seen"]
    )
    assert "prompts without an answer: read by curt" in part["seen"]
    # One record of ten cannot be read: more than the rule dead_letter_ratio lets pass.
    assert not part["well"]
    assert "docs/records.md" in part["mend"]


def test_prompts_alone_under_a_pack_of_answers_name_the_setting(
    looked_at: Callable[..., dict[str, Any]], pack_folder: Path, answers_pack_folder: Path
) -> None:
    records = [json.dumps(LOGGED_REQUEST).encode()] * 8
    part = looked_at(records, answers_pack_folder)
    assert not part["well"]
    assert part["figures"]["unread"] == 8
    assert "0% with an answer" in part["seen"]
    assert "skipped as no_answer" in part["seen"]
    assert "Most prompts have no answer: set replay.answer_share" in part["mend"]
    assert looked_at(records, pack_folder)["well"]
    assert looked_at(records, answers_pack_folder, answer_share=1.0)["well"]
    assert looked_at(records, answers_pack_folder, mode="generate")["well"]
    logged = looked_at([json.dumps(ANSWERED).encode()] * 8, answers_pack_folder)
    assert logged["well"]


def test_an_empty_topic_and_one_of_other_things(
    looked_at: Callable[..., dict[str, Any]], pack_folder: Path
) -> None:
    empty = looked_at([], pack_folder)
    assert empty["well"]
    assert empty["seen"].startswith("no records yet")
    spans = looked_at([json.dumps({"resourceSpans": []}).encode()] * 4, pack_folder)
    assert not spans["well"]
    assert "Look at kafka.topics" in spans["mend"]


# --- Postgres --------------------------------------------------------------------------------------


def test_a_wrong_password_says_that_the_password_is_to_be_mended(
    cli: Cli, configured: Callable[..., Path], restartable_postgres: Postgres
) -> None:
    plain = restartable_postgres.url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE ada LOGIN PASSWORD 'right'")
        hba = restartable_postgres.folder / "data" / "pg_hba.conf"
        hba.write_text("host all ada 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
        connection.execute("SELECT pg_reload_conf()")

    def seen(user: str, database: str = "postgres") -> dict[str, Any]:
        url = restartable_postgres.url.replace("postgres@", f"{user}@")
        url = url.rpartition("/")[0] + f"/{database}"
        config = configured(postgres={"url": url}, kafka={"bootstrap_servers": "127.0.0.1:1"})
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))["postgres"]

    wrong = seen("ada:wrong")
    assert not wrong["well"]
    assert "password authentication failed" in wrong["seen"]
    assert "password in postgres.url" in wrong["mend"]
    assert "password in postgres.url" in seen("ada")["mend"], "none given"
    assert "monitor migrate" in seen("ada:right")["mend"]
    assert "database" in seen("postgres", "none")["mend"]


def test_a_reader_role_that_could_not_be_made_is_said_by_migrate_and_doctor(
    cli: Cli, configured: Callable[..., Path], restartable_postgres: Postgres
) -> None:
    """A user without CREATEROLE, as in a managed database."""
    plain = restartable_postgres.url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE owner LOGIN")
        connection.execute("CREATE DATABASE watched OWNER owner")
    url = restartable_postgres.url.replace("postgres@", "owner@").rpartition("/")[0] + "/watched"
    config = configured(postgres={"url": url}, kafka={"bootstrap_servers": "127.0.0.1:1"})

    def role() -> dict[str, Any]:
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))["reader role"]

    done = cli("migrate", config=config)
    assert done.code == 0
    assert "monitor_reader does not exist" in done.err
    assert "CREATE ROLE" in done.err
    missing = role()
    assert not missing["well"]
    assert "monitor_reader does not exist" in missing["seen"]
    assert "CREATE ROLE" in missing["mend"]
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE monitor_reader NOLOGIN")
    blind = role()
    assert not blind["well"]
    assert "may not read" in blind["seen"]
    assert "GRANT SELECT" in blind["mend"]
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("GRANT USAGE ON SCHEMA monitor TO monitor_reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA monitor TO monitor_reader")
    assert role()["well"]


# --- Kafka -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_records_of_every_codec_can_be_read_and_one_that_cannot_is_found(
    cli: Cli,
    configured: Callable[..., Path],
    kafka_bootstrap: str,
    make_topic: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
) -> None:
    topic = make_topic(partitions=2)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, compression_type=codec)
    for number in range(10):
        producer.send(topic, b"x" * 500, partition=1, key=b"%d" % number)
    producer.close()
    config = configured(
        kafka={"bootstrap_servers": kafka_bootstrap, "topics": [topic], "dead_letter_topic": None},
        postgres={"url": "postgresql+psycopg://127.0.0.1:1/none"},
    )

    def parts() -> dict[str, dict[str, Any]]:
        return parts_of(cli("doctor", "--skip-model", "--json", config=config))

    well = parts()
    assert well["kafka"]["well"], well["kafka"]
    assert "the newest record of 1 partition was read" in well["kafka"]["seen"]
    assert well["kafka compression"]["well"]
    if codec == "gzip":
        return
    # As in an installation that lacks the package.
    monkeypatch.setattr(kafka.codec, f"has_{codec}", lambda: False)
    monkeypatch.setattr(kafka.codec, codec, None)
    lacking = parts()
    assert not lacking["kafka"]["well"]
    assert codec in lacking["kafka"]["seen"]
    assert "pip install" in lacking["kafka"]["mend"]
    assert not lacking["kafka compression"]["well"]
    assert codec in lacking["kafka compression"]["seen"]


# --- endpoints -------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(WHSEC) as server:
        yield server


@pytest.fixture
def endpoint_part(cli: Cli, configured: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """``endpoint_part(url, "--send-test")``: what doctor finds of an endpoint."""

    def look(url: str, *arguments: str, **endpoint: Any) -> dict[str, Any]:
        config = configured(
            postgres={"url": "postgresql+psycopg://127.0.0.1:1/none"},
            kafka={"bootstrap_servers": "127.0.0.1:1"},
            alerts={"endpoints": [{"name": "ops", "url": url, "secret": WHSEC, **endpoint}]},
        )
        ended = cli("doctor", "--skip-model", "--json", *arguments, config=config)
        return parts_of(ended)["endpoint ops"]

    return look


def test_a_test_event_is_signed_and_taken(
    endpoint_part: Callable[..., dict[str, Any]], receiver: Receiver
) -> None:
    part = endpoint_part(receiver.url, "--send-test")
    assert part["well"], part
    assert "took a signed test event" in part["seen"]
    (event,) = receiver.events
    assert event.verified
    assert event.json["type"] == "monitor.test"
    assert event.json["data"]["state"] == "resolved", "nobody is paged"


@pytest.mark.parametrize(
    ("status", "mend"),
    [(404, "path"), (405, "path"), (401, "secret"), (403, "secret"), (500, "receiver")],
)
def test_an_endpoint_that_takes_no_post_is_never_called_well(
    endpoint_part: Callable[..., dict[str, Any]], receiver: Receiver, status: int, mend: str
) -> None:
    receiver.always(Answer(status=status))
    assert "not proven" in endpoint_part(receiver.url)["seen"], "it was not asked to take one"
    part = endpoint_part(receiver.url, "--send-test")
    assert not part["well"]
    assert f"answered {status}" in part["seen"]
    assert mend in part["mend"]
    assert "/hook" not in part["seen"] + part["mend"], "a path may be a secret"


@contextmanager
def answering(status: int, headers: Mapping[str, str]) -> Iterator[str]:
    """The URL of a server that answers so to OPTIONS."""

    class Handler(BaseHTTPRequestHandler):
        def do_OPTIONS(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "headers", "well"),
    [
        (200, {}, True),
        (405, {"allow": "POST"}, True),
        (405, {}, True),
        (405, {"allow": "GET, HEAD"}, False),
        (200, {"allow": "GET, HEAD, OPTIONS"}, False),
        (404, {}, False),
        (401, {}, False),
        (403, {}, False),
        (302, {"location": "https://elsewhere.test/"}, False),
        (503, {}, False),
    ],
)
def test_without_a_test_event_an_endpoint_is_asked_what_it_takes(
    endpoint_part: Callable[..., dict[str, Any]],
    status: int,
    headers: Mapping[str, str],
    well: bool,
) -> None:
    with answering(status, headers) as url:
        part = endpoint_part(url)
    assert part["well"] is well
    assert f"answered {status} to OPTIONS" in part["seen"]
    assert "--send-test" in part["seen"] + part["mend"]


def test_an_endpoint_that_never_answers_is_not_well(
    endpoint_part: Callable[..., dict[str, Any]], receiver: Receiver
) -> None:
    receiver.always(Answer(hang_seconds=30))
    part = endpoint_part(receiver.url, "--send-test", timeout=0.5)
    assert not part["well"]
    assert "no answer in time" in part["seen"]
    assert part["mend"]


def test_an_endpoint_that_was_disabled_is_said_to_get_nothing(
    cli: Cli,
    configured: Callable[..., Path],
    database: Engine,
    migrated_url: str,
    receiver: Receiver,
) -> None:
    with transaction(database) as c:
        disable_endpoint(c, "ops", datetime.now(UTC), "the endpoint answered 410 Gone")
    config = configured(
        postgres={"url": migrated_url},
        kafka={"bootstrap_servers": "127.0.0.1:1"},
        alerts={"endpoints": [{"name": "ops", "url": receiver.url, "secret": WHSEC}]},
    )
    parts = parts_of(cli("doctor", "--skip-model", "--json", config=config))
    assert not parts["disabled endpoints"]["well"]
    assert "ops" in parts["disabled endpoints"]["seen"]
    assert "monitor deliveries enable ops" in parts["disabled endpoints"]["mend"]
