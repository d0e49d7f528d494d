from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.errors import BadInput
from monitor.score.sae import import_saelens

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


def tensors(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(D, N, generator=generator),
        "b_enc": torch.randn(N, generator=generator),
        "b_dec": torch.randn(D, generator=generator),
        **extra,
    }


def write(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    content = {**FLAT, **changes}
    (folder / "cfg.json").write_text(json.dumps(content))
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def test_standard_subtracts_the_decoder_bias(tmp_path: Path) -> None:
    weights = tensors()
    features = import_saelens(write(tmp_path, weights), [7, 2])
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    expected = torch.relu((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
    for feature, latent in zip(features, (7, 2), strict=True):
        ours = torch.relu(x @ torch.from_numpy(feature.weight) + feature.bias)
        torch.testing.assert_close(ours, expected[:, latent])
        assert (feature.activation, feature.site) == ("relu", 3)
    assert [feature.name for feature in features] == ["latent.7", "latent.2"]


def test_the_decoder_bias_stays_out_when_the_config_says_so(tmp_path: Path) -> None:
    weights = tensors()
    (feature,) = import_saelens(write(tmp_path, weights, apply_b_dec_to_input=False), [4])
    assert feature.bias == pytest.approx(float(weights["b_enc"][4]))


def test_jumprelu_under_version_six_metadata(tmp_path: Path) -> None:
    threshold = torch.linspace(-0.5, 2.0, N)
    weights = tensors(threshold=threshold)
    folder = write(
        tmp_path,
        weights,
        architecture="jumprelu",
        hook_name=None,
        metadata={"hook_name": "blocks.3.hook_resid_pre", "model_name": "x"},
    )
    content = json.loads((folder / "cfg.json").read_text())
    del content["hook_name"]
    (folder / "cfg.json").write_text(json.dumps(content))
    low, high = import_saelens(folder, [0, 9])
    assert (low.activation, low.site) == ("jumprelu", 2)
    # relu(a)·1[a > -0.5] passes what relu passes
    assert low.threshold == 0.0
    assert high.threshold == pytest.approx(2.0)


def test_the_average_norm_is_folded(tmp_path: Path) -> None:
    weights = tensors()
    folder = write(tmp_path, weights, normalize_activations="expected_average_only_in")
    with pytest.raises(BadInput, match="norm_factor"):
        import_saelens(folder, [1])
    (feature,) = import_saelens(folder, [1], norm_factor=0.25)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2))
    expected = (0.25 * x - weights["b_dec"]) @ weights["W_enc"][:, 1] + weights["b_enc"][1]
    torch.testing.assert_close(x @ torch.from_numpy(feature.weight) + feature.bias, expected)


def test_bfloat16_weights_are_read(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    (feature,) = import_saelens(write(tmp_path, weights), [1])
    np.testing.assert_array_equal(feature.weight, weights["W_enc"][:, 1].float().numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topk"}, "k-th"),
        ({"architecture": "batchtopk"}, "jumprelu"),
        ({"architecture": "gated"}, "gated"),
        ({"architecture": "jumprelu_transcoder"}, "transcoder"),
        ({"architecture": "temporal"}, "'temporal' is unknown"),
        ({"architecture": "jumprelu"}, "threshold is missing"),
        ({"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "hook_mlp_out"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "before the first block"),
        ({"normalize_activations": "batch"}, "'batch' is unknown"),
        ({"d_in": 7}, "W_enc has shape"),
        ({"d_sae": "many"}, "d_sae"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        import_saelens(write(tmp_path, tensors(), **changes), [1])


@pytest.mark.parametrize("latents", [[], [N], [-1], [1, 1]])
def test_wrong_latents_are_refused(tmp_path: Path, latents: list[int]) -> None:
    with pytest.raises(BadInput, match="latents"):
        import_saelens(write(tmp_path, tensors()), latents)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    torch.save(tensors(), tmp_path / "sae_weights.safetensors")
    with pytest.raises(BadInput, match="never loaded"):
        import_saelens(tmp_path, [1])


def test_non_finite_latents_are_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights["W_enc"][0, 1] = float("nan")
    with pytest.raises(BadInput, match="not finite"):
        import_saelens(write(tmp_path, weights), [1])
    import_saelens(tmp_path, [2])
