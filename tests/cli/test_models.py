"""`monitor model cut` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_a_cut_copy_is_described_and_scored_like_the_whole(
    cli: Cli, model_folder: Path, pack_folder: Path, tmp_path: Path
) -> None:
    made = cli("model", "cut", model_folder, "--after-block", 2, "--to", tmp_path / "a", "--json")
    assert made.code == 0, made.err
    [row] = json.loads(made.out)
    assert (row["blocks"], row["head"]) == (3, False)
    verified = cli("pack", "verify", pack_folder, "--model", tmp_path / "a")
    assert verified.code == 0, verified.err + verified.out


def test_a_folder_in_use_and_a_block_that_is_not_there_are_refused(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").touch()
    used = cli("model", "cut", model_folder, "--after-block", "1", "--to", tmp_path)
    assert (used.code, "is in use" in used.err) == (2, True)
    beyond = cli("model", "cut", model_folder, "--after-block", "99", "--to", tmp_path / "new")
    assert beyond.code == 2
    assert "has blocks 0 to" in beyond.err
    assert "monitor pack inspect" in beyond.err
