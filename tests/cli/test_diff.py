"""``monitor pack build diff`` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli

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


def test_a_diff_is_written_as_pack_page_and_json(
    cli: Cli, model_folder: Path, other_model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    ended = cli(
        *DIFF,
        *(model_folder, other_model_folder),
        *("--prompts", prompts, "--out", out),
        *("--keep", "changed", "--sites", "1,2", "--top", "2", "--json"),
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
        (("--keep", "all"), "causal"),
        (("--strengths", "0"), "strengths"),
        (("--top", "0"), "at least 1 candidate"),
        (("--judge-url", "http://localhost:1/v1"), "--judge-model"),
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
