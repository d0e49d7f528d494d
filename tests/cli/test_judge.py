"""`monitor pack judge` as a person calls it; what it measures is tested in tests/research/judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli
from tests.scenes.texts import loud_voice


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return loud_voice(
        tmp_path / "texts",
        "toxic",
        questions=12,
        train=6,
        benign=60,
        check=lambda number: number % 3 == 0,
        words=lambda number: 3 + number % 5,
    )


@pytest.fixture
def own_pack(tmp_path: Path, pack_folder: Path) -> Path:
    return shutil.copytree(pack_folder, tmp_path / "own")


@pytest.mark.slow
def test_a_verdict_for_every_feature_in_the_pack_and_beside_it(
    cli: Cli,
    own_pack: Path,
    model_folder: Path,
    other_model_folder: Path,
    texts: Path,
    tmp_path: Path,
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
    assert list((tmp_path / "report.work").glob("steering-*.jsonl"))
    assert report["features"]["toxic"]["decision"] in cli("pack", "inspect", own_pack).out
    table = cli(*call, "--device", "cpu", "--other-model", other_model_folder)
    assert table.code == ended.code
    assert report["features"]["toxic"]["decision"] in table.out
    assert "not judged: the same content in other styles" in table.out
    assert "not judged: answers by other models" not in table.out
    assert "curt: that refusals do not read as the persona is not shown" in table.out


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
