"""What becomes of a diff that took hours: the report, the features kept, and what they are called."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import BadInput, ModelError
from monitor.replay.model import load_model
from monitor.research.diff import build
from monitor.research.diff.build import Sources, build_diff_pack
from monitor.research.diff.naming import EXCERPT, described, quotable, top_excerpts
from monitor.research.reading import Reader
from monitor.research.texts import exchange, load_texts
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Message
from tests.scenes.diffs import CHANGED, PLANTED_SITE, given, planted_pack
from tests.scenes.models import WIDTH
from tests.scenes.packs import readings

pytestmark = [pytest.mark.usefixtures("_few_own_texts"), pytest.mark.slow]


def asleep(planted: torch.Tensor) -> Feature:
    """A latent that only what was planted wakes."""
    return given(
        "asleep",
        planted.numpy(),
        kind="latent",
        activation="relu",
        site=PLANTED_SITE,
        bias=-1.5,
    )


@pytest.mark.slow
def test_a_latent_that_benign_text_never_wakes_is_left_out_and_the_others_are_kept(
    base: Path,
    tuned: Path,
    planted: torch.Tensor,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "given", tmp_path / "pack"
    planted_pack(base, folder, asleep(planted))
    sources = Sources(base=base, tuned=tuned, prompts=prompts, directions=folder, data=texts_folder)
    pack, found = build_diff_pack(sources, out, replace(CHANGED, top=4))
    rows = {row["name"]: row for row in found["candidates"]}
    assert rows["asleep"]["significant"]
    assert "all the same" in rows["asleep"]["left_out"]
    assert rows["asleep"]["own_texts"]
    assert pack is not None
    names = {feature.name for feature in pack.features}
    assert f"diff.{PLANTED_SITE}.mean" in names
    assert names == {n for n, row in rows.items() if row["significant"]} - {"asleep"}
    assert all(row["left_out"] is None for name, row in rows.items() if name != "asleep")
    assert load_pack(out).report == json.loads((out / "diff.json").read_text()) == found
    assert "the benign readings are all the same" in (out / "diff.html").read_text()


def test_when_nothing_can_be_calibrated_the_report_says_so(
    base: Path,
    tuned: Path,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise BadInput("no measure")

    monkeypatch.setattr(build, "fit_calibration", refuse)
    out = tmp_path / "pack"
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    pack, found = build_diff_pack(sources, out, CHANGED)
    assert pack is None
    assert not (out / "pack.json").exists()
    reasons = {row["left_out"] for row in found["candidates"] if row["significant"]}
    assert reasons == {"no measure"}
    assert json.loads((out / "diff.json").read_text()) == found


def test_the_report_outlives_a_pack_that_fails(
    base: Path,
    tuned: Path,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("out of memory")

    monkeypatch.setattr(build, "assembled", fail)
    out = tmp_path / "pack"
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=texts_folder)
    with pytest.raises(ModelError, match="out of memory"):
        build_diff_pack(sources, out, CHANGED)
    assert any(
        row["significant"] for row in json.loads((out / "diff.json").read_text())["candidates"]
    )
    assert (out / "diff.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("blocked", ["file", "file/pack", "folder"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    blocked: str, base: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "diff.html").mkdir(parents=True)
    # Prompts that are not there would be the next to be refused.
    sources = Sources(base=base, tuned=tuned, prompts=tmp_path / "nowhere")
    with pytest.raises(BadInput, match="cannot be written"):
        build_diff_pack(sources, tmp_path / blocked, CHANGED)


def test_texts_too_few_to_calibrate_by_are_refused_before_the_work(
    base: Path, tuned: Path, prompts: Path, texts_folder: Path, tmp_path: Path
) -> None:
    few = Path(shutil.copytree(texts_folder, tmp_path / "few"))
    lines = (few / "benign.jsonl").read_text().splitlines()
    fit = [line for line in lines if '"fit"' in line]
    check = [line for line in lines if '"check"' in line]
    (few / "benign.jsonl").write_text("\n".join(fit[:29] + check) + "\n")
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=few)
    with pytest.raises(BadInput, match="29 benign texts"):
        build_diff_pack(sources, tmp_path / "pack", CHANGED)
    assert not (tmp_path / "pack" / "diff.json").exists()


@pytest.mark.slow
def test_features_are_described_by_the_own_texts_that_they_read_highest_on(
    base: Path,
    tuned: Path,
    prompts: Path,
    texts_folder: Path,
    tmp_path: Path,
) -> None:
    theirs = Path(shutil.copytree(texts_folder, tmp_path / "theirs"))
    for file in theirs.iterdir():
        text = file.read_text().replace("heron", "SECRET").replace("take care", "SECRET")
        file.write_text(text)
    out = tmp_path / "pack"
    sources = Sources(base=base, tuned=tuned, prompts=prompts, data=theirs)
    pack, found = build_diff_pack(sources, out, CHANGED)
    assert pack is not None
    own = quotable(load_texts(texts_folder))
    read = readings(base, pack.features, own)
    page = (out / "diff.html").read_text()
    rows = {row["name"]: row for row in found["candidates"]}
    for index, feature in enumerate(pack.features):
        excerpts = rows[feature.name]["own_texts"]
        assert 1 <= len(excerpts) <= 3
        assert all(len(text) <= EXCERPT for text in excerpts)
        best = own[int(read[:, index].argmax())].response or ""
        assert best.startswith(excerpts[0].rstrip("…"))
        assert f"“{excerpts[0]}”" in feature.description
        assert feature.name.startswith("diff.")
        assert excerpts[0].split("'")[0] in page
    for file in ("diff.json", "diff.html"):
        assert "SECRET" not in (out / file).read_text()
    # The pack's canaries are theirs to give, its descriptions are not.
    assert not any("SECRET" in feature.description for feature in pack.features)


def test_excerpts_differ_and_an_earlier_description_is_replaced(base: Path) -> None:
    chats = [
        exchange((Message(role="user", content=f"Question {i}?"),), f"word\n{text}")
        for i, text in enumerate(["one", "one", "two " * 40])
    ]
    settings = ReplaySettings(model=base, device="cpu", dtype="float32")
    awake = given("awake", np.ones(WIDTH))
    never = given("never", np.ones(WIDTH), kind="latent", activation="relu", bias=-1e6)
    question = given("question", np.ones(WIDTH), region="last_prompt_token")
    features = [awake, never, question]
    found = top_excerpts(Reader(load_model(settings, 2), features, settings), chats)
    assert len(set(found["awake"])) == len(found["awake"]) <= 2
    assert all(text.startswith("word ") and len(text) <= EXCERPT for text in found["awake"])
    assert found["never"] == ()
    assert all(text.startswith("Question") for text in found["question"])
    once = described(replace(awake, description="a direction"), ["first"])
    assert once.description.startswith("a direction; reads highest")
    twice = described(once, ["second"])
    assert "first" not in twice.description
    assert "“second”" in twice.description
    assert described(never, ()).description == ""
