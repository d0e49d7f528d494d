"""`pack build contrast` as its command, on the real model and a part of the project's own texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monitor.cli.main import app
from monitor.research.texts import DATA
from monitor.score.pack import load_pack


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_questions_give_a_pack_that_verifies(chat_model_path: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "texts", tmp_path / "pack"
    data.mkdir()
    for file, split, every in (
        ("contrast.jsonl", "train", 4),
        ("contrast.jsonl", "held_out", 3),
        ("benign.jsonl", "fit", 8),
        ("benign.jsonl", "check", 8),
        ("canaries.jsonl", None, 1),
    ):
        rows = [json.loads(line) for line in (DATA / file).read_text().splitlines()]
        kept = [row for row in rows if split is None or row["split"] == split][::every]
        with (data / file).open("a") as part:
            part.writelines(json.dumps(row) + "\n" for row in kept)
    arguments = ["--model", chat_model_path, "--out", out, "--data", data]
    built = CliRunner().invoke(app, ["pack", "build", "contrast", *map(str, arguments)])
    assert built.exit_code == 0, built.output
    figures = load_pack(out).report["features"]
    assert figures["malicious"]["auc"] > 0.9
    assert figures["malicious"]["auc"] > figures["malicious"]["random_directions"]["median"]
    verified = CliRunner().invoke(
        app, ["pack", "verify", str(out), "--model", str(chat_model_path)]
    )
    assert verified.exit_code == 0, verified.output
