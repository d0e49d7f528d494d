from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from monitor.errors import PackError
from monitor.given import LARGEST_JSON
from monitor.score.pack import (
    load_pack,
    manifest,
    save_pack,
)
from monitor.values.features import Covariate
from monitor.values.prompts import CANARY
from tests.score.packs import WIDTH, composite, contested, encoder, feature, pack

FIRST_ID = "92bbfc0db8153fec0e661343fb8e8debb2d64ab2fab0bd5cc4b5c4b2874e4005"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pack(pack(), tmp_path / "pack")
    return tmp_path / "pack"


def rewrite(folder: Path, change: Any) -> None:
    content = json.loads((folder / "pack.json").read_text())
    change(content)
    (folder / "pack.json").write_text(json.dumps(content))


def test_covariates_travel_with_the_pack_and_are_no_features(tmp_path: Path) -> None:
    plain = pack()
    read = tuple(
        Covariate(
            name=f"prompt.{n}", site=3, region="prompt", weight=np.eye(WIDTH, dtype=np.float32)[n]
        )
        for n in range(2)
    )
    made = pack(covariates=read)
    save_pack(made, tmp_path)
    kept = load_pack(tmp_path)
    assert kept.pack_id == made.pack_id != plain.pack_id
    assert [(one.name, one.site, one.region) for one in kept.covariates] == [
        ("prompt.0", 3, "prompt"),
        ("prompt.1", 3, "prompt"),
    ]
    np.testing.assert_array_equal(kept.covariates[1].weight, read[1].weight)
    assert kept.deepest_site == 3 > plain.deepest_site
    assert [feature.name for feature in kept.features] == [f.name for f in plain.features]
    assert manifest(made)["schema_version"] == 3
    assert manifest(plain)["schema_version"] == 1, "others keep their bytes"


@pytest.mark.parametrize(
    ("covariates", "said"),
    [
        ((("a", 9, WIDTH),), "covariate a: site 9 is beyond the last block, 3"),
        ((("a", 1, 3),), "covariate a: weight has shape"),
        ((("a", 1, WIDTH), ("a", 2, WIDTH)), "covariates: names must differ"),
    ],
)
def test_covariates_that_do_not_fit_are_refused(
    covariates: tuple[tuple[str, int, int], ...], said: str
) -> None:
    with pytest.raises(PackError, match=said):
        pack(
            covariates=tuple(
                Covariate(name=name, site=site, region="prompt", weight=np.ones(width, np.float32))
                for name, site, width in covariates
            )
        )


def test_a_saved_pack_comes_back_whole(folder: Path) -> None:
    original, loaded = pack(), load_pack(folder)
    assert loaded.pack_id == original.pack_id
    assert manifest(loaded) == manifest(original)
    np.testing.assert_array_equal(loaded.weights, original.weights)
    np.testing.assert_array_equal(loaded.canaries[0].readings, original.canaries[0].readings)
    assert loaded.deepest_site == 2


def test_the_same_pack_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_pack(pack(), tmp_path / name)
    for file in ("pack.json", "features.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_id_depends_on_every_part() -> None:
    other_weight = feature().weight.copy()
    other_weight[0] = np.nextafter(other_weight[0], np.float32(9))
    variants = [
        pack(),
        pack(version="2"),
        pack(report={"auc": 0.91}),
        pack(canaries=()),
        pack(features=(feature(weight=other_weight), feature("assistant", expected="falls"))),
        pack(model=replace(pack().model, weights_hash=None)),
    ]
    assert len({variant.pack_id for variant in variants}) == len(variants)


def test_altered_weights_are_refused(folder: Path) -> None:
    weights = pack().weights
    weights[0, 0] += 1e-3
    save_file({"weights": weights}, folder / "features.safetensors")
    with pytest.raises(PackError, match="was altered"):
        load_pack(folder)


def test_an_altered_manifest_is_refused(folder: Path) -> None:
    rewrite(folder, lambda content: content["features"][0].update(tail_threshold=99.0))
    with pytest.raises(PackError, match="was altered"):
        load_pack(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=5), "schema_version 5 is unknown"),
        (lambda c: c.pop("schema_version"), "schema_version None is unknown"),
        (lambda c: c.update(extra=1), "extra: unknown field"),
        (lambda c: c["features"][1].pop("site"), r"features\.1\.site"),
        (lambda c: c["features"][0].update(region="answer"), r"features\.0\.region"),
        (lambda c: c["features"][0].update(site=4), "site 4 is beyond the last block, 3"),
        (lambda c: c["features"][0].update(site="2"), r"features\.0\.site"),
        (lambda c: c["features"][0].update(activation="relu"), "has activation identity"),
        (lambda c: c["features"][1].update(name="malicious"), "names must differ"),
        (lambda c: c["features"][0]["calibration"].update(deviations=[0.0, 1.0]), "positive"),
        (lambda c: c["canaries"][0].update(readings=[0.5]), "one reading per feature"),
        (lambda c: c["model"].update(hidden_size=9), r"float32 \[2, 9\]"),
        (lambda c: c.update(features=[]), "features"),
        (lambda c: c.update(id="x"), "id"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(PackError, match=message):
        load_pack(folder)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_numbers_in_the_manifest_are_refused(folder: Path, constant: str) -> None:
    text = (folder / "pack.json").read_text().replace('"bias":0.0', f'"bias":{constant}')
    assert constant in text
    (folder / "pack.json").write_text(text)
    with pytest.raises(PackError):
        load_pack(folder)


def test_non_finite_weights_are_refused_by_feature(folder: Path) -> None:
    weights = pack().weights
    weights[1, 3] = np.nan
    save_file({"weights": weights}, folder / "features.safetensors")
    with pytest.raises(PackError, match="assistant is not finite"):
        load_pack(folder)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weights": np.zeros((2, WIDTH), np.float64)},
        {"weights": np.zeros((2, WIDTH), np.float16)},
        {"weights": np.zeros((3, WIDTH), np.float32)},
        {"other": np.zeros((2, WIDTH), np.float32)},
    ],
)
def test_wrong_tensors_are_refused(folder: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, folder / "features.safetensors")
    with pytest.raises(PackError, match="weights"):
        load_pack(folder)


def test_a_pickle_is_refused_even_under_the_right_name(folder: Path) -> None:
    (folder / "features.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(PackError, match="not a safetensors file"):
        load_pack(folder)
    (folder / "features.pt").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(PackError, match="can run code"):
        load_pack(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "pack.json").write_bytes(content)
    with pytest.raises(PackError, match=r"pack\.json"):
        load_pack(folder)


def test_a_manifest_too_large_to_be_one_is_refused_unread(folder: Path) -> None:
    with (folder / "pack.json").open("r+b") as file:
        file.truncate(LARGEST_JSON + 1)
    with pytest.raises(PackError, match=f"pack.json: it is larger than {LARGEST_JSON:,} bytes"):
        load_pack(folder)


def test_tensors_may_be_larger_than_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = 16 * 1024
    model = replace(pack().model, hidden_size=wide)
    weight = np.full(wide, 0.5, dtype=np.float32)
    save_pack(pack(model=model, features=(feature(weight=weight),), canaries=()), tmp_path)
    limit = (tmp_path / "pack.json").stat().st_size
    assert limit < 4 * wide
    monkeypatch.setattr("monitor.score.pack.LARGEST_JSON", limit)
    np.testing.assert_array_equal(load_pack(tmp_path).weights[0], weight)
    monkeypatch.setattr("monitor.score.pack.LARGEST_JSON", limit - 1)
    with pytest.raises(PackError, match=r"pack\.json: it is larger than"):
        load_pack(tmp_path)


@pytest.mark.parametrize("width", [1, WIDTH - 1, WIDTH + 1])
def test_features_of_another_width_make_no_pack(width: int) -> None:
    of_another = feature(weight=np.ones(width, dtype=np.float32))
    with pytest.raises(PackError, match="feature malicious: weight has shape"):
        pack(features=(of_another,), canaries=())


def test_features_of_the_models_width_make_one() -> None:
    assert pack(features=(feature(),), canaries=()).weights.shape == (1, WIDTH)


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="does not exist"):
        load_pack(tmp_path / "nowhere")
    (folder / "features.safetensors").unlink()
    with pytest.raises(PackError, match=r"features\.safetensors"):
        load_pack(folder)


def test_a_canary_is_a_prompt_of_the_reserved_topic() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    prompt = pack().canaries[0].prompt(3, at)
    assert (prompt.key.topic, prompt.key.offset) == (CANARY, 3)
    assert prompt.messages[0].content == "Hello — žluť"
    assert prompt.response == "Hi."


def test_a_pack_of_top_k_latents_carries_their_encoder_once(tmp_path: Path) -> None:
    shared = encoder()
    original = pack(features=(contested(1, shared), contested(4, shared)))
    assert save_pack(original, tmp_path) == original.pack_id
    loaded = load_pack(tmp_path)
    assert loaded.pack_id == original.pack_id
    assert manifest(loaded) == manifest(original)
    assert manifest(loaded)["schema_version"] == 2
    (one,) = loaded.encoders
    assert loaded.features[0].encoder is loaded.features[1].encoder is one
    np.testing.assert_array_equal(one.weight, shared.weight)
    np.testing.assert_array_equal(one.bias, shared.bias)
    assert (one.places, [f.latent for f in loaded.features]) == (2, [1, 4])


def test_packs_without_what_is_new_are_written_as_ever(folder: Path) -> None:
    content = json.loads((folder / "pack.json").read_text())
    assert content["schema_version"] == 1
    assert "encoders" not in content
    assert not {"encoder", "latent", "largest_norm", "parts"} & set(content["features"][0])
    # The id that the first version of this format gave to these features.
    assert content["id"] == FIRST_ID
    masked = pack(features=(feature(largest_norm=9.0), feature("assistant")))
    assert manifest(masked)["schema_version"] == 2
    save_pack(masked, folder)
    assert load_pack(folder).features[0].largest_norm == 9.0


def test_a_largest_norm_below_one_is_read_and_none_of_zero(folder: Path) -> None:
    save_pack(pack(features=(feature(largest_norm=0.5), feature("assistant"))), folder)
    assert load_pack(folder).features[0].largest_norm == 0.5
    rewrite(folder, lambda content: content["features"][0].update(largest_norm=0.0))
    with pytest.raises(PackError, match=r"features\.0\.largest_norm"):
        load_pack(folder)


def test_an_altered_encoder_is_refused(tmp_path: Path) -> None:
    original = pack(features=(contested(1, encoder()),), canaries=())
    save_pack(original, tmp_path)
    tensors = {
        "weights": original.weights,
        "sae.2.weight": encoder().weight,
        "sae.2.bias": encoder().bias + 1e-3,
    }
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match="was altered"):
        load_pack(tmp_path)
    save_file({"weights": original.weights}, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match=r"'sae\.2\.weight'"):
        load_pack(tmp_path)
    tensors["sae.2.bias"] = np.full(5, np.nan, dtype=np.float32)
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match="finite"):
        load_pack(tmp_path)
    tensors["sae.2.bias"] = np.zeros(4, dtype=np.float32)
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match=r"float32 \[5\], found float32 \[4\]"):
        load_pack(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["features"][0].update(encoder="sae.3"), "'sae.3' is not in the pack"),
        (lambda c: c["features"][0].update(latent=9), "latent must be one of the encoder's"),
        (lambda c: c["features"][0].update(latent=2), "weight is not that of latent 2"),
        (lambda c: c["features"][0].pop("encoder"), "topk needs the encoder"),
        (lambda c: c["encoders"][0].update(places=6), "places must be in 1..n"),
    ],
)
def test_a_wrong_encoder_is_named(tmp_path: Path, change: Any, message: str) -> None:
    save_pack(pack(features=(contested(1, encoder()),), canaries=()), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(PackError, match=message):
        load_pack(tmp_path)


def test_encoders_of_one_name_must_be_one() -> None:
    with pytest.raises(PackError, match="encoders: names must differ"):
        pack(features=(contested(1, encoder()), contested(2, encoder(seed=4))))


def test_a_composite_keeps_its_parts_and_makes_a_pack_of_version_3(tmp_path: Path) -> None:
    original = pack(
        features=(feature(), composite("harmful", 0, 3), composite("other", 1)), canaries=()
    )
    save_pack(original, tmp_path)
    loaded = load_pack(tmp_path)
    assert loaded.pack_id == original.pack_id
    content = manifest(loaded)
    assert content["schema_version"] == 3
    assert [one.get("parts") for one in content["features"]] == [None, [0, 3], [1]]
    assert (loaded.features[1].sites, loaded.deepest_site) == ((0, 2, 3), 3)
    for ours, theirs in zip(original.features, loaded.features, strict=True):
        np.testing.assert_array_equal(ours.direction, theirs.direction)


def test_another_weight_of_a_part_is_another_pack(tmp_path: Path) -> None:
    one = composite("harmful", 0, 3)
    other = one.along(np.concatenate([one.direction[:-1], one.direction[-1:] + 1]))
    ids = {pack(features=(f,), canaries=()).pack_id for f in (one, other, composite("harmful", 0))}
    assert len(ids) == 3
    save_pack(pack(features=(one,), canaries=()), tmp_path)
    tensors = {"weights": one.weight[None], "parts": np.stack([p.weight for p in other.parts])}
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match="was altered"):
        load_pack(tmp_path)
    tensors["parts"] = tensors["parts"][:1]
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match=r"parts must be float32 \[2, 8\], found float32 \[1, 8\]"):
        load_pack(tmp_path)
    save_file({"weights": one.weight[None]}, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match="'parts'"):
        load_pack(tmp_path)
    tensors["parts"] = np.full((2, WIDTH), np.nan, dtype=np.float32)
    save_file(tensors, tmp_path / "features.safetensors")
    with pytest.raises(PackError, match="finite"):
        load_pack(tmp_path)


def test_a_part_beyond_the_model_is_refused() -> None:
    with pytest.raises(PackError, match="site 4 is beyond the last block, 3"):
        pack(features=(composite("harmful", 4),), canaries=())


def test_a_pattern_travels_beside_the_weight_and_makes_a_pack_of_version_4(tmp_path: Path) -> None:
    written = np.arange(1, WIDTH + 1, dtype=np.float32)
    read = feature()
    one = replace(read, name="learned", pattern=written)
    original = pack(features=(read, one, composite("harmful", 0)), canaries=())
    save_pack(original, tmp_path)
    loaded = load_pack(tmp_path)
    assert (loaded.pack_id, manifest(loaded)["schema_version"]) == (original.pack_id, 4)
    assert [f.pattern is None for f in loaded.features] == [True, False, True]
    np.testing.assert_array_equal(loaded.features[1].written_along, written)
    np.testing.assert_array_equal(loaded.features[0].written_along, read.weight)
    # Read along another direction, nothing is known of what writes it.
    np.testing.assert_array_equal(one.along(-one.direction).written_along, -one.weight)


def test_another_or_a_broken_pattern_is_refused(tmp_path: Path) -> None:
    one = feature(pattern=np.ones(WIDTH, dtype=np.float32))
    save_pack(pack(features=(one,), canaries=()), tmp_path)
    for patterns, said in (
        (np.full((1, WIDTH), 2.0, dtype=np.float32), "was altered"),
        (np.zeros((1, WIDTH), dtype=np.float32), "pattern must be"),
        (np.full((1, WIDTH), np.nan, dtype=np.float32), "pattern must be"),
        (np.ones((2, WIDTH), dtype=np.float32), r"patterns must be float32 \[1, 8\]"),
    ):
        save_file(
            {"weights": one.weight[None], "patterns": patterns}, tmp_path / "features.safetensors"
        )
        with pytest.raises(PackError, match=said):
            load_pack(tmp_path)
