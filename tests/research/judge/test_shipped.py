"""The pack that ships, judged on the real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.replay.model import identity_of
from monitor.research.judge.page import judge_page
from monitor.research.judge.run import judge_pack
from monitor.score.fit import shipped_pack
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings
from tests.scenes.texts import part_of_texts


@pytest.mark.model
@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_the_shipped_pack_reads_what_it_says(chat_model_path: Path, tmp_path: Path) -> None:
    folder = shipped_pack(identity_of(ReplaySettings(model=chat_model_path)))
    assert folder is not None
    pack = load_pack(folder)
    # A feature that rises and the one that falls: all eleven take minutes, and `pack judge` runs them.
    chosen = [feature for feature in pack.features if feature.name in ("reckless", "assistant")]
    pack = replace(pack, features=tuple(chosen), canaries=())
    data = part_of_texts(
        tmp_path / "texts", voices=("reckless", "malicious"), train=3, fit=8, check=2
    )
    report = judge_pack(pack, chat_model_path, data=data, quick=True, device="cpu")
    for name, one in report["features"].items():
        assert one["decision"] != "reject", (name, one["reasons"])
        assert one["noise"]["small batches"] < 0.01, name
    (benign,) = {
        tail["benign_texts"]
        for tail in report["features"]["assistant"]["tails"]
        if not tail["known"]
    }
    assert f"cannot be known from {benign} benign texts" in judge_page(pack.name, report)
