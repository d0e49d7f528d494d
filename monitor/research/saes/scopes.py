"""The Scope suites in folders: Gemma Scope, Gemma Scope 2, Llama Scope.

Legend: n = latents, d = model width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import Published, SparseAutoencoder, Stated
from monitor.research.saes.files import number, positive, read_json, read_tensors
from monitor.research.saes.places import number_in_path, said
from monitor.research.saes.saelens import hook_site

GEMMA_FILE: Final = "params.npz"
GEMMA_2_FILE: Final = "params.safetensors"
LLAMA_CONFIG: Final = "hyperparams.json"
LLAMA_FILE: Final = "checkpoints/final.safetensors"

_LAYER: Final = re.compile(r"layer_(\d+)(?:_|$)")
_GEMMA_L0: Final = re.compile(r"average_l0_(\d+)")
_ELSEWHERE: Final = re.compile(r"embedding|transcoder|crosscoder|clt|attn|-att\b|mlp")
_PLACES: Final = ("embedding", "transcoder", "crosscoder", "clt", "attn_out", "mlp_out")
_OUTPUT: Final = re.compile(r"model\.layers\.(\d+)\.output")


def load_gemma_scope(folder: Path, stated: Stated) -> SparseAutoencoder:
    """``…/layer_L/width_W/average_l0_N/params.npz``: jumprelu, nothing subtracted (Lieberum 2024)."""
    tensors = read_tensors(folder / GEMMA_FILE)
    _residual(folder)
    encoder = tensors.take("W_enc", [None, None])
    d, n = encoder.shape
    return SparseAutoencoder(
        format="gemma-scope",
        path=tensors.path,
        site=said(number_in_path(folder, _LAYER), stated.site, "site", folder),
        activation="jumprelu",
        encoder=encoder.T,
        bias=tensors.take("b_enc", [n]),
        threshold=tensors.take("threshold", [n]),
        decoder=tensors.take("W_dec", [n, d]),
        decoder_bias=tensors.take("b_dec", [d]),
        published=Published(l0=number_in_path(folder, _GEMMA_L0)),
        provenance={"folder": "/".join(folder.absolute().parts[-3:])},
    )


def load_gemma_scope_2(folder: Path, stated: Stated) -> SparseAutoencoder:
    """``…/resid_post/layer_L_width_W_l0_S/params.safetensors`` with an optional ``config.json``."""
    tensors = read_tensors(folder / GEMMA_2_FILE)
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise BadInput(f"{path}: architecture {config['architecture']!r} is unknown, not jump_relu")
    if "affine_skip_connection" in tensors or config.get("hf_hook_point_out") not in (
        None,
        config.get("hf_hook_point_in"),
    ):
        raise BadInput(f"{folder}: a transcoder predicts another place than it reads; not an SAE")
    encoder = tensors.take("w_enc", [None, None])
    d, n = encoder.shape
    return SparseAutoencoder(
        format="gemma-scope-2",
        path=tensors.path,
        site=said(_gemma_2_site(config, folder), stated.site, "site", folder),
        activation="jumprelu",
        encoder=encoder.T,
        bias=tensors.take("b_enc", [n]),
        threshold=tensors.take("threshold", [n]),
        decoder=tensors.take("w_dec", [n, d]),
        decoder_bias=tensors.take("b_dec", [d]),
        published=Published(l0=number(config, "l0")),
        provenance=config or {"folder": "/".join(folder.absolute().parts[-2:])},
    )


def load_llama_scope(folder: Path, stated: Stated) -> SparseAutoencoder:
    """``hyperparams.json`` and ``checkpoints/final.safetensors`` (He et al. 2024).

    Activations are multiplied by s = √d / (their average norm over the dataset); the scalar
    ``jump_relu_threshold`` t acts on the pre-activation as t·s, the rule of SAELens' converter.
    """
    path = folder / LLAMA_CONFIG
    config = read_json(path)
    n, d = positive(config, "d_sae", path), positive(config, "d_model", path)
    if config.get("act_fn", "jumprelu") != "jumprelu":
        raise BadInput(f"{path}: act_fn {config['act_fn']!r} is unknown, not jumprelu")
    if config.get("use_glu_encoder"):
        raise BadInput(f"{path}: use_glu_encoder is not supported")
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise BadInput(f"{path}: a transcoder predicts another place than it reads; not an SAE")
    factor = math.sqrt(d) / _average_norm(config, path)
    threshold = number(config, "jump_relu_threshold")
    if threshold is None:
        raise BadInput(f"{path}: jump_relu_threshold must be a finite number")
    tensors = read_tensors(folder / LLAMA_FILE)
    decoder_bias = tensors.take("decoder.bias", [d])
    subtract = bool(config.get("apply_decoder_bias_to_pre_encoder"))
    site = hook_site(config.get("hook_point_in"), "hook_point_in", path)
    return SparseAutoencoder(
        format="llama-scope",
        path=tensors.path,
        site=said(site, stated.site, "site", folder),
        activation="jumprelu",
        encoder=tensors.take("encoder.weight", [n, d]),
        bias=tensors.take("encoder.bias", [n]),
        threshold=torch.full((n,), threshold * factor, dtype=torch.float64),
        decoder=tensors.take("decoder.weight", [d, n]).T,
        decoder_bias=decoder_bias,
        subtracted=decoder_bias if subtract else None,
        norm_factor=factor,
        published=Published(l0=number(config, "top_k")),
        provenance=config,
    )


def _average_norm(config: Mapping[str, Any], path: Path) -> float:
    if config.get("norm_activation", "dataset-wise") != "dataset-wise":
        raise BadInput(f"{path}: norm_activation {config['norm_activation']!r} is not supported")
    norms = config.get("dataset_average_activation_norm")
    average = number(norms, "in") if isinstance(norms, dict) else None
    if average is None or not average > 0.0:
        raise BadInput(f"{path}: dataset_average_activation_norm.in must be a positive number")
    return average


def _gemma_2_site(config: Mapping[str, Any], folder: Path) -> int | None:
    hook = config.get("hf_hook_point_in")
    if hook is None:
        _residual(folder)
        return number_in_path(folder, _LAYER)
    found = _OUTPUT.fullmatch(hook) if isinstance(hook, str) else None
    if found is None:
        raise BadInput(
            f"{folder}: hf_hook_point_in {hook!r} is not the output of a decoder block, "
            "model.layers.L.output"
        )
    return int(found[1])


def _residual(folder: Path) -> None:
    """Refuse the parts of the suite that read elsewhere; the folders' names are all that says so."""
    parts = folder.absolute().parts
    inside = [part for part in parts[-4:] if part.startswith(_PLACES)]
    for part in [part for part in parts if "gemma-scope" in part] + inside:
        if _ELSEWHERE.search(part):
            raise BadInput(
                f"{folder}: {part!r} does not read the residual stream behind a block; not supported"
            )
