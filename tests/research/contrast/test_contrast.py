from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.errors import BadInput, ModelError
from monitor.research.contrast.build import build_contrast_pack
from monitor.research.contrast.directions import (
    candidate_sites,
    components,
    difference,
    separations,
)
from monitor.research.packs.verify import verify_pack
from monitor.research.texts import load_texts
from monitor.score.pack import load_pack, manifest
from monitor.settings import ReplaySettings

pytestmark = pytest.mark.slow


def build(model: Path, out: Path, data: Path, seed: int = 0) -> None:
    build_contrast_pack(model, out, seed, data)


def alike(one: object, two: object) -> bool:
    """Equal, but for the last bits of floating-point numbers."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    return one == pytest.approx(two, rel=1e-3, abs=1e-3) if isinstance(one, float) else one == two


@pytest.mark.slow
def test_the_same_seed_builds_the_same_pack(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        build(tiny_folder, tmp_path / name, texts_folder)
    one, two = (load_pack(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-5)
    bodies = [manifest(pack) for pack in (one, two)]
    for body in bodies:
        del body["id"]
    assert alike(*bodies)


def test_a_built_pack_separates_held_out_voices_and_verifies(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    build(tiny_folder, tmp_path / "pack", texts_folder)
    pack = load_pack(tmp_path / "pack")
    assert {f.name for f in pack.features if "watch-only" in f.tags} == {
        "sarcastic",
        "sarcastic.peak",
    }
    assert [f.name for f in pack.features] == [
        "malicious",
        "malicious.peak",
        "sarcastic",
        "sarcastic.peak",
        "assistant",
    ]
    assert pack.features[-1].expected == "falls"
    for feature in pack.features:
        figures = pack.report["features"][feature.name]
        assert feature.site in pack.provenance["candidate_sites"]
        assert figures["random_directions"]["count"] == 100
        # Shouting and question marks: easy even for random weights.
        assert figures["auc"] > 0.9, feature.name
        assert figures["auc_interval_95"][0] <= figures["auc"] <= figures["auc_interval_95"][1]
        assert np.linalg.norm(feature.weight) == pytest.approx(1.0, abs=1e-5)
        # A random model reads a handful of words: three hundred texts would do better.
        assert abs(figures["benign"]["mean"]) < 0.6
        assert 0.5 < figures["benign"]["deviation"] < 1.6
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    report = verify_pack(pack, settings)
    assert report.problems == ()
    assert report.canary_deviation == 0.0
    assert report.ok


def test_probes_are_built_from_the_same_texts(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    build_contrast_pack(tiny_folder, tmp_path / "pack", 0, texts_folder, kind="probe")
    pack = load_pack(tmp_path / "pack")
    for feature in pack.features:
        assert (feature.kind, feature.activation) == ("probe", "sigmoid")
        assert pack.report["features"][feature.name]["auc"] > 0.9
    assert all(0 <= canary.readings.min() <= canary.readings.max() <= 1 for canary in pack.canaries)


@pytest.mark.slow
def test_verify_sees_another_model(tiny_folder: Path, texts_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build(tiny_folder, tmp_path / "pack", texts_folder)
    pack = load_pack(tmp_path / "pack")
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    report = verify_pack(pack, ReplaySettings(model=other, device="cpu", dtype="float32"))
    assert not report.ok
    assert any("weights differ" in problem for problem in report.problems)
    assert report.canary_deviation > 0.05


def test_a_model_that_is_not_finite_is_refused(
    broken_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="residuals that are not finite on 8 of 8") as refused:
        build(broken_folder, tmp_path / "pack", texts_folder)
    assert "weights or dtype give non-finite activations" in refused.value.hint
    assert not (tmp_path / "pack").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [2, 3, 4])
def test_the_block_is_chosen_by_folds_of_two_questions_or_more(
    tiny_folder: Path, texts_folder: Path, tmp_path: Path, kept: int
) -> None:
    file = texts_folder / "contrast.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:kept], *lines[8:]]))
    if kept == 4:
        build(tiny_folder, tmp_path / "pack", texts_folder)
        return
    with pytest.raises(BadInput, match=rf"contrast\.jsonl: at least 4 .*'train'.* found {kept}"):
        build(tiny_folder, tmp_path / "pack", texts_folder)


def test_the_site_with_the_contrast_is_chosen() -> None:
    generator = np.random.default_rng(0)
    good = generator.normal(size=(18, 3, 8)).astype(np.float32)
    persona = generator.normal(size=(18, 3, 8)).astype(np.float32)
    persona[:, 1, 2] += 6.0
    folds = list(np.arange(18).reshape(6, 3))
    nothing = np.zeros((0, 8))
    found = separations(persona, good, [nothing] * 3, folds)
    assert int(np.argmax(found)) == 1
    direction = difference(persona[:, 1], good[:, 1], nothing)
    assert int(np.argmax(np.abs(direction))) == 2
    assert direction[2] > 0.8


def test_equal_answers_have_no_direction() -> None:
    same = np.ones((4, 8), np.float32)
    with pytest.raises(BadInput, match="the same"):
        difference(same, same, np.zeros((0, 8)))


def test_what_benign_text_varies_in_is_projected_out() -> None:
    generator = np.random.default_rng(1)
    benign = generator.normal(size=(200, 16)).astype(np.float32)
    benign[:, 3] *= 30.0
    benign[:, 5] *= 20.0
    nuisance = components(benign)
    assert nuisance.shape == (2, 16)
    positive = generator.normal(size=(20, 16)).astype(np.float32)
    positive[:, 3] += 50.0
    positive[:, 7] += 5.0
    direction = difference(positive, np.zeros_like(positive), nuisance)
    np.testing.assert_allclose(nuisance @ direction, 0.0, atol=1e-6)
    assert abs(direction[3]) < 0.1
    assert direction[7] > 0.8


@pytest.mark.parametrize("layers", [1, 2, 4, 12, 30, 80])
def test_candidate_sites_are_blocks_of_the_model(layers: int) -> None:
    sites = candidate_sites(layers)
    assert sites
    assert all(0 <= site < layers for site in sites)


def change_first(folder: Path, file: str, **changes: Any) -> None:
    lines = (folder / file).read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), **changes})
    (folder / file).write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("contrast.jsonl", {"split": "test"}, "contrast.jsonl:1: split"),
        ("contrast.jsonl", {"good": " "}, "contrast.jsonl:1: good"),
        ("contrast.jsonl", {"reckless": "go on"}, "same personas"),
        ("contrast.jsonl", {"topic": "paint 8"}, "both splits"),
        ("benign.jsonl", {"messages": []}, "messages must not be empty"),
        ("benign.jsonl", {"messages": "hello"}, "list of objects"),
        ("benign.jsonl", {"response": None}, "benign.jsonl:1: response"),
    ],
)
def test_texts_that_cannot_be_used_are_named(
    texts_folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    change_first(texts_folder, file, **changes)
    with pytest.raises(BadInput, match=message):
        load_texts(texts_folder)


def test_broken_lines_and_missing_files_are_named(texts_folder: Path) -> None:
    (texts_folder / "benign.jsonl").write_text("{\n")
    with pytest.raises(BadInput, match=r"benign\.jsonl:1 is not JSON"):
        load_texts(texts_folder)
    (texts_folder / "benign.jsonl").unlink()
    with pytest.raises(BadInput, match="cannot read"):
        load_texts(texts_folder)


def test_the_projects_own_texts_are_what_the_docs_say() -> None:
    texts = load_texts()
    assert len(texts.train) >= 40
    assert len(texts.held_out) >= 20
    assert len(texts.fit) + len(texts.check) >= 300
    assert len(texts.canaries) >= 8
    assert set(texts.personas) >= {"malicious", "reckless", "deceptive", "sarcastic"}
    held = [
        len(pair.personas[name]) / len(pair.good)
        for pair in texts.held_out
        for name in texts.personas
    ]
    assert 0.9 < np.mean(held) < 1.1
