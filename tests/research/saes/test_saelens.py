"""SAELens folders of every architecture, against their definition in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.detect import load_autoencoder
from monitor.research.saes.features import latent_features

D, N = 6, 10
FLAT = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": N,
    "hook_name": "blocks.3.hook_resid_post",
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
}
Draw = Callable[..., torch.Tensor]
Read = Callable[[SparseAutoencoder, torch.Tensor], Any]


def write(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    (folder / "cfg.json").write_text(json.dumps({**FLAT, **changes}))
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def write_v6(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    config = {k: v for k, v in FLAT.items() if k not in ("hook_name", "activation_fn_str")}
    metadata = {"hook_name": FLAT["hook_name"], "model_name": "x", "sae_lens_version": "6.54.12"}
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**config, "metadata": metadata, **changes}))
    return folder


@pytest.fixture
def weights(draw: Draw) -> dict[str, torch.Tensor]:
    return {
        "W_enc": draw(D, N),
        "b_enc": draw(N),
        "W_dec": draw(N, D),
        "b_dec": draw(D),
    }


def double(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in weights.items()}


def test_standard_subtracts_the_decoder_bias(
    tmp_path: Path, weights: dict[str, torch.Tensor], residuals: torch.Tensor, read: Read
) -> None:
    sae = load_autoencoder(write(tmp_path, weights))
    w = double(weights)
    expected = np.maximum((residuals.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    np.testing.assert_allclose(read(sae, residuals), expected, atol=2e-5)
    assert (sae.format, sae.site, sae.activation) == ("saelens", 3, "relu")


def test_the_decoder_bias_stays_out_when_the_config_says_so(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    sae = load_autoencoder(write(tmp_path, weights, apply_b_dec_to_input=False))
    (feature,) = latent_features(sae, [4])
    assert feature.bias == pytest.approx(float(weights["b_enc"][4]))


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("form", [write, write_v6])
def test_jumprelu_under_every_norm(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    residuals: torch.Tensor,
    read: Read,
    form: Callable[..., Path],
    norm: str,
) -> None:
    weights["threshold"] = torch.linspace(-0.5, 2.0, N)
    sae = load_autoencoder(
        form(tmp_path, weights, architecture="jumprelu", normalize_activations=norm)
    )
    x, w = residuals.double().numpy(), double(weights)
    if norm == "constant_norm_rescale":
        x = x * np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    elif norm == "layer_norm":
        x = x - x.mean(axis=1, keepdims=True)
        x = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    a = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    expected = np.where(a > w["threshold"], np.maximum(a, 0.0), 0.0)
    np.testing.assert_allclose(read(sae, residuals), expected, atol=2e-5)
    assert sae.site == 3


def test_a_hook_before_a_block_is_the_block_before(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    assert load_autoencoder(write(tmp_path, weights, hook_name="blocks.3.hook_resid_pre")).site == 2


@pytest.mark.parametrize("form", [write, write_v6])
def test_a_gated_latent_is_exactly_a_jumprelu(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    residuals: torch.Tensor,
    draw: Draw,
    read: Read,
    form: Callable[..., Path],
) -> None:
    del weights["b_enc"]
    weights |= {"r_mag": draw(N, scale=0.5), "b_mag": draw(N), "b_gate": draw(N)}
    sae = load_autoencoder(form(tmp_path, weights, architecture="gated"))
    w = double(weights)
    x = residuals.double().numpy() - w["b_dec"]
    gate = x @ w["W_enc"] + w["b_gate"] > 0
    magnitude = np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0.0)
    np.testing.assert_allclose(read(sae, residuals), gate * magnitude, atol=2e-5)
    assert sae.activation == "jumprelu"


@pytest.mark.parametrize("by_norm", [False, True])
def test_topk_before_and_after_version_six(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    residuals: torch.Tensor,
    read: Read,
    largest: Callable[..., Any],
    by_norm: bool,
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old = write(tmp_path / "old", weights, activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    new = write_v6(
        tmp_path / "new",
        weights,
        architecture="topk",
        k=3,
        rescale_acts_by_decoder_norm=by_norm,
    )
    w = double(weights)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(load_autoencoder(old), residuals), largest(a, 3), atol=2e-5)
    scale = np.linalg.norm(w["W_dec"], axis=1) if by_norm else 1.0
    sae = load_autoencoder(new)
    np.testing.assert_allclose(read(sae, residuals), largest(a * scale, 3), atol=2e-5)
    assert sae.k == 3
    expected_decoder = w["W_dec"] / (scale[:, None] if by_norm else 1.0)
    np.testing.assert_allclose(sae.decoder_rows(range(N)).numpy(), expected_decoder, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_of_batchtopk_keeps_its_learned_threshold(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    residuals: torch.Tensor,
    read: Read,
    architecture: str,
) -> None:
    weights["topk_threshold"] = torch.tensor(1.7, dtype=torch.float64)
    folder = write_v6(
        tmp_path, weights, architecture=architecture, k=3, rescale_acts_by_decoder_norm=True
    )
    w = double(weights)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    a = a * np.linalg.norm(w["W_dec"], axis=1)
    expected = np.where(a > 1.7, a, 0.0)
    np.testing.assert_allclose(read(load_autoencoder(folder), residuals), expected, atol=2e-5)


def test_the_average_norm_is_folded(
    tmp_path: Path, weights: dict[str, torch.Tensor], residuals: torch.Tensor, read: Read
) -> None:
    folder = write(tmp_path, weights, normalize_activations="expected_average_only_in")
    with pytest.raises(BadInput, match="norm_factor"):
        load_autoencoder(folder)
    sae = load_autoencoder(folder, stated=Stated(norm_factor=0.25))
    w = double(weights)
    a = (0.25 * residuals.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), np.maximum(a, 0.0), atol=2e-5)
    np.testing.assert_allclose(sae.decoder_rows([2]).numpy()[0], 4.0 * w["W_dec"][2], rtol=1e-6)


def test_bfloat16_weights_are_read(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
    (feature,) = latent_features(load_autoencoder(write(tmp_path, weights)), [1])
    np.testing.assert_array_equal(feature.weight, weights["W_enc"][:, 1].float().numpy())


def test_the_mean_l0_of_training_is_the_published_one(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    write(tmp_path, weights)
    assert load_autoencoder(tmp_path).published.l0 is None
    write(tmp_path, weights, training_architecture_details={"k": 3})
    assert load_autoencoder(tmp_path).published.l0 == 3
    save_file({"sparsity": torch.log10(torch.full((N,), 0.25))}, tmp_path / "sparsity.safetensors")
    assert load_autoencoder(tmp_path).published.l0 == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jumprelu_transcoder"}, "'jumprelu_transcoder' is unknown"),
        ({"architecture": "temporal"}, "'temporal' is unknown"),
        ({"architecture": ["standard"]}, "is unknown"),
        ({"architecture": "jumprelu"}, "threshold is missing"),
        ({"architecture": "gated"}, "r_mag is missing"),
        ({"architecture": "topk"}, "k must be a positive whole number"),
        ({"architecture": "topk", "k": N + 1}, "k must be in 1..10"),
        ({"architecture": "batchtopk"}, "topk_threshold"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "hook_mlp_out"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "before the first block"),
        ({"hook_head_index": 2}, "hook_head_index"),
        ({"normalize_activations": "batch"}, "'batch' is unknown"),
        ({"normalize_activations": ["none"]}, "is unknown"),
        ({"d_in": 7}, r"W_dec has shape \[10, 6\], expected \[10, 7\]"),
        ({"d_sae": "many"}, "d_sae"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        load_autoencoder(write(tmp_path, weights, **changes))


@pytest.mark.parametrize("latents", [[], [N], [-1], [1, 1]])
def test_wrong_latents_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], latents: list[int]
) -> None:
    with pytest.raises(BadInput, match="latents"):
        latent_features(load_autoencoder(write(tmp_path, weights)), latents)


@pytest.mark.parametrize("names", [["one"], ["same", "same"]])
def test_wrong_names_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], names: list[str]
) -> None:
    with pytest.raises(BadInput, match="names"):
        latent_features(load_autoencoder(write(tmp_path, weights)), [1, 2], names=names)


def test_non_finite_latents_are_refused_when_they_are_asked_for(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    weights["W_enc"][0, 1] = float("nan")
    sae = load_autoencoder(write(tmp_path, weights))
    latent_features(sae, [2])
    with pytest.raises(BadInput, match="not finite"):
        latent_features(sae, [1])
