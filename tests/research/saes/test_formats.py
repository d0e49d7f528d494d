"""Every other published format: tensors written as the publisher writes them, read as production reads.

Each expectation is the format's own definition, in float64. D = model width, N = latents.
"""

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
from monitor.research.saes import dictionary_learning
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.detect import load_autoencoder

D, N = 6, 10
Draw = Callable[..., torch.Tensor]
Read = Callable[[SparseAutoencoder, torch.Tensor], Any]
Largest = Callable[[Any, int], Any]


def double(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in weights.items()}


def jumprelu(a: Any, threshold: Any) -> Any:
    return np.where(a > threshold, np.maximum(a, 0.0), 0.0)


def folder_of(tmp_path: Path, *parts: str) -> Path:
    folder = tmp_path.joinpath(*parts)
    folder.mkdir(parents=True)
    return folder


def check_decoder(sae: SparseAutoencoder, decoder: Any) -> None:
    np.testing.assert_allclose(sae.decoder_rows(range(N)).numpy(), decoder, rtol=1e-6)


# --- the Scope suites ----------------------------------------------------------------------------


def write_gemma(folder: Path, draw: Draw) -> dict[str, Any]:
    weights = {
        "W_enc": draw(D, N),
        "W_dec": draw(N, D),
        "b_enc": draw(N),
        "b_dec": draw(D),
        "threshold": draw(N).abs(),
    }
    np.savez(folder / "params.npz", **{name: w.numpy() for name, w in weights.items()})
    return double(weights)


def test_gemma_scope(tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read) -> None:
    folder = folder_of(tmp_path, "gemma-scope-2b-pt-res", "layer_12", "width_16k", "average_l0_82")
    w = write_gemma(folder, draw)
    sae = load_autoencoder(folder)
    a = residuals.double().numpy() @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), jumprelu(a, w["threshold"]), atol=2e-5)
    assert (sae.format, sae.site, sae.published.l0) == ("gemma-scope", 12, 82)
    assert sae.provenance == {"folder": "layer_12/width_16k/average_l0_82"}
    check_decoder(sae, w["W_dec"])
    # One of its files names the folder as well.
    assert load_autoencoder(folder / "params.npz").site == 12


@pytest.mark.parametrize(
    "parts",
    [
        ("gemma-scope-2b-pt-mlp", "layer_12", "width_16k", "average_l0_82"),
        ("gemma-scope-2b-pt-att", "layer_12", "width_16k", "average_l0_82"),
        ("gemma-scope-2b-pt-res", "embedding", "width_4k", "average_l0_6"),
        (
            "models--google--gemma-scope-2b-pt-mlp",
            "snapshots",
            "a1",
            "layer_1",
            "w",
            "average_l0_6",
        ),
    ],
)
def test_gemma_scope_elsewhere_is_refused(
    tmp_path: Path, draw: Draw, parts: tuple[str, ...]
) -> None:
    folder = folder_of(tmp_path, *parts)
    write_gemma(folder, draw)
    with pytest.raises(BadInput, match="does not read the residual stream"):
        load_autoencoder(folder)


def test_a_site_must_be_said_once_and_alike(tmp_path: Path, draw: Draw) -> None:
    folder = folder_of(tmp_path, "somewhere")
    write_gemma(folder, draw)
    with pytest.raises(BadInput, match="say site") as refusal:
        load_autoencoder(folder)
    assert "--site" in refusal.value.hint
    assert load_autoencoder(folder, stated=Stated(site=4)).site == 4
    named = folder_of(tmp_path, "layer_12")
    write_gemma(named, draw)
    with pytest.raises(BadInput, match="site is 12 by the checkpoint, 4 was asked for"):
        load_autoencoder(named, stated=Stated(site=4))


@pytest.mark.parametrize("configured", [True, False])
def test_gemma_scope_2(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read, configured: bool
) -> None:
    folder = folder_of(tmp_path, "resid_post", "layer_9_width_16k_l0_small")
    weights = {
        "w_enc": draw(D, N),
        "w_dec": draw(N, D),
        "b_enc": draw(N),
        "b_dec": draw(D),
        "threshold": draw(N).abs(),
    }
    save_file(weights, folder / "params.safetensors")
    if configured:
        config = {
            "architecture": "jump_relu",
            "hf_hook_point_in": "model.layers.9.output",
            "l0": 20,
        }
        (folder / "config.json").write_text(json.dumps(config))
    sae = load_autoencoder(folder)
    w = double(weights)
    a = residuals.double().numpy() @ w["w_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), jumprelu(a, w["threshold"]), atol=2e-5)
    assert (sae.format, sae.site) == ("gemma-scope-2", 9)
    assert sae.published.l0 == (20 if configured else None)
    check_decoder(sae, w["w_dec"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "topk"}, "'topk' is unknown"),
        ({"hf_hook_point_in": "model.layers.9.mlp.output"}, "not the output of a decoder block"),
        (
            {
                "hf_hook_point_in": "model.layers.9.output",
                "hf_hook_point_out": "model.layers.9.mlp.output",
            },
            "transcoder",
        ),
    ],
)
def test_other_gemma_scope_2_are_refused(
    tmp_path: Path, draw: Draw, config: dict[str, Any], message: str
) -> None:
    save_file({"w_enc": draw(D, N)}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message):
        load_autoencoder(tmp_path)


LLAMA = {
    "d_model": D,
    "d_sae": N,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
    "top_k": 50,
}


def write_llama(folder: Path, draw: Draw, **changes: Any) -> dict[str, Any]:
    (folder / "checkpoints").mkdir()
    weights = {
        "encoder.weight": draw(N, D),
        "encoder.bias": draw(N),
        "decoder.weight": draw(D, N),
        "decoder.bias": draw(D),
    }
    save_file(weights, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**LLAMA, **changes}))
    return double(weights)


def test_llama_scope(tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read) -> None:
    w = write_llama(tmp_path, draw)
    sae = load_autoencoder(tmp_path)
    factor = np.sqrt(D) / 4.0
    a = factor * residuals.double().numpy() @ w["encoder.weight"].T + w["encoder.bias"]
    np.testing.assert_allclose(read(sae, residuals), jumprelu(a, 0.6 * factor), atol=2e-5)
    assert (sae.format, sae.site, sae.published.l0) == ("llama-scope", 15, 50)
    check_decoder(sae, w["decoder.weight"].T / factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "topk"}, "'topk' is unknown"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"hook_point_in": "blocks.15.hook_mlp_out", "hook_point_out": None}, "transcoder"),
        ({"dataset_average_activation_norm": {"in": 0}}, "dataset_average_activation_norm"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"d_sae": 11}, "expected"),
    ],
)
def test_other_llama_scopes_are_refused(
    tmp_path: Path, draw: Draw, changes: dict[str, Any], message: str
) -> None:
    write_llama(tmp_path, draw, **changes)
    with pytest.raises(BadInput, match=message):
        load_autoencoder(tmp_path)


# --- sparsify ------------------------------------------------------------------------------------


def write_sparsify(folder: Path, draw: Draw, **changes: Any) -> dict[str, Any]:
    weights = {
        "encoder.weight": draw(N, D),
        "encoder.bias": draw(N),
        "W_dec": draw(N, D),
        "b_dec": draw(D),
    }
    save_file(weights, folder / "sae.safetensors")
    config = {
        "d_in": D,
        "expansion_factor": 32,
        "num_latents": N,
        "k": 3,
        "normalize_decoder": True,
    }
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return double(weights)


@pytest.mark.parametrize(("name", "site"), [("layers.7", 7), ("model.layers.7", 7), ("h.5", 5)])
def test_sparsify(
    tmp_path: Path,
    draw: Draw,
    residuals: torch.Tensor,
    read: Read,
    largest: Largest,
    name: str,
    site: int,
) -> None:
    folder = folder_of(tmp_path, name)
    w = write_sparsify(folder, draw)
    sae = load_autoencoder(folder)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    np.testing.assert_allclose(read(sae, residuals), largest(a, 3), atol=2e-5)
    assert (sae.format, sae.site, sae.k) == ("sparsify", site, 3)
    check_decoder(sae, w["W_dec"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("layers.7.mlp", {}, "not a hookpoint"),
        ("layers.7", {"transcode": True}, "transcode"),
        ("layers.7", {"skip_connection": True}, "skip_connection"),
        ("layers.7", {"signed": True}, "signed"),
        ("layers.7", {"activation": "groupmax"}, "'groupmax' is unknown"),
        ("layers.7", {"k": 0}, "k must be a positive"),
        ("layers.7", {"num_latents": 0, "expansion_factor": 2}, "encoder.weight has shape"),
    ],
)
def test_other_sparsify_checkpoints_are_refused(
    tmp_path: Path, draw: Draw, name: str, changes: dict[str, Any], message: str
) -> None:
    folder = folder_of(tmp_path, name)
    write_sparsify(folder, draw, **changes)
    with pytest.raises(BadInput, match=message):
        load_autoencoder(folder)


# --- single pickles ------------------------------------------------------------------------------


def write_openai(path: Path, draw: Draw, **changes: Any) -> dict[str, Any]:
    weights = {
        "pre_bias": draw(D),
        "latent_bias": draw(N),
        "encoder.weight": draw(N, D),
        "decoder.weight": draw(D, N),
    }
    rest = {
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"},
    }
    torch.save({**weights, **rest, **changes}, path)
    return double(weights)


def test_openai_topk_reads_a_layer_norm(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read, largest: Largest
) -> None:
    path = folder_of(tmp_path, "resid_post_mlp_v5_32k", "autoencoders") / "8.pt"
    w = write_openai(path, draw)
    sae = load_autoencoder(path)
    x = residuals.double().numpy()
    x = x - x.mean(axis=1, keepdims=True)
    x = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    a = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    np.testing.assert_allclose(read(sae, residuals), largest(a, 3), atol=2e-5)
    assert (sae.format, sae.site, sae.k) == ("openai", 8, 3)
    check_decoder(sae, w["decoder.weight"].T)


def test_openai_relu_reads_the_residual_as_it_is(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read
) -> None:
    w = write_openai(tmp_path / "3.pt", draw, activation="ReLU", activation_state_dict={})
    a = (residuals.double().numpy() - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    sae = load_autoencoder(tmp_path / "3.pt")
    np.testing.assert_allclose(read(sae, residuals), np.maximum(a, 0.0), atol=2e-5)


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("resid_post_attn_v5_32k", {}, "not the residual stream behind a block"),
        ("resid_delta_mlp_v5_32k", {}, "not the residual stream behind a block"),
        ("mlp_post_act", {}, "not the residual stream behind a block"),
        ("resid_post_mlp", {"activation": "Identity"}, "'Identity' is unknown"),
        (
            "resid_post_mlp",
            {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}},
            "postact_fn",
        ),
        ("resid_post_mlp", {"activation_state_dict": None}, "activation_state_dict is missing"),
    ],
)
def test_other_openai_checkpoints_are_refused(
    tmp_path: Path, draw: Draw, folder: str, changes: dict[str, Any], message: str
) -> None:
    path = folder_of(tmp_path, folder, "autoencoders") / "8.pt"
    write_openai(path, draw, **changes)
    with pytest.raises(BadInput, match=message):
        load_autoencoder(path)


@pytest.mark.parametrize(
    ("name", "site"),
    [("Llama-3.1-8B-Instruct-SAE-l19.pth", 19), ("Llama-3.3-70B-Instruct-SAE-l50.pt", 50)],
)
def test_goodfire(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read, name: str, site: int
) -> None:
    weights = {
        "encoder_linear.weight": draw(N, D).bfloat16(),
        "encoder_linear.bias": draw(N).bfloat16(),
        "decoder_linear.weight": draw(D, N).bfloat16(),
        "decoder_linear.bias": draw(D).bfloat16(),
    }
    torch.save(weights, tmp_path / name)
    sae = load_autoencoder(tmp_path)
    w = double(weights)
    a = residuals.double().numpy() @ w["encoder_linear.weight"].T + w["encoder_linear.bias"]
    np.testing.assert_allclose(read(sae, residuals), np.maximum(a, 0.0), atol=2e-5)
    assert (sae.format, sae.site) == ("goodfire", site)
    check_decoder(sae, w["decoder_linear.weight"].T)


def test_qwen_scope(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read, largest: Largest
) -> None:
    weights = {"W_enc": draw(N, D), "W_dec": draw(D, N), "b_enc": draw(N), "b_dec": draw(D)}
    folder = folder_of(tmp_path, "SAE-Res-Qwen3-1.7B-Base-W32K-L0_4")
    torch.save(weights, folder / "layer11.sae.pt")
    sae = load_autoencoder(folder)
    w = double(weights)
    a = residuals.double().numpy() @ w["W_enc"].T + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), largest(a, 4), atol=2e-5)
    assert (sae.format, sae.site, sae.k) == ("qwen-scope", 11, 4)
    check_decoder(sae, w["W_dec"].T)
    # A hub's cache links the name to a file that is called by its hash.
    cache = folder_of(tmp_path, "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_4", "snapshots")
    torch.save(weights, tmp_path / "0a1b2c")
    (cache / "layer11.sae.pt").symlink_to(tmp_path / "0a1b2c")
    assert load_autoencoder(cache / "layer11.sae.pt").site == 11
    torch.save(weights, tmp_path / "layer11.sae.pt")
    with pytest.raises(BadInput, match="say k"):
        load_autoencoder(tmp_path / "layer11.sae.pt")
    assert load_autoencoder(tmp_path / "layer11.sae.pt", stated=Stated(k=5)).k == 5


# --- dictionary_learning -------------------------------------------------------------------------


def write_dictionary(
    folder: Path, dict_class: str, weights: dict[str, Any], **trainer: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "ae.pt")
    config = {
        "trainer": {
            "dict_class": dict_class,
            "layer": 11,
            "lm_name": "EleutherAI/pythia-70m",
            "dict_size": N,
            "activation_dim": D,
            "submodule_name": "resid_post_layer_11",
            **trainer,
        },
        "buffer": {"ctx_len": 128, "io": "out"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def linear(draw: Draw, decoder_bias: str, **rest: Any) -> dict[str, Any]:
    return {
        "encoder.weight": draw(N, D),
        "encoder.bias": draw(N),
        "decoder.weight": draw(D, N),
        decoder_bias: draw(D),
        **rest,
    }


@pytest.mark.parametrize(
    ("dict_class", "bias", "subtracted"),
    [("AutoEncoder", "bias", True), ("AutoEncoderNew", "decoder.bias", False)],
)
def test_plain_dictionaries(
    tmp_path: Path,
    draw: Draw,
    residuals: torch.Tensor,
    read: Read,
    dict_class: str,
    bias: str,
    subtracted: bool,
) -> None:
    weights = linear(draw, bias)
    sae = load_autoencoder(write_dictionary(tmp_path, dict_class, weights))
    w = double(weights)
    x = residuals.double().numpy() - subtracted * w[bias]
    a = x @ w["encoder.weight"].T + w["encoder.bias"]
    np.testing.assert_allclose(read(sae, residuals), np.maximum(a, 0.0), atol=2e-5)
    assert (sae.format, sae.site) == ("dictionary-learning", 11)
    check_decoder(sae, w["decoder.weight"].T)


def test_topk_dictionary_ignores_its_threshold(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read, largest: Largest
) -> None:
    weights = linear(draw, "b_dec", k=torch.tensor(3, dtype=torch.int), threshold=torch.tensor(1.5))
    sae = load_autoencoder(write_dictionary(tmp_path, "AutoEncoderTopK", weights))
    w = double(weights)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    np.testing.assert_allclose(read(sae, residuals), largest(a, 3), atol=2e-5)
    assert sae.k == 3


def test_batchtopk_dictionary_is_a_jumprelu_with_one_threshold(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read
) -> None:
    weights = linear(draw, "b_dec", k=torch.tensor(3), threshold=torch.tensor(3.0))
    folder = write_dictionary(tmp_path, "BatchTopKSAE", weights)
    results = {"l0": 63.5, "frac_variance_explained": 0.71}
    (folder / "eval_results.json").write_text(json.dumps(results))
    sae = load_autoencoder(folder)
    w = double(weights)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    found = read(sae, residuals)
    np.testing.assert_allclose(found, jumprelu(a, 3.0), atol=2e-5)
    # As plain relu, which drops the threshold, far more latents would be active.
    assert (found > 0).sum() < 0.7 * (a > 0).sum()
    assert (sae.published.l0, sae.published.variance_explained) == (63.5, 0.71)
    assert (sae.skip_tokens, sae.norm_multiple) == (1, None)


def test_matryoshka_dictionary(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read
) -> None:
    weights = {
        "W_enc": draw(D, N),
        "b_enc": draw(N),
        "W_dec": draw(N, D),
        "b_dec": draw(D),
        "k": torch.tensor(3),
        "threshold": torch.tensor(0.9),
        "group_sizes": torch.tensor([4, 6]),
    }
    sae = load_autoencoder(write_dictionary(tmp_path, "MatryoshkaBatchTopKSAE", weights))
    w = double(weights)
    a = (residuals.double().numpy() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), jumprelu(a, 0.9), atol=2e-5)


def test_gated_dictionary(tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read) -> None:
    weights = {
        "decoder_bias": draw(D),
        "r_mag": draw(N, scale=0.5),
        "gate_bias": draw(N),
        "mag_bias": draw(N),
        "encoder.weight": draw(N, D),
        "decoder.weight": draw(D, N),
    }
    sae = load_autoencoder(write_dictionary(tmp_path, "GatedAutoEncoder", weights))
    w = double(weights)
    x = (residuals.double().numpy() - w["decoder_bias"]) @ w["encoder.weight"].T
    expected = (x + w["gate_bias"] > 0) * np.maximum(np.exp(w["r_mag"]) * x + w["mag_bias"], 0.0)
    np.testing.assert_allclose(read(sae, residuals), expected, atol=2e-5)


def test_jumprelu_dictionary_does_not_subtract(
    tmp_path: Path, draw: Draw, residuals: torch.Tensor, read: Read
) -> None:
    weights = {
        "W_enc": draw(D, N),
        "b_enc": draw(N),
        "W_dec": draw(N, D),
        "b_dec": draw(D),
        "threshold": draw(N).abs(),
    }
    sae = load_autoencoder(write_dictionary(tmp_path, "JumpReluAutoEncoder", weights))
    w = double(weights)
    a = residuals.double().numpy() @ w["W_enc"] + w["b_enc"]
    np.testing.assert_allclose(read(sae, residuals), jumprelu(a, w["threshold"]), atol=2e-5)


@pytest.mark.parametrize(
    ("lm_name", "masked"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("Qwen/Qwen2.5-7B-Instruct", True),
        ("gpt2", False),
    ],
)
def test_the_persona_saes_mask_what_they_were_not_trained_on(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch, lm_name: str, masked: bool
) -> None:
    # A dictionary of 131,072 latents would be the same, only slower.
    monkeypatch.setattr(dictionary_learning, "PERSONA_LATENTS", N)
    weights = linear(draw, "b_dec", k=torch.tensor(3), threshold=torch.tensor(1.5))
    folder = tmp_path / "resid_post_layer_11" / "trainer_1"
    sae = load_autoencoder(write_dictionary(folder, "BatchTopKSAE", weights, lm_name=lm_name))
    assert (sae.skip_tokens, sae.norm_multiple) == ((8, 10.0) if masked else (1, None))
    assert sae.site == 11


@pytest.mark.parametrize(
    ("dict_class", "trainer", "changes", "message"),
    [
        ("IdentityDict", {}, {}, "'IdentityDict' is unknown"),
        ("BatchTopKSAE", {}, {"threshold": torch.tensor(-1.0)}, "not learned"),
        ("BatchTopKSAE", {}, {"threshold": torch.ones(2)}, "threshold must be one finite number"),
        ("AutoEncoderTopK", {}, {"k": torch.ones(2)}, "k must be a positive"),
        ("AutoEncoder", {}, {}, "bias is missing"),
        ("BatchTopKSAE", {"submodule_name": "mlp_out_layer_11"}, {}, "not the output"),
        ("BatchTopKSAE", {"layer": None}, {}, "say site"),
    ],
)
def test_other_dictionaries_are_refused(
    tmp_path: Path,
    draw: Draw,
    dict_class: str,
    trainer: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    weights = linear(draw, "b_dec", k=torch.tensor(3), threshold=torch.tensor(1.5)) | changes
    with pytest.raises(BadInput, match=message):
        load_autoencoder(write_dictionary(tmp_path, dict_class, weights, **trainer))
