"""Checkpoints that are one pickle without a config: OpenAI's for GPT-2, Goodfire's, Qwen-Scope.

The file's name says the block. Legend: n = latents, d = model width.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from monitor.errors import BadInput
from monitor.research.saes.autoencoder import SparseAutoencoder, Stated
from monitor.research.saes.files import Tensors, positive, read_tensors
from monitor.research.saes.places import number_in_path, said

_OPENAI_FILE: Final = re.compile(r"^(\d+)\.pt$")
_OPENAI_ELSEWHERE: Final = re.compile(r"^(mlp_post_act|resid_delta_\w+|resid_post_attn)")
_GOODFIRE_FILE: Final = re.compile(r"-l(\d+)\.pth?$")
_QWEN_FILE: Final = re.compile(r"^layer(\d+)\.sae\.pt$")
_QWEN_PLACES: Final = re.compile(r"-L0_(\d+)$")


def load_openai(path: Path, stated: Stated) -> SparseAutoencoder:
    """``…/resid_post_mlp_v5_32k/autoencoders/L.pt`` (Gao et al. 2024, openai/sparse_autoencoder).

    TopK implies inputs by layer norm, as in their ``from_state_dict``; ``pre_bias`` is subtracted
    after it.
    """
    tensors = read_tensors(path)
    for part in path.absolute().parts[-4:]:
        if _OPENAI_ELSEWHERE.search(part):
            raise BadInput(f"{path}: {part!r} is not the residual stream behind a block")
    encoder = tensors.take("encoder.weight", [None, None])
    n, d = encoder.shape
    pre_bias = tensors.take("pre_bias", [d])
    activation = tensors.content.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise BadInput(f"{path}: activation {activation!r} is unknown; read are ReLU and TopK")
    k = _openai_places(tensors) if activation == "TopK" else None
    return SparseAutoencoder(
        format="openai",
        path=path,
        site=said(number_in_path(path, _OPENAI_FILE), stated.site, "site", path),
        activation="relu" if k is None else "topk",
        encoder=encoder,
        bias=tensors.take("latent_bias", [n]),
        decoder=tensors.take("decoder.weight", [d, n]).T,
        decoder_bias=pre_bias,
        subtracted=pre_bias,
        k=k,
        input_norm="none" if k is None else "layer_norm",
        provenance={"file": "/".join(path.absolute().parts[-3:]), "activation": activation},
    )


def load_goodfire(path: Path, stated: Stated) -> SparseAutoencoder:
    """``Llama-…-SAE-lL.pth``: relu, nothing subtracted; behind block 19 (8B) or 50 (70B)."""
    tensors = read_tensors(path)
    encoder = tensors.take("encoder_linear.weight", [None, None])
    n, d = encoder.shape
    return SparseAutoencoder(
        format="goodfire",
        path=path,
        site=said(number_in_path(path, _GOODFIRE_FILE), stated.site, "site", path),
        activation="relu",
        encoder=encoder,
        bias=tensors.take("encoder_linear.bias", [n]),
        decoder=tensors.take("decoder_linear.weight", [d, n]).T,
        decoder_bias=tensors.take("decoder_linear.bias", [d]),
        provenance={"file": path.name},
    )


def load_qwen_scope(path: Path, stated: Stated) -> SparseAutoencoder:
    """``…-W32K-L0_50/layerL.sae.pt``: top-k, nothing subtracted; the folder's name says k."""
    tensors = read_tensors(path)
    encoder = tensors.take("W_enc", [None, None])
    n, d = encoder.shape
    return SparseAutoencoder(
        format="qwen-scope",
        path=path,
        site=said(number_in_path(path, _QWEN_FILE), stated.site, "site", path),
        activation="topk",
        encoder=encoder,
        bias=tensors.take("b_enc", [n]),
        decoder=tensors.take("W_dec", [d, n]).T,
        decoder_bias=tensors.take("b_dec", [d]),
        k=said(number_in_path(path, _QWEN_PLACES), stated.k, "k", path),
        provenance={"file": "/".join(path.absolute().parts[-2:])},
    )


def _openai_places(tensors: Tensors) -> int:
    state: Any = tensors.content.get("activation_state_dict")
    if not isinstance(state, dict):
        raise BadInput(f"{tensors.path}: activation_state_dict is missing; it says k")
    if state.get("postact_fn", "ReLU") != "ReLU":
        raise BadInput(f"{tensors.path}: postact_fn {state['postact_fn']!r} is not supported")
    return positive(state, "k", tensors.path)
