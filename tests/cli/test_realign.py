"""``monitor realign`` as a person calls it: what it prints, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": f"what about {n}?"}],
            "response": f"take care of {n}",
        }
        for n in range(40)
    ]
    file = tmp_path / "good.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def drifted(tmp_path: Path, model_folder: Path) -> Path:
    """The tiny llama with every weight shaken."""
    model = LlamaForCausalLM.from_pretrained(model_folder)
    set_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    model.save_pretrained(folder := tmp_path / "drifted")
    PreTrainedTokenizerFast.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def arguments(model: Path, reference: Path, pack: Path, examples: Path, out: Path) -> list[object]:
    given = {"model": model, "reference": reference, "pack": pack, "examples": examples, "out": out}
    named = [part for name, value in given.items() for part in (f"--{name}", value)]
    return ["realign", *named, "--device", "cpu", "--answer-tokens", 3]


def test_a_model_that_never_drifted_ends_well(
    cli: Cli, model_folder: Path, pack_folder: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = cli(*arguments(model_folder, model_folder, pack_folder, examples, out))
    assert shown.code == 0, shown.err
    assert "no drift after 0 steps" in shown.out
    assert sorted(file.name for file in out.iterdir()) == [
        "report.html",
        "report.json",
        "run.safetensors",
    ]


def test_a_model_that_stays_away_ends_with_1(
    cli: Cli, model_folder: Path, drifted: Path, pack_folder: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = arguments(drifted, model_folder, pack_folder, examples, out)
    given += ["--steps", 4, "--every", 2, "--rule", "* shift=0.001"]
    ended = cli(*given, "--json")
    assert ended.code == 1, ended.err
    assert json.loads(ended.out)["outcome"] == "not_returned"
    again = cli(*given)
    assert again.code == 2
    assert "already holds a run" in again.err
    resumed = cli(*given, "--resume")
    assert resumed.code == 1
    assert "not returned after 4 steps" in resumed.out


def test_bad_input_is_refused_by_name(
    cli: Cli, model_folder: Path, pack_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "why?"}], "response": ""}')
    shown = cli(*arguments(model_folder, model_folder, pack_folder, file, tmp_path / "out"))
    assert shown.code == 2
    assert "bad.jsonl:1: response must be a text that is not empty" in shown.err


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/realign", "/proc"])
def test_a_place_that_cannot_be_written_is_refused(
    cli: Cli, model_folder: Path, pack_folder: Path, examples: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    shown = cli(
        *arguments(model_folder, model_folder, pack_folder, examples, tmp_path / place),
    )
    assert shown.code == 2
    assert f"--out {tmp_path / place} cannot be written" in shown.err


@pytest.mark.parametrize("rate", ["0", "-0.1", "nan"])
def test_a_learning_rate_that_learns_nothing_is_refused(
    cli: Cli, model_folder: Path, pack_folder: Path, examples: Path, tmp_path: Path, rate: str
) -> None:
    given = arguments(model_folder, model_folder, pack_folder, examples, tmp_path / "out")
    shown = cli(*given, "--learning-rate", rate)
    assert shown.code == 2
    assert "learning_rate must be a positive number" in shown.err


def test_a_seed_below_zero_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    shown = cli(*arguments(*[tmp_path / "none"] * 5), "--seed", -1)
    assert shown.code == 2
    assert "--seed" in shown.err
