"""`pack build contrast` as its command, on the real model and a part of the project's own texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from monitor.cli.main import app
from monitor.score.pack import load_pack
from tests.scenes.texts import part_of_texts


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_questions_give_a_pack_that_verifies(chat_model_path: Path, tmp_path: Path) -> None:
    data = part_of_texts(
        tmp_path / "texts", voices=("malicious", "sarcastic"), train=4, held_out=3, fit=8, check=8
    )
    out = tmp_path / "pack"
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
