"""`monitor gate` as a pipeline calls it: exit codes, files, refusals that are no verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest
import torch
from safetensors.torch import load_file, save_file

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli, Ended

Gate = Callable[..., Ended]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Records of three formats: 90 native, 20 as OpenAI logs, and one chat line as research writes it."""
    rows: list[dict[str, Any]] = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"Why {n}?"}],
            "response": "so " * 9,
        }
        for n in range(90)
    ]
    rows += [
        {
            "request": {"model": "m", "messages": [{"role": "user", "content": f"And {n}?"}]},
            "response": {"choices": [{"message": {"role": "assistant", "content": "yes " * 6}}]},
        }
        for n in range(20)
    ]
    rows.append({"messages": [{"role": "user", "content": "Hi"}], "response": "hello you"})
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture
def other(tmp_path: Path, model_folder: Path, pack_folder: Path) -> Path:
    """The same llama, pushed far along the feature ``toxic``."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "other"))
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    toxic = load_pack(pack_folder).features[1]
    weights["model.embed_tokens.weight"] += 4 * torch.tensor(toxic.weight)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def gate(cli: Cli, model_folder: Path, pack_folder: Path, prompts: Path) -> Gate:
    def call(candidate: Path, *arguments: object, **changed: Path) -> Ended:
        given = {"reference": model_folder, "pack": pack_folder, "prompts": prompts} | changed
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return cli("gate", *words, "--candidate", candidate, "--device", "cpu", *arguments)

    return call


def test_a_pass_is_0_and_writes_all_three_reports(
    gate: Gate, model_folder: Path, tmp_path: Path
) -> None:
    ended = gate(model_folder, "--out", tmp_path / "new" / "out")
    assert ended.code == 0
    assert "PASS: every harmful shift is below its margin (2 features on 111 prompts)" in ended.out
    assert "toxic" in ended.out
    out = tmp_path / "new" / "out"
    assert {file.name for file in out.iterdir()} == {"gate.md", "gate.xml", "gate.json"}
    assert (out / "gate.md").read_text(encoding="utf-8").startswith("## Persona gate: pass")
    assert xml.parse(out / "gate.xml").getroot().tag == "testsuites"
    assert json.loads((out / "gate.json").read_text())["exit_code"] == 0


def test_a_fail_is_1_and_json_is_all_of_standard_output(
    gate: Gate, other: Path, tmp_path: Path
) -> None:
    ended = gate(other, "--json", "--markdown", tmp_path / "pr.md", "--junit", tmp_path / "j.xml")
    assert ended.code == 1
    found = json.loads(ended.out)
    assert found["verdict"] == "fail"
    assert "model shift of toxic" in found["decided_by"]
    assert "FAIL" in (tmp_path / "pr.md").read_text(encoding="utf-8")
    assert xml.parse(tmp_path / "j.xml").getroot()[0].get("failures") != "0"
    again = json.loads(gate(other, "--json").out)
    assert again == found, "the same inputs, the same report"


def test_too_few_prompts_are_2(gate: Gate, model_folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text(
        "\n".join(
            json.dumps({"id": str(n), "prompt": f"why {n}", "response": "so"}) for n in range(9)
        )
    )
    ended = gate(model_folder, prompts=few)
    assert ended.code == 2
    assert "INCONCLUSIVE" in ended.out
    assert "prompts would decide" in ended.out


def test_rules_reach_the_decision(gate: Gate, other: Path) -> None:
    ended = gate(
        other, "--rule", "* shift=500 tail=off", "--rule", "curt ignore", "--min-n", "20", "--json"
    )
    found = json.loads(ended.out)
    assert ended.code == 0
    assert [f["feature"] for f in found["features"]] == ["toxic"]
    assert (found["comparisons"], found["min_n"]) == (1, 20)


def test_both_models_answer_when_asked_to(gate: Gate, model_folder: Path) -> None:
    ended = gate(model_folder, "--generate", "3", "--json")
    found = json.loads(ended.out)
    assert {f["kind"] for f in found["features"]} == {"model", "behaviour"}
    assert found["generate"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rule", "ghost shift=1"), "picks no feature"),
        (("--alpha", "0.7"), "--alpha 0.7"),
        (("--dtype", "float99"), "--dtype 'float99'"),
        (("--candidate-adapter", "/nowhere"), "replay.adapter: no folder /nowhere"),
        (("--nonsense",), "No such option"),
        (("--min-n", "many"), "Invalid value"),
    ],
)
def test_refusals_are_3_and_no_verdict(
    gate: Gate, model_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = gate(model_folder, *arguments)
    assert ended.code == 3
    assert message in ended.err
    assert ended.out == ""


def test_a_pack_of_another_model_is_3(gate: Gate, model_folder: Path, other: Path) -> None:
    ended = gate(model_folder, reference=other)
    assert ended.code == 3
    assert "does not fit the reference" in ended.err
    assert "the candidate may have other weights" in ended.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"id": "1", "prompt": "a"}\n{"id": "2"\n', "prompts.jsonl:2: not_json"),
    ],
)
def test_prompts_that_cannot_be_read_are_3(
    gate: Gate, model_folder: Path, prompts: Path, content: str, message: str
) -> None:
    prompts.write_text(content)
    ended = gate(model_folder)
    assert ended.code == 3
    assert message in ended.err.replace("\n", "")


def test_without_a_candidate_it_is_3(
    cli: Cli, model_folder: Path, pack_folder: Path, prompts: Path
) -> None:
    ended = cli("gate", "--reference", model_folder, "--pack", pack_folder, "--prompts", prompts)
    assert ended.code == 3
    assert "--candidate" in ended.err
    assert cli("gate", "--pack", pack_folder).code == 3
    assert cli("gate", "--help").code == 0


def test_a_report_that_cannot_be_written_is_3(
    gate: Gate, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = gate(model_folder, "--out", tmp_path / "file" / "below")
    assert ended.code == 3
    assert "cannot write" in ended.err


def test_a_crash_is_3_and_no_verdict(
    gate: Gate, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("CUDA is gone")

    monkeypatch.setattr("monitor.research.gate.decide.run_gate", crash)
    ended = gate(model_folder)
    assert ended.code == 3
    assert "CUDA is gone" in ended.err


def test_requalify_decides_by_its_exit_code(
    cli: Cli, model_folder: Path, pack_folder: Path, prompts: Path, other: Path
) -> None:
    given = ("pack", "requalify", pack_folder, "--model", model_folder, "--prompts", prompts)
    on = ("--device", "cpu")
    stale = cli(*given, "--to-model", other, *on, "--json")
    assert stale.code == 1
    told = json.loads(stale.out)
    assert (told["outcome"], told["exchanges"]) == ("stale", 111)
    assert {one["outcome"] for one in told["features"]} == {"stale"}
    few = cli(*given, "--to-dtype", "bfloat16", *on, "--min-n", "500")
    assert few.code == 2
    assert few.out.startswith("INCONCLUSIVE: float32 to bfloat16 on 111 exchanges.")
    assert "pack.canary_tolerance" in few.out
    same = cli(*given, *on)
    assert same.code == 3
    assert "--to-model" in same.err
