"""SAELens folders: ``cfg.json`` and ``sae_weights.safetensors``, before and after version 6.

Legend: n = latents, d = model width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import Published, SparseAutoencoder, Stated
from monitor.research.saes.files import Tensors, number, positive, read_json, read_tensors
from monitor.values.features import InputNorm

CONFIG_FILE: Final = "cfg.json"
WEIGHT_FILE: Final = "sae_weights.safetensors"
SPARSITY_FILE: Final = "sparsity.safetensors"

Architecture = Literal["standard", "gated", "jumprelu", "topk", "batchtopk"]

_HOOK: Final = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_NORMS: Final[Mapping[str, InputNorm]] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_norm_rescale": "rescale",
    "layer_norm": "layer_norm",
}
_ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "standard": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What matters of ``cfg.json``."""

    architecture: Architecture
    site: int
    subtract_decoder_bias: bool
    input_norm: InputNorm
    norm_factor: float
    k: int | None
    by_decoder_norm: bool


def load_saelens(folder: Path, stated: Stated) -> SparseAutoencoder:
    """The SAE in ``folder``; what is unknown in its config is refused by name, never guessed.

    ``batchtopk`` and ``matryoshka_batchtopk`` are training checkpoints with a learned
    ``topk_threshold``; SAELens itself saves them for inference as jumprelu.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    # Version 6 moved the model and the hook under "metadata".
    nested = isinstance(content.get("metadata"), dict)
    fields = {**content["metadata"], **content} if nested else content
    config = _config(fields, path, stated, nested=nested)
    tensors = read_tensors(folder / WEIGHT_FILE)
    n, d = positive(fields, "d_sae", path), positive(fields, "d_in", path)
    decoder = tensors.take("W_dec", [n, d])
    decoder_bias = tensors.take("b_dec", [d])
    norms = decoder.float().norm(dim=1) if config.by_decoder_norm else None
    return SparseAutoencoder(
        format="saelens",
        path=tensors.path,
        site=config.site,
        encoder=tensors.take("W_enc", [d, n]).T,
        decoder=decoder,
        decoder_bias=decoder_bias,
        subtracted=decoder_bias if config.subtract_decoder_bias else None,
        decoder_gain=None if norms is None else 1.0 / norms.clamp_min(1e-8),
        k=config.k,
        input_norm=config.input_norm,
        norm_factor=config.norm_factor,
        published=Published(l0=_published_l0(folder, fields)),
        provenance=content,
        **_activation(config, tensors, n, norms),
    )


def gated(
    r_mag: torch.Tensor, magnitude_bias: torch.Tensor, gate_bias: torch.Tensor
) -> dict[str, Any]:
    """A gated latent as the jumprelu that it is, with r, b, c the three [n].

    Gate and magnitude share one direction: a = exp(r)·(x·w) + b is active iff x·w > -c, that is
    iff a > b - exp(r)·c; and relu(a) asks for a > 0 beside (Rajamanoharan et al. 2024, section 3).
    """
    gain = r_mag.double().exp()
    threshold = magnitude_bias.double() - gain * gate_bias.double()
    return {
        "activation": "jumprelu",
        "gain": gain,
        "bias": magnitude_bias,
        "threshold": threshold.clamp_min(0.0),
    }


def _activation(
    config: _Config, tensors: Tensors, n: int, norms: torch.Tensor | None
) -> dict[str, Any]:
    if config.architecture == "gated":
        return gated(*(tensors.take(name, [n]) for name in ("r_mag", "b_mag", "b_gate")))
    bias = tensors.take("b_enc", [n])
    found: dict[str, Any] = {"activation": "relu", "bias": bias}
    if norms is not None:
        found |= {"gain": norms, "bias": bias.float() * norms}
    if config.architecture == "topk":
        return found | {"activation": "topk"}
    if config.architecture == "jumprelu":
        return found | {"activation": "jumprelu", "threshold": tensors.take("threshold", [n])}
    if config.architecture == "batchtopk":
        threshold = torch.full((n,), tensors.scalar("topk_threshold"))
        return found | {"activation": "jumprelu", "threshold": threshold}
    return found


def _config(fields: Mapping[str, Any], path: Path, stated: Stated, *, nested: bool) -> _Config:
    architecture = _architecture(fields, path)
    norm = fields.get("normalize_activations") or "none"
    if norm is True:
        norm = "expected_average_only_in"
    if not isinstance(norm, str) or norm not in _NORMS:
        raise BadInput(
            f"{path}: normalize_activations {norm!r} is unknown; known: {', '.join(_NORMS)}"
        )
    if (norm == "expected_average_only_in") != (stated.norm_factor is not None):
        raise BadInput(
            f"{path}: normalize_activations is {norm!r}; norm_factor belongs to "
            "expected_average_only_in alone, and is needed there: √d / mean norm of the activations"
        )
    subtract = fields.get("apply_b_dec_to_input", None if nested else True)
    if not isinstance(subtract, bool):
        raise BadInput(f"{path}: apply_b_dec_to_input must be true or false")
    by_norm = bool(fields.get("rescale_acts_by_decoder_norm"))
    if by_norm and architecture not in ("topk", "batchtopk"):
        raise BadInput(f"{path}: rescale_acts_by_decoder_norm is unknown for {architecture!r}")
    return _Config(
        architecture=architecture,
        site=hook_site(fields.get("hook_name", fields.get("hook_point")), "hook_name", path),
        subtract_decoder_bias=subtract,
        input_norm=_NORMS[norm],
        norm_factor=stated.norm_factor or 1.0,
        k=_places(fields, path) if architecture == "topk" else None,
        by_decoder_norm=by_norm,
    )


def _architecture(fields: Mapping[str, Any], path: Path) -> Architecture:
    named = fields.get("architecture", "standard")
    if not isinstance(named, str) or named not in _ARCHITECTURES:
        raise BadInput(
            f"{path}: architecture {named!r} is unknown; read are {', '.join(_ARCHITECTURES)}"
        )
    architecture = _ARCHITECTURES[named]
    # Before version 6, top-k was an activation function of the standard architecture.
    function = fields.get("activation_fn_str", fields.get("activation_fn", "relu"))
    if function == "topk" and architecture in ("standard", "topk"):
        architecture = "topk"
    elif function != "relu":
        raise BadInput(f"{path}: activation function {function!r} is not supported")
    if fields.get("finetuning_scaling_factor"):
        raise BadInput(
            f"{path}: finetuning_scaling_factor is not supported; fold it into the weights first"
        )
    if fields.get("hook_head_index") is not None:
        raise BadInput(f"{path}: hook_head_index reads one attention head, not the residual stream")
    reshape = fields.get("reshape_activations", "none")
    if reshape not in (None, "none"):
        raise BadInput(f"{path}: reshape_activations {reshape!r} is not supported")
    return architecture


def _places(fields: Mapping[str, Any], path: Path) -> int:
    inner = fields.get("activation_fn_kwargs")
    if "k" not in fields and isinstance(inner, dict):
        return positive(inner, "k", path)
    return positive(fields, "k", path)


def hook_site(hook: object, name: str, path: Path) -> int:
    """The decoder block behind which TransformerLens' hook ``hook`` reads the residual stream."""
    found = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    if found is None:
        raise BadInput(
            f"{path}: {name} {hook!r} is not supported; the residual stream is read at "
            "blocks.L.hook_resid_post or blocks.L.hook_resid_pre"
        )
    site = int(found[1]) - (found[2] == "pre")
    if site < 0:
        raise BadInput(f"{path}: {name} {hook!r} lies before the first block, no site reads it")
    return site


def _published_l0(folder: Path, fields: Mapping[str, Any]) -> float | None:
    """Mean L0 in training: the sum of the latents' densities (stored as log10), or a batch's top k."""
    if (folder / SPARSITY_FILE).is_file():
        logs = read_tensors(folder / SPARSITY_FILE).take("sparsity", [None])
        return float((10.0 ** logs.double()).sum())
    trained = fields.get("training_architecture_details")
    return number(trained, "k") if isinstance(trained, dict) else None
