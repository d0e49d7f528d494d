"""``monitor pack join``: the joined pack is read by the model as its sources were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.score.pack import load_pack, save_pack
from tests.cli.conftest import Cli


@pytest.fixture
def second(pack_folder: Path, tmp_path: Path) -> Path:
    """The same readings under other names, judged and told how well they separate."""
    pack = load_pack(pack_folder)
    figures = {
        "auc": 0.91,
        "auc_interval_95": [0.8, 0.95],
        "auc_against_benign": 0.77,
        "random_directions": {"q95": 0.6},
    }
    other = replace(
        pack,
        name="other",
        features=tuple(replace(f, name=f"other.{f.name}") for f in pack.features),
        report={
            "features": {"other.toxic": figures},
            "judge": {"features": {"other.toxic": {"decision": "watch-only"}}},
        },
    )
    save_pack(other, folder := tmp_path / "second")
    return folder


def test_a_joined_pack_verifies_and_shows_its_sources_figures(
    cli: Cli, model_folder: Path, pack_folder: Path, second: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    named = ("--name", "both", "--version", "3")
    made = cli("pack", "join", pack_folder, second, "--out", out, *named, "--json")
    assert made.code == 0, made.err
    (row,) = json.loads(made.out)
    assert (row["id"], row["features"]) == (load_pack(out).pack_id, 4)
    verified = cli("pack", "verify", out, "--model", model_folder)
    assert verified.code == 0, verified.out
    shown = cli("pack", "inspect", out).out
    assert "0.91 (0.80 to 0.95)" in shown
    assert "watch-only" in shown


def test_what_cannot_be_joined_is_refused(
    cli: Cli, pack_folder: Path, second: Path, tmp_path: Path
) -> None:
    named = ("--name", "both", "--version", "3")
    for given, told in (
        ((pack_folder, "--out", tmp_path / "both"), "at least two packs"),
        ((pack_folder, pack_folder, "--out", tmp_path / "both"), "a feature called curt, toxic"),
        ((pack_folder, second, "--out", second), "never edited in place"),
        ((pack_folder, tmp_path / "none", "--out", tmp_path / "both"), "does not exist"),
    ):
        refused = cli("pack", "join", *given, *named)
        assert refused.code == 2
        assert told in refused.err
    assert not (tmp_path / "both").exists()
    assert load_pack(second).name == "other"
