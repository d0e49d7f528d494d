"""Latents of a checkpoint become a pack that verifies on its model, and say how faithful the SAE is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.errors import BadInput, ModelError
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.packs.verify import verify_pack
from monitor.research.saes.autoencoder import Published, SparseAutoencoder
from monitor.research.saes.build import Imported, LatentChoice, build_latent_pack
from monitor.research.saes.detect import load_autoencoder
from monitor.research.saes.fidelity import Expected, median_norm, token_residuals
from monitor.research.texts import load_texts
from monitor.score.pack import load_pack
from monitor.settings import ReplaySettings

pytestmark = pytest.mark.slow

WIDTH, LATENTS, SITE = 32, 64, 1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """± every coordinate: an exact SAE of any residual. Latent 5 never wakes: its bias is far below."""
    folder = tmp_path / "sae"
    folder.mkdir()
    axes = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    bias = torch.zeros(LATENTS)
    bias[5] = -1e6
    save_file(
        {
            "W_enc": axes.T.contiguous(),
            "b_enc": bias,
            "W_dec": axes,
            "b_dec": torch.zeros(WIDTH),
        },
        folder / "sae_weights.safetensors",
    )
    write_config(folder)
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    config = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "hook_name": f"blocks.{SITE}.hook_resid_post",
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.fixture
def build(tiny_folder: Path, texts_folder: Path, tmp_path: Path) -> Any:
    def build(sae: SparseAutoencoder, *latents: int, **options: Any) -> Imported:
        expected = options.pop("expected", Expected())
        return build_latent_pack(
            sae,
            LatentChoice(latents=latents, **options),
            tiny_folder,
            tmp_path / "pack",
            expected=expected,
            data=texts_folder,
        )

    return build


def test_chosen_latents_are_calibrated_and_verify(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path, build: Any
) -> None:
    made = build(load_autoencoder(checkpoint), 3, 1, names=("third", "first"))
    pack = load_pack(tmp_path / "pack")
    assert [(f.name, f.kind, f.site) for f in pack.features] == [
        ("third", "latent", SITE),
        ("first", "latent", SITE),
    ]
    assert all(f.calibration.deviations[0] > 0 for f in pack.features)
    assert verify_pack(pack, ReplaySettings(model=tiny_folder)).ok
    checkpoint_entry = pack.provenance["checkpoint"]
    assert checkpoint_entry["publisher"]["hook_name"] == f"blocks.{SITE}.hook_resid_post"
    assert len(checkpoint_entry["sha256"]) == 64
    # Only one axis is missing from an otherwise exact dictionary.
    assert 0.9 < made.fidelity.variance_explained < 1.0
    assert 30.0 < made.fidelity.l0 <= 32.0
    assert made.as_published is None


def test_the_report_says_whether_the_sae_is_as_published(checkpoint: Path, build: Any) -> None:
    sae = replace(load_autoencoder(checkpoint), published=Published(l0=32.0))
    assert build(sae, 3).as_published is True
    far = build(sae, 3, expected=Expected(l0=5.0, variance_explained=0.5))
    assert far.as_published is False
    assert [line.partition(" is ")[0] for line in far.disagreements] == ["mean L0"]
    assert far.pack.report["autoencoder"]["expected"] == {"l0": 5.0, "variance_explained": 0.5}


@pytest.mark.slow
def test_a_dropped_threshold_shows(checkpoint: Path, build: Any) -> None:
    """The commonest mistake: a jumprelu loaded as relu."""
    relu = load_autoencoder(checkpoint)
    lengths = build(relu, 3).fidelity
    faithful = replace(
        relu, activation="jumprelu", threshold=torch.full((LATENTS,), 0.02), published=Published()
    )
    true_l0 = build(faithful, 3).fidelity.l0
    assert true_l0 < lengths.l0 / 2
    assert build(replace(relu, published=Published(l0=true_l0)), 3).as_published is False


def test_a_top_k_pack_carries_its_encoder_and_verifies(
    checkpoint: Path, tiny_folder: Path, tmp_path: Path, build: Any
) -> None:
    folder = write_config(checkpoint, architecture="topk", k=8)
    made = build(load_autoencoder(folder), 3, 40)
    pack = load_pack(tmp_path / "pack")
    assert pack.pack_id == made.pack.pack_id
    (encoder,) = pack.encoders
    assert (encoder.weight.shape, encoder.places) == ((LATENTS, WIDTH), 8)
    assert made.fidelity.l0 == pytest.approx(8.0)
    assert made.as_published is True
    assert made.microseconds_per_token > 0
    assert verify_pack(pack, ReplaySettings(model=tiny_folder)).ok


def test_a_masked_sae_keeps_its_skipped_tokens_and_its_largest_norm(
    checkpoint: Path, tiny_folder: Path, texts_folder: Path, tmp_path: Path, build: Any
) -> None:
    sae = replace(load_autoencoder(checkpoint), skip_tokens=8, norm_multiple=1.1)
    build(sae, 3)
    (feature,) = load_pack(tmp_path / "pack").features
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    texts = load_texts(texts_folder)
    residuals = token_residuals(
        ResidualReader(load_model(settings, SITE), settings),
        (*texts.check, *texts.fit),
        SITE,
        4_096,
        8,
    )
    assert feature.skip_tokens == 8
    assert feature.largest_norm == pytest.approx(1.1 * median_norm(residuals), rel=1e-6)
    build(sae, 3, norm_multiple=0.0, skip_tokens=2)
    (feature,) = load_pack(tmp_path / "pack").features
    assert (feature.skip_tokens, feature.largest_norm) == (2, None)


def test_token_residuals_are_the_tokens_behind_the_skipped(
    tiny_folder: Path, texts_folder: Path
) -> None:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    reader = ResidualReader(load_model(settings, SITE), settings)
    prompts = load_texts(texts_folder).fit[:3]
    whole = token_residuals(reader, prompts, SITE, 10_000, 3)
    counts = reader.token_counts(prompts, "all", 3)
    assert whole.shape == (sum(counts), WIDTH)
    means = reader.mean_residuals(prompts, [SITE], "all", 3)[:, 0]
    total = (means * np.array(counts)[:, None]).sum(axis=0)
    np.testing.assert_allclose(whole.sum(dim=0).numpy(), total, rtol=1e-3, atol=1e-3)
    assert len(token_residuals(reader, prompts, SITE, 5, 3)) == 5


def test_a_latent_that_benign_text_never_wakes_is_refused(checkpoint: Path, build: Any) -> None:
    with pytest.raises(BadInput, match="all the same") as refusal:
        build(load_autoencoder(checkpoint), 5)
    assert "--data" in refusal.value.hint


def test_an_sae_of_another_width_is_refused(checkpoint: Path, build: Any) -> None:
    sae = load_autoencoder(checkpoint)
    narrow = replace(
        sae,
        encoder=sae.encoder[:, :16],
        decoder=sae.decoder[:, :16],
        decoder_bias=sae.decoder_bias[:16],
        subtracted=None,
    )
    with pytest.raises(BadInput, match=r"16 wide.*another model"):
        build(narrow, 3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39])
def test_numbers_that_are_not_finite_are_refused_by_name(
    checkpoint: Path, build: Any, number: float
) -> None:
    sae = load_autoencoder(checkpoint)
    for name in ("decoder", "decoder_bias"):
        broken = getattr(sae, name).double().clone()
        broken.view(-1)[7] = number
        with pytest.raises(BadInput, match=rf"sae_weights.*the {name.replace('_', ' ')} holds"):
            build(replace(sae, **{name: broken}), 3)


def test_a_norm_multiple_that_leaves_no_token_is_refused(checkpoint: Path, build: Any) -> None:
    with pytest.raises(BadInput, match="0 tokens of benign text are left"):
        build(load_autoencoder(checkpoint), 3, norm_multiple=1e-6)


def test_a_model_that_is_not_finite_is_refused(
    checkpoint: Path, broken_folder: Path, texts_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="residuals that are not finite behind block 1") as refused:
        build_latent_pack(
            load_autoencoder(checkpoint),
            LatentChoice(latents=(3,)),
            broken_folder,
            tmp_path / "pack",
            data=texts_folder,
        )
    assert "weights or dtype" in refused.value.hint


def test_latents_rise_or_fall_and_are_tagged_as_asked(checkpoint: Path, build: Any) -> None:
    sae = load_autoencoder(checkpoint)
    usual, fallen = build(sae, 3, 1, falls=(1,)).pack.features
    assert (usual.expected, usual.tags) == ("rises", ("latent", "misaligned"))
    assert (fallen.expected, fallen.tags) == ("falls", ("latent", "assistant"))
    styled = build(sae, 3, 1, falls=(1,), tags=("style", "watch-only")).pack.features
    assert [f.tags for f in styled] == [("latent", "style", "watch-only"), ("latent", "assistant")]
    with pytest.raises(BadInput, match=r"--falls.*\[9\] are not among the latents"):
        LatentChoice(latents=(3, 1), falls=(9,))
    with pytest.raises(BadInput, match="--tag"):
        LatentChoice(latents=(3,), tags=(" ",))
