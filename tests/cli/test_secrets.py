"""A canary in every key of the settings: whatever is then shown, logged or refused, it is not in it."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import typer
import yaml
from pydantic import BaseModel, SecretStr

from monitor.cli.main import app
from monitor.errors import ConfigurationError, MonitorError
from monitor.logs import configure, get_logger
from monitor.metrics import METRICS
from monitor.settings import LogSettings, Settings, load, secret, shown
from tests.cli.conftest import Cli

CANARY = "yellow-Bird.4711"
URL = f"https://somebody:{CANARY}@127.0.0.1:9/path?access_token={CANARY}"
Key = tuple[str, ...]


def keys(model: type[BaseModel] = Settings, above: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key that holds a value, with its type; ``*`` stands for an item of a list."""
    for name, field in model.model_fields.items():
        here = (*above, field.alias or name)
        nested = [kind for kind in flat(field.annotation) if is_section(kind)]
        if not nested:
            yield here, field.annotation
        for kind in nested:
            listed = typing.get_origin(field.annotation) is tuple
            yield from keys(kind, (*here, "*") if listed else here)


def flat(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from flat(part)
    else:
        yield annotation


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


KEYS = dict(keys())
RULE = {"name": "r", "severities": {"warning": {"shift": 0.3}}}
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "endpoints": {"name": "ops", "url": "https://ops.test/hook", "format": "slack"},
    "rules": RULE,
    "silence_rules": {"name": "lag", "limit": 1},
    "alternatives": {"name": "another"},
}
"""What an item of a list must have beside the key that is planted."""


def planted(key: Key, value: Any) -> dict[str, Any]:
    content = value
    for at in range(len(key) - 1, -1, -1):
        listed = key[at] == "*"
        content = [{**NEEDED[key[at - 1]], **content}] if listed else {key[at]: content}
    return typing.cast("dict[str, Any]", content)


def in_its_place(annotation: Any) -> Any:
    """A value of the key's own type that holds the canary where such a value may hold a secret."""
    kinds = list(flat(annotation))
    if SecretStr in kinds:
        return CANARY
    text: Any = URL
    if any(typing.get_origin(kind) is dict for kind in kinds):
        of = typing.get_args(next(k for k in kinds if typing.get_origin(k) is dict))[1]
        return {"an odd name": CANARY if of in (SecretStr, Any) else text, "other": text}
    return [text] if typing.get_origin(annotation) is tuple else text


@pytest.fixture
def file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any) -> Path:
        path = tmp_path / "monitor.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def assert_unseen(config: Path | None) -> None:
    """Neither by `monitor config show` nor by the refusal, which is an error of ours."""
    try:
        said = json.dumps(shown(load(config)))
    except MonitorError as error:
        said = f"{error} {error.hint}"
    assert CANARY not in said


def test_the_walk_finds_the_keys_that_it_must() -> None:
    assert len(KEYS) > 120
    known = {".".join(key) for key in KEYS}
    assert {"kafka.sasl_password", "alerts.endpoints.*.headers", "drift.rules.*.for"} <= known


def test_whatever_a_key_holds_is_shown_without_its_secret(
    file: Callable[[Any], Path],
) -> None:
    for key, annotation in KEYS.items():
        assert_unseen(file(planted(key, in_its_place(annotation))))


def test_a_value_of_the_wrong_kind_is_refused_without_being_quoted(
    file: Callable[[Any], Path],
) -> None:
    for key, annotation in KEYS.items():
        wrongs: list[Any] = [{"nested": {"deeper": [CANARY]}}, [[CANARY]]]
        if not any(kind in (str, Path, Any) for kind in flat(annotation)):
            wrongs.append(CANARY)
        if any(typing.get_origin(kind) is dict for kind in flat(annotation)):
            wrongs = [CANARY, [CANARY]]
        if annotation is Any or "options" in key[-1]:
            continue
        for wrong in wrongs:
            assert_unseen(file(planted(key, wrong)))


@pytest.mark.parametrize(
    "line",
    [
        f'"{CANARY}',
        f"[{CANARY}",
        f"{{a: {CANARY}",
        f"@{CANARY}",
        f"%{CANARY}",
        f"*{CANARY}",
        f"!{CANARY} x",
        f"a: b: {CANARY}",
        f"'{CANARY}' '{CANARY}'",
        f"\t{CANARY}",
        f"{CANARY}\x01",
        f"&{CANARY} *{CANARY}x",
    ],
)
def test_a_file_that_is_no_yaml_is_refused_by_its_place_and_not_by_its_text(
    cli: Cli, file: Callable[[Any], Path], line: str
) -> None:
    config = file(f"privacy:\n  hash_key: {line}\nlog:\n  level: info\n")
    refused = cli("config", "show", config=config)
    assert refused.code == 2
    assert CANARY not in refused.out + refused.err
    assert "line " in refused.err


def test_a_key_that_ran_into_its_value_is_not_quoted(cli: Cli, file: Callable[[Any], Path]) -> None:
    for text in (f"privacy:\n  'hash_key:{CANARY}': 1\n", f"'hash_key={CANARY}': 1\n", CANARY):
        refused = cli("config", "show", config=file(text))
        assert refused.code == 2
        assert CANARY not in refused.out + refused.err


def test_the_environment_is_no_more_talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, annotation in KEYS.items():
        if "*" in key:
            continue
        value = in_its_place(annotation)
        texts = [value if isinstance(value, str) else json.dumps(value), f'["{CANARY}', CANARY]
        for text in texts if SecretStr in flat(annotation) else texts[:2]:
            monkeypatch.setenv("MONITOR_" + "__".join(key).upper(), text)
            if not any(kind in (str, Path) for kind in flat(annotation)) or text != texts[1]:
                assert_unseen(None)
            monkeypatch.delenv("MONITOR_" + "__".join(key).upper())
    for section in Settings.model_fields:
        monkeypatch.setenv(f"MONITOR_{section.upper()}", f'{{"password": "{CANARY}"')
        assert_unseen(None)
        monkeypatch.delenv(f"MONITOR_{section.upper()}")


@pytest.fixture
def everything(file: Callable[[Any], Path]) -> Path:
    """A configuration that is valid, with a secret in every place that takes one."""
    endpoint = {"name": "ops", "url": URL, "format": "slack", "headers": {"x-odd": CANARY}}
    return file(
        {
            "kafka": {
                "bootstrap_servers": "127.0.0.1:9",
                "request_timeout_ms": 1_000,
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_endpoint": URL,
                "oauth_client_id": "monitor",
                "oauth_client_secret": CANARY,
                "ssl_password": CANARY,
                "client_options": {"sasl_plain_password": CANARY},
            },
            "ingest": {"registry": {"url": URL, "username": "u", "password": CANARY}},
            "postgres": {
                "url": f"postgresql+psycopg://monitor:{CANARY}@127.0.0.1:9/monitor",
                "connect_timeout": 1,
            },
            "alerts": {"endpoints": [endpoint]},
            "privacy": {"hash_key": CANARY},
        }
    )


def test_the_doctor_shows_none(cli: Cli, everything: Path) -> None:
    for form in ([], ["--json"]):
        told = cli("doctor", "--skip-model", *form, config=everything)
        assert told.code == 1
        assert CANARY not in told.out + told.err
        assert "127.0.0.1" in told.out


def test_what_a_library_says_with_our_secret_is_said_without(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors quote what they were given: header values, form fields, command lines."""
    load(everything)
    configure(LogSettings())
    said = f"cannot log in as monitor with {CANARY} at {URL}"
    try:
        raise ConfigurationError(said, hint=said)
    except MonitorError:
        get_logger("t").exception("failed", error=said, deep=[{"why": said}])
    ours = ConfigurationError(said, hint=said)
    assert CANARY not in f"{ours} {ours.hint} {ours.args}"
    logging.getLogger("kafka").error("refused: %s", said)
    written = capsys.readouterr()
    assert written.err.count("cannot log in as monitor with *** at") >= 4
    assert CANARY not in written.out + written.err
    assert CANARY not in prometheus_client.generate_latest(METRICS.registry).decode()


def test_a_secret_from_a_file_is_hidden_like_one_given(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{CANARY}-rotated\n")
    assert secret(None, path, "x") == f"{CANARY}-rotated"
    assert CANARY not in str(MonitorError(f"refused {CANARY}-rotated"))


def test_the_link_in_alerts_may_hold_no_secret(file: Callable[[Any], Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"alerts\.external_url.*many read") as refused:
        load(file({"alerts": {"external_url": URL}}))
    assert CANARY not in str(refused.value)


def test_a_bug_is_told_without_secrets(
    cli: Cli, everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"nobody expected {URL}")

    monkeypatch.setattr("monitor.doctor.examine", broken)
    told = cli("doctor", config=everything)
    assert told.code == 1
    assert "RuntimeError: nobody expected https://somebody:***@127.0.0.1" in told.err
    assert CANARY not in told.err


PROGRAM = """
import ctypes, os, resource, sys
sys.argv = ["monitor", "config", "show", "--config", sys.argv[1]]
from monitor.cli.main import main
try:
    main()
except SystemExit:
    pass
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print("dumpable", dumpable, "core", resource.getrlimit(resource.RLIMIT_CORE), file=sys.stderr)
sys.stderr.flush()
os.abort()
"""


def test_a_process_that_dies_leaves_no_image_of_its_memory(
    tmp_path: Path, file: Callable[[Any], Path]
) -> None:
    """Started where dumps are allowed, as containers often are; its children inherit the limit."""
    config = file({"kafka": {"sasl_password": CANARY}})
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )
    assert ended.returncode == -signal.SIGABRT
    assert "dumpable 0 core (1, 1)" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_no_option_takes_a_secret(cli: Cli) -> None:
    """What stands on a command line is seen by everyone on the machine: secrets come from files and environment."""
    takes = re.compile(r"--[a-z-]*(secret|password|token|api-key|hash-key|credential)\b[^\n]*")
    command: Any = typer.main.get_command(app)
    pending, found = [("monitor", command)], []
    while pending:
        name, one = pending.pop()
        pending += [(f"{name} {sub}", of) for sub, of in getattr(one, "commands", {}).items()]
        for option in one.params:
            found += [f"{name} {flag}" for flag in option.opts if takes.fullmatch(flag)]
    assert found == []
