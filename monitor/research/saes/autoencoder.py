"""The canonical form of a sparse autoencoder: what every loader makes of its files.

Legend: n = latents, d = model width, l = latents asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.values.features import InputNorm

PART: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a person says about a checkpoint where its own files do not.

    ``site`` is the 0-based decoder block whose output it reads; ``k`` the places of a top-k;
    ``norm_factor`` the scalar √d / (mean norm) that the activations were multiplied by in training.
    """

    site: int | None = None
    k: int | None = None
    norm_factor: float | None = None

    def __post_init__(self) -> None:
        if self.site is not None and self.site < 0:
            raise BadInput("site must be the index of a decoder block, from 0")
        if self.k is not None and self.k < 1:
            raise BadInput("k must be at least 1")
        if self.norm_factor is not None and not (
            np.isfinite(self.norm_factor) and self.norm_factor > 0
        ):
            raise BadInput("norm_factor must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Mean L0 and fraction of variance explained as the publisher states them; None where not."""

    l0: float | None = None
    variance_explained: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Latents with everything folded, float64: ``weight`` [l, d], ``bias`` [l], ``threshold`` [l].

    ``a = input_norm(x) @ weight.T + bias``; active where ``a > threshold``.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseAutoencoder:
    """An SAE on the residual stream behind decoder block ``site``.

    With s = ``norm_factor`` and g = ``gain`` (1 where None):

    ``z = s · input_norm(x) - subtracted``;  ``a = g · (z @ encoder.T) + bias``;
    latents = a where a > threshold (``jumprelu``; ``relu``: threshold 0), else 0; for ``topk``, relu
    of the k largest a. ``x̂ = undo_norm((latents · decoder_gain @ decoder + decoder_bias) / s)``.

    Shapes: ``encoder`` and ``decoder`` [n, d] (views of the file, in its dtype), ``bias``,
    ``threshold``, ``gain``, ``decoder_gain`` [n], ``subtracted``, ``decoder_bias`` [d]. The first
    ``skip_tokens`` of a row, and activations longer than ``norm_multiple`` medians, had no part in
    training. ``provenance`` holds what the publisher's files say, as JSON values. Raises `BadInput`
    when the shapes contradict each other.
    """

    format: str
    path: Path
    site: int
    activation: Literal["relu", "jumprelu", "topk"]
    encoder: torch.Tensor
    bias: torch.Tensor
    decoder: torch.Tensor
    decoder_bias: torch.Tensor
    subtracted: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    decoder_gain: torch.Tensor | None = None
    threshold: torch.Tensor | None = None
    k: int | None = None
    input_norm: InputNorm = "none"
    norm_factor: float = 1.0
    skip_tokens: int = 1
    norm_multiple: float | None = None
    published: Published = Published()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, d = self.encoder.shape
        parts = {
            "bias": (self.bias, (n,)),
            "decoder": (self.decoder, (n, d)),
            "decoder_bias": (self.decoder_bias, (d,)),
            "subtracted": (self.subtracted, (d,)),
            "gain": (self.gain, (n,)),
            "decoder_gain": (self.decoder_gain, (n,)),
            "threshold": (self.threshold, (n,)),
        }
        for name, (tensor, shape) in parts.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise BadInput(
                    f"{self.path}: {name} has shape {list(tensor.shape)}, expected {list(shape)}"
                )
        if (self.activation == "topk") != (self.k is not None):
            raise BadInput(f"{self.path}: k belongs to top-k, and is needed there")
        if self.k is not None and not 1 <= self.k <= n:
            raise BadInput(f"{self.path}: k must be in 1..{n}, found {self.k}")
        if (self.activation == "jumprelu") != (self.threshold is not None):
            raise BadInput(f"{self.path}: a threshold belongs to jumprelu, and is needed there")

    @property
    def latents(self) -> int:
        return self.encoder.shape[0]

    @property
    def width(self) -> int:
        return self.encoder.shape[1]

    def parts(self) -> Iterator[slice]:
        """All latents in slices of `PART`: an encoder in float64 need not fit into memory whole."""
        for start in range(0, self.latents, PART):
            yield slice(start, min(start + PART, self.latents))

    def rows(self, which: Sequence[int] | slice) -> Rows:
        """The latents ``which``, folded. Raises `BadInput` where a number is not finite."""
        index = which if isinstance(which, slice) else torch.tensor(list(which))
        weight = self.encoder[index].double()
        if self.gain is not None:
            weight = weight * self.gain[index].double()[:, None]
        bias = self.bias[index].double()
        if self.subtracted is not None:
            bias = bias - weight @ self.subtracted.double()
        weight = weight * self.norm_factor
        threshold = torch.zeros_like(bias)
        if self.threshold is not None:
            # relu(a)·1[a > t] with t < 0 is relu(a)·1[a > 0]
            threshold = self.threshold[index].double().clamp_min(0.0)
        for part in (weight, bias, threshold):
            self._require_finite(part, "the latents asked for hold")
        return Rows(weight=weight, bias=bias, threshold=threshold)

    def decoder_rows(self, which: Sequence[int] | slice) -> torch.Tensor:
        """What one unit of each latent adds to ``x̂`` before the norm is undone, float64 [l, d].

        Raises `BadInput` where a number is not finite.
        """
        index = which if isinstance(which, slice) else torch.tensor(list(which))
        rows = self.decoder[index].double()
        if self.decoder_gain is not None:
            rows = rows * self.decoder_gain[index].double()[:, None]
        rows = rows / self.norm_factor
        self._require_finite(rows, "the decoder holds")
        return rows

    def decoder_offset(self) -> torch.Tensor:
        """``x̂`` without any latent, before the norm is undone, float64 [d]; `BadInput` as for rows."""
        offset = self.decoder_bias.double() / self.norm_factor
        self._require_finite(offset, "the decoder bias holds")
        return offset

    def _require_finite(self, values: torch.Tensor, what: str) -> None:
        # In float32, in which they are read: what overflows there is no better than infinity.
        if not torch.isfinite(values.float()).all():
            raise BadInput(
                f"{self.path}: {what} numbers that are not finite",
                hint="fetch the checkpoint again, or ask its publisher",
            )
