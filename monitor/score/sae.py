"""Sparse autoencoder latents as features: the SAELens folder format, without pickles.

A latent is read as ``activation(norm(x) @ W_enc[:, i] + b)`` and its decoder is never needed, so a
slice of the encoder is all that is read from disk. Legend: d = model width, n = latents of the SAE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from monitor.errors import BadInput
from monitor.records import (
    Activation,
    Calibration,
    Doubles,
    Feature,
    Floats,
    InputNorm,
    Pooling,
    Region,
)

CONFIG_FILE: Final = "cfg.json"
WEIGHT_FILE: Final = "sae_weights.safetensors"
UNCALIBRATED: Final = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
"""Scores equal readings: what an imported feature has before it was calibrated on benign text."""

_HOOK: Final = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_NORMS: Final[Mapping[str, InputNorm]] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_norm_rescale": "rescale",
    "layer_norm": "layer_norm",
}
_REFUSED: Final = {
    "batchtopk": "save it with SAELens' inference conversion, which makes it jumprelu",
    "topk": "a top-k SAE needs all pre-activations to know the k-th, not a slice of latents",
    "gated": "a gated latent is two projections, and a feature of a pack is one",
    "transcoder": "a transcoder reads another place than the residual stream it predicts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What matters of ``cfg.json``."""

    activation: Activation
    d_in: int
    d_sae: int
    site: int
    subtract_decoder_bias: bool
    input_norm: InputNorm
    norm_factor: float


def import_saelens(
    folder: Path,
    latents: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    region: Region = "response",
    pooling: Pooling = "mean",
    skip_tokens: int = 1,
    norm_factor: float | None = None,
) -> tuple[Feature, ...]:
    """The chosen ``latents`` of the SAELens folder as uncalibrated features, in their order.

    Architectures ``standard`` (ReLU) and ``jumprelu``; `b_dec` is folded into the bias. ``norm_factor``
    is the scalar of ``expected_average_only_in``, which SAELens does not store: it is folded into the
    weight. Raises `BadInput` naming the field for anything else: unknown architectures, activations,
    hooks and normalisations are refused, never guessed.
    """
    config = _config(folder / CONFIG_FILE, norm_factor)
    if not latents:
        raise BadInput("latents: name at least one")
    outside = [latent for latent in latents if not 0 <= latent < config.d_sae]
    if outside:
        raise BadInput(f"latents: {outside} are outside 0..{config.d_sae - 1}")
    if len(set(latents)) != len(latents):
        raise BadInput("latents: each may be named once")
    if names is not None and len(names) != len(latents):
        raise BadInput(f"names: {len(names)} names for {len(latents)} latents")
    weights, biases, thresholds = _encoder(folder / WEIGHT_FILE, config, latents)
    return tuple(
        Feature(
            name=names[index] if names else f"latent.{latent}",
            kind="latent",
            site=config.site,
            region=region,
            pooling=pooling,
            weight=weights[index],
            bias=float(biases[index]),
            activation=config.activation,
            threshold=float(thresholds[index]),
            input_norm=config.input_norm,
            skip_tokens=skip_tokens,
            calibration=UNCALIBRATED,
            tags=("latent",),
            description=f"latent {latent} of the SAE {folder.name}",
        )
        for index, latent in enumerate(latents)
    )


def _config(path: Path, norm_factor: float | None) -> _Config:
    content = _json(path)
    nested = isinstance(content.get("metadata"), dict)
    # Version 6 moved the model and the hook under "metadata".
    fields = {**content.get("metadata", {}), **content} if nested else content
    activation = _activation(fields, path)
    norm = fields.get("normalize_activations") or "none"
    if norm not in _NORMS:
        raise BadInput(
            f"{path}: normalize_activations {norm!r} is unknown; known: {', '.join(_NORMS)}"
        )
    if (norm == "expected_average_only_in") != (norm_factor is not None):
        raise BadInput(
            f"{path}: normalize_activations is {norm!r}; norm_factor belongs to "
            "expected_average_only_in alone, and is needed there: √d / mean norm of the activations"
        )
    if norm_factor is not None and not (np.isfinite(norm_factor) and norm_factor > 0):
        raise BadInput("norm_factor must be positive")
    subtract = fields.get("apply_b_dec_to_input", None if nested else True)
    if not isinstance(subtract, bool):
        raise BadInput(f"{path}: apply_b_dec_to_input must be true or false")
    return _Config(
        activation=activation,
        d_in=_positive(fields, "d_in", path),
        d_sae=_positive(fields, "d_sae", path),
        site=_site(fields, path),
        subtract_decoder_bias=subtract,
        input_norm=_NORMS[norm],
        norm_factor=norm_factor or 1.0,
    )


def _activation(fields: Mapping[str, Any], path: Path) -> Activation:
    architecture = fields.get("architecture", "standard")
    for name, reason in _REFUSED.items():
        if isinstance(architecture, str) and name in architecture:
            raise BadInput(f"{path}: architecture {architecture!r} is not supported: {reason}")
    if architecture not in ("standard", "jumprelu"):
        raise BadInput(
            f"{path}: architecture {architecture!r} is unknown; standard and jumprelu are read"
        )
    function = fields.get("activation_fn_str", fields.get("activation_fn", "relu"))
    if function != "relu":
        raise BadInput(f"{path}: activation function {function!r} is not supported, only relu")
    for name in ("finetuning_scaling_factor", "rescale_acts_by_decoder_norm"):
        if fields.get(name):
            raise BadInput(f"{path}: {name} is not supported; fold it into the weights first")
    reshape = fields.get("reshape_activations", "none")
    if reshape not in (None, "none"):
        raise BadInput(f"{path}: reshape_activations {reshape!r} is not supported")
    return "jumprelu" if architecture == "jumprelu" else "relu"


def _site(fields: Mapping[str, Any], path: Path) -> int:
    hook = fields.get("hook_name", fields.get("hook_point"))
    found = _HOOK.fullmatch(hook) if isinstance(hook, str) else None
    if found is None:
        raise BadInput(
            f"{path}: hook_name {hook!r} is not supported; the residual stream is read at "
            "blocks.L.hook_resid_post or blocks.L.hook_resid_pre"
        )
    site = int(found[1]) - (found[2] == "pre")
    if site < 0:
        raise BadInput(f"{path}: hook_name {hook!r} lies before the first block, no site reads it")
    return site


def _encoder(
    path: Path, config: _Config, latents: Sequence[int]
) -> tuple[Floats, Doubles, Doubles]:
    """Weights [l, d], biases [l] and thresholds [l] of the l chosen latents."""
    expected = {"W_enc": [config.d_in, config.d_sae], "b_enc": [config.d_sae]}
    if config.subtract_decoder_bias:
        expected["b_dec"] = [config.d_in]
    if config.activation == "jumprelu":
        expected["threshold"] = [config.d_sae]
    try:
        with safe_open(str(path), framework="pt") as file:
            present = set(file.keys())
            for name, shape in expected.items():
                if name not in present:
                    raise BadInput(f"{path}: tensor {name} is missing")
                if file.get_slice(name).get_shape() != shape:
                    found = file.get_slice(name).get_shape()
                    raise BadInput(f"{path}: {name} has shape {found}, cfg.json says {shape}")
            columns = file.get_slice("W_enc")
            encoder = np.stack([columns[:, i : i + 1].double().numpy()[:, 0] for i in latents])
            vectors = {name: file.get_tensor(name).double().numpy() for name in list(expected)[1:]}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot read {path} as safetensors: {error}; pickled weights are never loaded"
        ) from None
    chosen = list(latents)
    biases = vectors["b_enc"][chosen]
    if config.subtract_decoder_bias:
        biases = biases - encoder @ vectors["b_dec"]
    # relu(a)·1[a > t] with t < 0 is relu(a)·1[a > 0]
    thresholds = np.maximum(vectors.get("threshold", np.zeros(config.d_sae))[chosen], 0.0)
    weights = (encoder * config.norm_factor).astype(np.float32)
    if not all(np.isfinite(part).all() for part in (weights, biases, thresholds)):
        raise BadInput(f"{path}: the chosen latents hold numbers that are not finite")
    return weights, biases, thresholds


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} must hold one JSON object")
    return content


def _positive(fields: Mapping[str, Any], name: str, path: Path) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{path}: {name} must be a positive whole number, found {value!r}")
    return value
