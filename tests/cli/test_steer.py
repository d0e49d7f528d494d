from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def asked(model_folder: Path, pack_folder: Path) -> list[object]:
    return [
        *("steer", "--model", model_folder, "--pack", pack_folder, "--device", "cpu"),
        *("--max-new-tokens", "6"),
    ]


def rows(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_a_dose_series_stands_beside_the_unsteered_answer(cli: Cli, asked: list[object]) -> None:
    ended = cli(
        *asked, "--prompt", "hello", "--feature", "toxic=2", "--project-out", "curt",
        "--dose=-1,1,4", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = rows(ended.out)
    assert [row["steering"] for row in found] == [
        "none",
        "toxic -2 at 1, curt out at 1",
        "toxic +2 at 1, curt out at 1",
        "toxic +8 at 1, curt out at 1",
    ]
    assert {"prompt", "answer", "toxic", "curt", "perplexity", "distinct"} <= set(found[0])
    assert len({row["answer"] for row in found}) > 2
    again = cli(
        *asked, "--prompt", "hello", "--feature", "toxic=8", "--project-out", "curt", "--json"
    )
    assert rows(again.out)[-1]["answer"] == found[-1]["answer"]


def test_prompts_come_from_a_file_and_sites_are_chosen(
    cli: Cli, asked: list[object], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": text}]} for text in ("hello", "and now?")]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    ended = cli(
        *asked, "--prompts", file, "--feature", "toxic=4", "--site", 0, "--site", 2, "--json"
    )
    assert ended.code == 0, ended.err
    assert [row["prompt"] for row in rows(ended.out)] == ["hello", "hello", "and now?", "and now?"]
    assert "toxic +4 at 0, toxic +4 at 2" in ended.out
    table = cli(*asked, "--prompts", file, "--feature", "toxic=4")
    assert table.code == 0
    assert "perplexity" in table.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--feature", "toxik=1", "--prompt", "hi"], "it has toxic"),
        (["--feature", "toxic=inf", "--prompt", "hi"], "finite number"),
        (["--feature", "toxic", "--prompt", "hi"], "NAME=STRENGTH"),
        (["--feature", "toxic=1", "--prompt", " "], "--prompt is empty"),
        (["--feature", "toxic=1"], "nothing to answer"),
        (["--prompt", "hi"], "nothing to steer"),
        (["--feature", "toxic=1", "--prompt", "hi", "--site", "4"], "no site 4"),
        (["--feature", "toxic=1", "--prompt", "hi", "--dose", "1,nan"], "finite numbers"),
        (["--project-out", "toxic", "--prompt", "hi", "--dose", "2"], "--dose multiplies"),
        (["--feature", "toxic=1", "--project-out", "toxic", "--prompt", "hi"], "once"),
    ],
)
def test_bad_input_is_refused(cli: Cli, asked: list[object], given: list[str], told: str) -> None:
    ended = cli(*asked, *given)
    assert ended.code == 2
    assert told in ended.err


def test_a_model_that_is_not_finite_is_refused(
    cli: Cli, nan_model_folder: Path, pack_folder: Path
) -> None:
    given = [
        *("steer", "--model", nan_model_folder, "--pack", pack_folder, "--device", "cpu"),
        *("--other-weights", "--prompt", "hello", "--max-new-tokens", 4),
    ]
    for turned in (["--project-out", "toxic"], ["--feature", "toxic=1"]):
        ended = cli(*given, *turned)
        assert ended.code == 2
        assert "not finite" in ended.err
        assert "weights or dtype give non-finite activations" in ended.err


def test_an_empty_or_broken_file_is_refused(cli: Cli, asked: list[object], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for content, told in (("", "is empty"), ("{", "prompts.jsonl:1 is not JSON")):
        file.write_text(content, encoding="utf-8")
        ended = cli(*asked, "--feature", "toxic=1", "--prompts", file)
        assert (ended.code, told in ended.err) == (2, True)


def test_a_pack_of_another_model_is_refused_unless_its_fine_tune_is_meant(
    cli: Cli, other_model_folder: Path, pack_folder: Path
) -> None:
    given = [
        *("steer", "--model", other_model_folder, "--pack", pack_folder, "--device", "cpu"),
        *("--max-new-tokens", "4", "--prompt", "hello", "--feature", "toxic=1"),
    ]
    ended = cli(*given)
    assert ended.code == 2
    assert "does not fit the model" in ended.err
    assert "--other-weights" in ended.err
    assert cli(*given, "--other-weights").code == 0
