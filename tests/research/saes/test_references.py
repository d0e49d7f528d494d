"""Our loaders against the formats' own libraries, where these are installed (docs/research/sae.md).

Each library writes a checkpoint of its own with random weights, and encodes the same residuals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.detect import load_autoencoder
from monitor.research.saes.fidelity import measure

D, N, K = 6, 24, 4
Read = Callable[[SparseAutoencoder, torch.Tensor], Any]


def randomised(module: Any) -> Any:
    """All floating-point parameters normal, so that none is a zero that hides a mistake."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    return module.eval()


def close(found: Any, expected: torch.Tensor) -> None:
    expected = expected.detach().double()
    assert 0 < int((expected > 0).sum()) < expected.numel()
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-5)


def rebuilt_alike(sae: SparseAutoencoder, x: torch.Tensor, rebuilt: torch.Tensor) -> None:
    """The same variance explained means the same decoder, decoder bias and undone norm."""
    error = (x - rebuilt.detach()).double().square().sum()
    variance = (x - x.mean(dim=0)).double().square().sum()
    assert measure(sae, x).variance_explained == pytest.approx(
        float(1 - error / variance), rel=1e-4
    )


# --- SAELens -------------------------------------------------------------------------------------


def lens(architecture: str, **options: Any) -> Any:
    pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_class(architecture)
    metadata = SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="tiny")
    return randomised(kind(config(d_in=D, d_sae=N, metadata=metadata, **options)))


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("standard", {}),
        ("gated", {}),
        ("jumprelu", {}),
        ("topk", {"k": K}),
        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_saelens(
    tmp_path: Path,
    residuals: torch.Tensor,
    read: Read,
    architecture: str,
    options: dict[str, Any],
    subtract: bool,
    norm: str,
) -> None:
    theirs = lens(
        architecture, apply_b_dec_to_input=subtract, normalize_activations=norm, **options
    )
    theirs.save_model(tmp_path)
    ours = load_autoencoder(tmp_path)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("inference", [True, False])
def test_saelens_batchtopk_as_trained_and_as_jumprelu(
    tmp_path: Path, residuals: torch.Tensor, read: Read, architecture: str, inference: bool
) -> None:
    pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_training_class(architecture)
    more = {"matryoshka_widths": [N // 2, N]} if architecture.startswith("m") else {}
    metadata = SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="tiny")
    trained = randomised(kind(config(d_in=D, d_sae=N, k=K, metadata=metadata, **more)))
    trained.topk_threshold.fill_(3.0)
    trained.save_inference_model(tmp_path / "inference")
    trained.save_model(tmp_path / "trained")
    theirs = SAE.load_from_disk(tmp_path / "inference")
    ours = load_autoencoder(tmp_path / ("inference" if inference else "trained"))
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))


def test_saelens_average_norm(tmp_path: Path, residuals: torch.Tensor, read: Read) -> None:
    theirs = lens("jumprelu", normalize_activations="expected_average_only_in")
    theirs.save_model(tmp_path)
    ours = load_autoencoder(tmp_path, stated=Stated(norm_factor=0.3))
    theirs.fold_activation_norm_scaling_factor(0.3)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))


# --- other formats, by SAELens' converters -------------------------------------------------------


def converted(
    monkeypatch: pytest.MonkeyPatch, converter: str, root: Path, repository: str, folder: str
) -> Any:
    """What SAELens makes of a checkpoint below ``root``, which stands in for the hub."""
    pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(
        repo_id: str, filename: str, subfolder: str = "", force_download: bool = False, **_: Any
    ) -> str:
        path = root / subfolder / filename
        if not path.is_file():
            raise loaders.EntryNotFoundError("not there")
        return str(path)

    def shapes(_repository: str, filename: str) -> dict[str, list[int]]:
        content = loaders.load_safetensors_weights(root / filename)
        return {name: list(tensor.shape) for name, tensor in content.items()}

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    load = loaders.NAMED_PRETRAINED_SAE_LOADERS[converter]
    overrides = {"dtype": "float32"}
    config, state, _ = load(repository, folder, "cpu", False, overrides)
    config = loaders.handle_config_defaulting({**config, "d_in": D, "d_sae": N})
    kind = SAE.get_sae_class_for_architecture(config["architecture"])
    made = kind(SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config))
    made.process_state_dict_for_loading(state)
    made.load_state_dict(state)
    return made


def test_gemma_scope(
    tmp_path: Path, residuals: torch.Tensor, read: Read, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    folder = tmp_path / "layer_12/width_16k/average_l0_82"
    folder.mkdir(parents=True)
    weights = {
        "W_enc": draw(D, N),
        "W_dec": draw(N, D),
        "b_enc": draw(N),
        "b_dec": draw(D),
        "threshold": draw(N).abs(),
    }
    np.savez(folder / "params.npz", **{name: w.numpy() for name, w in weights.items()})
    theirs = converted(
        monkeypatch,
        "gemma_2",
        tmp_path,
        "google/gemma-scope-2b-pt-res",
        "layer_12/width_16k/average_l0_82",
    )
    ours = load_autoencoder(folder)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))
    assert theirs.cfg.metadata.hook_name == f"blocks.{ours.site}.hook_resid_post"


def test_gemma_scope_2(
    tmp_path: Path, residuals: torch.Tensor, read: Read, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "resid_post/layer_9_width_16k_l0_small"
    folder.mkdir(parents=True)
    weights = {
        "w_enc": draw(D, N),
        "w_dec": draw(N, D),
        "b_enc": draw(N),
        "b_dec": draw(D),
        "threshold": draw(N).abs(),
    }
    save_file(weights, folder / "params.safetensors")
    theirs = converted(
        monkeypatch,
        "gemma_3",
        tmp_path,
        "google/gemma-scope-2-1b-pt",
        "resid_post/layer_9_width_16k_l0_small",
    )
    ours = load_autoencoder(folder)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))
    assert theirs.cfg.metadata.hook_name == f"blocks.{ours.site}.hook_resid_post"


def test_llama_scope(
    tmp_path: Path, residuals: torch.Tensor, read: Read, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    from safetensors.torch import save_file

    name = "Llama3_1-8B-Base-L15R-8x"
    (tmp_path / name / "checkpoints").mkdir(parents=True)
    weights = {
        "encoder.weight": draw(N, D),
        "encoder.bias": draw(N),
        "decoder.weight": draw(D, N),
        "decoder.bias": draw(D),
    }
    save_file(weights, tmp_path / name / "checkpoints" / "final.safetensors")
    config = {
        "d_model": D,
        "d_sae": N,
        "jump_relu_threshold": 0.8,
        "hook_point_in": "blocks.15.hook_resid_post",
        "dataset_average_activation_norm": {"in": 3.5, "out": 3.5},
    }
    (tmp_path / name / "hyperparams.json").write_text(json.dumps(config))
    theirs = converted(monkeypatch, "llama_scope", tmp_path, "fnlp/Llama3_1-8B-Base-LXR-8x", name)
    theirs.fold_activation_norm_scaling_factor(D**0.5 / 3.5)
    ours = load_autoencoder(tmp_path / name)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))


def test_goodfire(
    tmp_path: Path, residuals: torch.Tensor, read: Read, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    weights = {
        "encoder_linear.weight": draw(N, D),
        "encoder_linear.bias": draw(N),
        "decoder_linear.weight": draw(D, N),
        "decoder_linear.bias": draw(D),
    }
    torch.save(weights, tmp_path / name)
    theirs = converted(
        monkeypatch, "goodfire", tmp_path, "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", name
    )
    ours = load_autoencoder(tmp_path / name)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))
    assert theirs.cfg.metadata.hook_name == f"blocks.{ours.site}.hook_resid_post"


def test_qwen_scope(
    tmp_path: Path, residuals: torch.Tensor, read: Read, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    repository = f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    (tmp_path / repository).mkdir()
    weights = {"W_enc": draw(N, D), "W_dec": draw(D, N), "b_enc": draw(N), "b_dec": draw(D)}
    torch.save(weights, tmp_path / repository / "layer11.sae.pt")
    theirs = converted(
        monkeypatch, "qwen_scope", tmp_path / repository, f"Qwen/{repository}", "layer11.sae.pt"
    )
    ours = load_autoencoder(tmp_path / repository)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs(residuals))


# --- sparsify ------------------------------------------------------------------------------------


def test_sparsify(tmp_path: Path, residuals: torch.Tensor, read: Read) -> None:
    pytest.importorskip("sparsify", reason="eai-sparsify is not installed")
    from sparsify import SparseCoder, SparseCoderConfig

    theirs = randomised(SparseCoder(D, SparseCoderConfig(num_latents=N, k=K)))
    theirs.save_to_disk(tmp_path / "layers.5")
    ours = load_autoencoder(tmp_path / "layers.5")
    found = theirs.encode(residuals)
    latents = torch.zeros(len(residuals), N).scatter_(1, found.top_indices, found.top_acts)
    close(read(ours, residuals), latents)
    rebuilt_alike(ours, residuals, theirs.decode(found.top_acts, found.top_indices))


# --- dictionary_learning -------------------------------------------------------------------------


def dictionaries() -> Any:
    pytest.importorskip("dictionary_learning", reason="dictionary-learning is not installed")
    return sys.modules["dictionary_learning"]


@pytest.mark.parametrize(
    ("place", "name", "options"),
    [
        ("dictionary", "AutoEncoder", {}),
        ("dictionary", "AutoEncoderNew", {}),
        ("dictionary", "GatedAutoEncoder", {}),
        ("dictionary", "JumpReluAutoEncoder", {}),
        ("trainers.top_k", "AutoEncoderTopK", {"k": K}),
        ("trainers.batch_top_k", "BatchTopKSAE", {"k": K}),
        (
            "trainers.matryoshka_batch_top_k",
            "MatryoshkaBatchTopKSAE",
            {"k": K, "group_sizes": [N // 2, N // 2]},
        ),
    ],
)
def test_dictionary_learning(
    tmp_path: Path,
    residuals: torch.Tensor,
    read: Read,
    place: str,
    name: str,
    options: dict[str, Any],
) -> None:
    dictionaries()
    module = __import__(f"dictionary_learning.{place}", fromlist=[name])
    theirs = randomised(getattr(module, name)(D, N, **options))
    if "threshold" in dict(theirs.named_buffers()):
        theirs.threshold.fill_(1.5)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": name, "layer": 7}, "buffer": {"ctx_len": 128}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load_autoencoder(tmp_path)
    close(read(ours, residuals), theirs.encode(residuals))
    rebuilt_alike(ours, residuals, theirs.decode(theirs.encode(residuals)))
