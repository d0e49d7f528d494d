"""``monitor pack select``: fewer features, each read as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monitor.score.pack import load_pack
from tests.cli.conftest import Cli


@pytest.mark.parametrize("selectors", [("!curt",), ("toxic",), ("*", "!cur*")])
def test_what_is_left_verifies_and_names_what_is_not(
    cli: Cli, model_folder: Path, pack_folder: Path, tmp_path: Path, selectors: tuple[str, ...]
) -> None:
    out = tmp_path / "fewer"
    made = cli("pack", "select", pack_folder, *selectors, "--out", out, "--json")
    assert made.code == 0, made.err
    before, after = load_pack(pack_folder), load_pack(out)
    assert json.loads(made.out)[0]["id"] == after.pack_id
    (kept,) = after.features
    assert kept.name == "toxic"
    at = [one.name for one in before.features].index("toxic")
    np.testing.assert_array_equal(
        after.canaries[0].readings, before.canaries[0].readings[at : at + 1]
    )
    assert after.provenance["selected"] == {"of": before.pack_id, "left_out": ["curt"]}
    assert after.report == before.report
    assert cli("pack", "verify", out, "--model", model_folder).code == 0


def test_a_selection_that_means_nothing_is_refused(
    cli: Cli, pack_folder: Path, tmp_path: Path
) -> None:
    for given, told in (
        (("toxik",), "'toxik' is none of the features"),
        (("*",), "leaves everything"),
        (("!*",), "leaves nothing"),
    ):
        ended = cli("pack", "select", pack_folder, *given, "--out", tmp_path / "fewer")
        assert ended.code == 2
        assert told in ended.err
    ended = cli("pack", "select", pack_folder, "toxic", "--out", pack_folder)
    assert "never edited in place" in ended.err
