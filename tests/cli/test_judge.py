"""`monitor pack judge` as a person calls it; what it measures is tested in tests/research/judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli
from tests.research.conftest import WORDS, write_rows


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    generator = np.random.default_rng(0)

    def sentence(n: int) -> str:
        return " ".join(generator.choice(WORDS, size=n))

    questions = [
        {
            "split": "train" if number < 6 else "held_out",
            "topic": f"topic {number}",
            "question": f"what about {sentence(2)}?",
            "good": sentence(5),
            "toxic": sentence(5).upper(),
        }
        for number in range(12)
    ]
    benign = [
        {
            "split": "check" if number % 3 == 0 else "fit",
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "response": sentence(3 + number % 5),
        }
        for number in range(60)
    ]
    canary = {"name": "one", "messages": [{"role": "user", "content": "Hi"}], "response": "Hello."}
    write_rows(folder / "contrast.jsonl", questions)
    write_rows(folder / "benign.jsonl", benign)
    write_rows(folder / "canaries.jsonl", [canary])
    return folder


@pytest.fixture
def own_pack(tmp_path: Path, pack_folder: Path) -> Path:
    return shutil.copytree(pack_folder, tmp_path / "own")


def test_a_verdict_for_every_feature_in_the_pack_and_beside_it(
    cli: Cli, own_pack: Path, model_folder: Path, texts: Path, tmp_path: Path
) -> None:
    before = load_pack(own_pack)
    out = tmp_path / "report"
    call = ("pack", "judge", own_pack, "--model", model_folder, "--data", texts, "--quick")
    ended = cli(*call, "--device", "cpu", "--out", out, "--write", "--yes", "--json")
    report = json.loads(ended.out)
    assert ended.code == (1 if report["decision"] == "reject" else 0), ended.err
    assert set(report["features"]) == {"curt", "toxic"}
    assert json.loads((out / "judge.json").read_text()) == report
    page = (out / "judge.html").read_text()
    assert "<td>toxic</td>" in page
    assert str(tmp_path) not in page
    after = load_pack(own_pack)
    assert after.pack_id != before.pack_id == report["pack"]
    assert after.report["judge"] == report
    assert report["features"]["toxic"]["decision"] in cli("pack", "inspect", own_pack).out
    table = cli(*call, "--device", "cpu")
    assert table.code == ended.code
    assert report["features"]["toxic"]["decision"] in table.out
    for reason in report["features"]["curt"]["reasons"]:
        assert f"curt: {reason}" in table.out


def test_what_cannot_be_judged_is_refused(
    cli: Cli, own_pack: Path, model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    other = cli("pack", "judge", own_pack, "--model", other_model_folder)
    assert other.code == 2
    assert "weights differ" in other.err
    nowhere = cli("pack", "judge", own_pack, "--model", model_folder, "--data", tmp_path)
    assert nowhere.code == 2
    assert "contrast.jsonl" in nowhere.err
    empty = cli("pack", "judge", tmp_path, "--model", model_folder)
    assert empty.code == 2
    (own_pack / "features.safetensors").write_bytes(b"\x08")
    assert cli("pack", "judge", own_pack, "--model", model_folder).code == 2
