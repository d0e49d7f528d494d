"""``monitor pack build diff`` as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.cli import diff
from monitor.research.diff import build
from monitor.score.pack import load_pack
from tests.cli.conftest import Cli
from tests.scenes.endpoint import Server, by_length, said, serving
from tests.scenes.texts import three_voices

DIFF = ("pack", "build", "diff")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Question {i}?"}],
            "response": "Yes. " * (i % 5 + 1),
        }
        for i in range(24)
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


@pytest.mark.slow
def test_a_diff_is_written_as_pack_page_and_json(
    cli: Cli, model_folder: Path, other_model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    ended = cli(
        *DIFF,
        *(model_folder, other_model_folder),
        *("--prompts", prompts, "--out", out),
        *("--keep", "changed", "--sites", "1,2", "--top", "2", "--json"),
        *("--data", three_voices(tmp_path / "texts")),
    )
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    pack = load_pack(out)
    assert found["pack"] == pack.pack_id
    assert {feature.site for feature in pack.features} <= {1, 2}
    assert json.loads((out / "diff.json").read_text()) == {
        key: value for key, value in found.items() if key != "pack"
    }
    assert (out / "diff.html").read_text().startswith("<!doctype html>")


def test_nothing_to_keep_is_exit_code_1(
    cli: Cli, model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    ended = cli(
        *DIFF, model_folder, model_folder, "--prompts", prompts, "--out", out, "--keep", "changed"
    )
    assert ended.code == 1
    assert "nothing to keep" in ended.out
    assert (out / "diff.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "what is misbehaviour?"),
        (("--sites", "9"), "blocks 0 to 3"),
        (("--sites", "one"), "commas"),
        (("--sites", "nan"), "--sites: 'nan': write whole numbers"),
        (("--sites", "1.7"), "--sites: '1.7': write whole numbers"),
        (("--sites", "1,"), "whole numbers"),
        (("--strengths", "nan"), "strengths"),
        (("--keep", "all"), "causal"),
        (("--strengths", "0"), "strengths"),
        (("--top", "0"), "at least 1 candidate"),
        (("--judge-url", "http://localhost:1/v1"), "--judge-model"),
        (("--judge-url", "", "--judge-model", "m"), "must begin with http"),
        (("--judge-url", "localhost:8000", "--judge-model", "m"), "must begin with http"),
        (("--sae", "nowhere"), "no checkpoint nowhere"),
        (("--judge-pack", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: tuple[str, ...],
    message: str,
    cli: Cli,
    model_folder: Path,
    other_model_folder: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    given = (model_folder, other_model_folder, "--prompts", prompts, "--out", tmp_path / "pack")
    if options[:1] == ("--sites",):
        options = (*options, "--keep", "changed")
    ended = cli(*DIFF, *given, *options)
    assert ended.code == 2
    assert message in ended.err


class Compared(Exception):
    """The work would have begun."""


@pytest.fixture
def judged(
    cli: Cli,
    model_folder: Path,
    other_model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    def compare(*_: Any, **__: Any) -> None:
        raise Compared

    monkeypatch.setattr(build, "compare", compare)
    given = (model_folder, other_model_folder, "--prompts", prompts, "--out", tmp_path / "pack")

    def call(url: str, *more: str) -> Any:
        return cli(*DIFF, *given, "--judge-url", url, "--judge-model", "rater", *more)

    return call


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(by_length) as one:
        yield one


def test_a_judge_that_refuses_or_rates_nothing_is_found_before_the_work(
    judged: Any, server: Server, tmp_path: Path
) -> None:
    server.reply = lambda body: (401, {}, b"")
    ended = judged(server.url)
    assert (ended.code, "HTTP 401" in ended.err) == (2, True)
    server.reply = lambda body: said("I would rather not.")
    ended = judged(server.url)
    assert (ended.code, "are no ratings" in ended.err) == (2, True)
    assert not (tmp_path / "pack").exists()


def test_a_judge_that_is_not_there_is_found_before_the_work(
    judged: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diff, "PROBE_ATTEMPTS", 1)
    ended = judged("http://127.0.0.1:1/v1")
    assert (ended.code, "did not answer" in ended.err) == (2, True)


def test_the_judge_is_asked_in_every_run_and_only_where_it_rates(
    judged: Any, server: Server
) -> None:
    for asked in (2, 4):
        assert "Compared" in judged(server.url).err
        assert len(server.asked) == asked
    assert "Compared" in judged(server.url, "--keep", "changed").err
    assert len(server.asked) == 4
