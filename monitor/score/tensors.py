"""The tensors of a pack: ``features.safetensors``, written in a fixed order and checked before they are used.

Legend: k = features, p = parts of composites, q = features with a pattern, c = covariates, n = latents,
d = model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from monitor.errors import PackError
from monitor.score.manifest import REBUILD, Manifest
from monitor.values.arrays import Floats
from monitor.values.features import Covariate, Encoder, Feature

LARGEST_HEADER: Final = 1024 * 1024
"""What stands before the tensors in their file: a line for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Weights [k, d], of each feature its parts [p, d] and its pattern [d], and what features share."""

    weights: Floats
    parts: list[Floats]
    patterns: list[Floats | None]
    covariates: Floats
    encoders: dict[str, Encoder]


def tensors_of(
    features: Sequence[Feature], covariates: Sequence[Covariate], encoders: Sequence[Encoder]
) -> dict[str, Floats]:
    """What the file holds, in the order in which it is hashed."""
    further = [part.weight for feature in features for part in feature.parts]
    parts = {"parts": np.stack(further).astype(np.float32)} if further else {}
    written = [feature.pattern for feature in features if feature.pattern is not None]
    patterns = {"patterns": np.stack(written).astype(np.float32)} if written else {}
    read = [one.weight for one in covariates]
    return {
        "weights": stacked(features),
        **parts,
        **patterns,
        **({"covariates": np.stack(read).astype(np.float32)} if read else {}),
        **_encoder_tensors(encoders),
    }


def stacked(features: Sequence[Feature]) -> Floats:
    """The features' weights at their own sites: [k, d]."""
    return np.stack([feature.weight for feature in features]).astype(np.float32)


def _encoder_tensors(encoders: Sequence[Encoder]) -> dict[str, Floats]:
    return {
        f"{encoder.name}.{part}": np.ascontiguousarray(values, dtype=np.float32)
        for encoder in encoders
        for part, values in (("weight", encoder.weight), ("bias", encoder.bias))
    }


def _shapes(entry: Manifest) -> dict[str, tuple[int, ...]]:
    """Of each tensor that the manifest announces."""
    width = entry.model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"weights": (len(entry.features), width)}
    counts = [len(one.parts or ()) for one in entry.features]
    if any(counts):
        shapes["parts"] = (sum(counts), width)
    if patterned := sum(one.pattern is not None for one in entry.features):
        shapes["patterns"] = (patterned, width)
    if entry.covariates:
        shapes["covariates"] = (len(entry.covariates), width)
    for one in entry.encoders:
        shapes |= {f"{one.name}.weight": (one.latents, width), f"{one.name}.bias": (one.latents,)}
    return shapes


def most_bytes(entry: Manifest) -> int:
    """How large the file of this manifest may be: nothing beyond is read."""
    return sum(4 * math.prod(shape) for shape in _shapes(entry).values()) + LARGEST_HEADER


def parse(content: bytes, entry: Manifest, where: str) -> Tensors:
    """The file's ``content`` beside the manifest ``entry``; ``where`` names the file.

    Raises `PackError` unless shapes, types and numbers are right.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PackError(f"{where} is not a safetensors file: {error}", hint=REBUILD) from None
    shapes = _shapes(entry)
    width = entry.model.hidden_size
    if set(tensors) != set(shapes):
        raise PackError(
            f"{where} must hold {'the tensor' if len(shapes) == 1 else 'the tensors'} "
            f"{', '.join(map(repr, shapes))} alone, found {sorted(tensors)}"
        )
    for name, expected in shapes.items():
        found = tensors[name]
        if found.dtype != np.float32 or found.shape != expected:
            raise PackError(
                f"{where}: {name} must be float32 {list(expected)}, "
                f"found {found.dtype} {list(found.shape)}",
                hint=REBUILD,
            )
    weights = tensors["weights"]
    if not np.isfinite(weights).all():
        row = int(np.flatnonzero(~np.isfinite(weights).all(axis=1))[0])
        raise PackError(f"{where}: the weight of feature {entry.features[row].name} is not finite")
    none = np.empty((0, width), dtype=np.float32)
    written = iter(tensors.get("patterns", none))
    try:
        encoders = {
            one.name: Encoder(
                name=one.name,
                weight=tensors[f"{one.name}.weight"],
                bias=tensors[f"{one.name}.bias"],
                places=one.places,
            )
            for one in entry.encoders
        }
    except ValueError as error:
        raise PackError(f"{where}: {error}", hint=REBUILD) from None
    counts = [len(one.parts or ()) for one in entry.features]
    return Tensors(
        weights=weights,
        parts=np.split(tensors.get("parts", none), np.cumsum(counts)[:-1]),
        patterns=[None if one.pattern is None else next(written) for one in entry.features],
        covariates=tensors.get("covariates", none),
        encoders=encoders,
    )
