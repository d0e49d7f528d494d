"""A full encode: the mean activation of every latent of a sparse autoencoder.

The mean over tokens of the activations, not the activation of the mean residual: a latent that wakes
on one token in fifty sleeps through the mean.

Legend: n = prompts, r = prompts of one pass, t = tokens, d = model width, k = latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from monitor.errors import ModelError
from monitor.replay.pooling import normalised
from monitor.replay.residuals import ResidualReader
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.values.arrays import Floats
from monitor.values.features import Region
from monitor.values.prompts import Prompt

HELD: Final = 1 << 24
"""Activations held at once: 64 MiB of float32."""


def latent_means(
    reader: ResidualReader, sae: SparseAutoencoder, prompts: Sequence[Prompt], region: Region
) -> Floats:
    """Mean activation over ``region`` of every latent, float32 [n, k].

    Blocks: t·d·k multiplications; holds the encoder in float32. Raises `ModelError` when the SAE is
    made for another width, `BadInput` where it holds numbers that are not finite.
    """
    width = reader.loaded.config.hidden_size
    if sae.width != width:
        raise ModelError(
            f"the SAE reads residuals {sae.width} wide, the model's are {width}",
            hint="it was trained on another model",
        )
    weight, bias, threshold = _encoder(sae, reader.loaded.device)
    step = max(HELD // sae.latents, 1)

    def pool(weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        # Prompts and template are most of the tokens, and no region of responses reads them.
        read = weights.any(dim=0)
        weights, residual = weights[:, read], normalised(residual[read], sae.input_norm)
        total = torch.zeros(len(weights), sae.latents, device=residual.device)
        for start in range(0, len(residual), step):
            part = slice(start, start + step)
            activation = torch.addmm(bias, residual[part], weight.T)
            total += weights[:, part] @ active(activation, threshold, sae.k)
        return total

    means = reader.pooled(prompts, [sae.site], region, pool, sae.latents, sae.skip_tokens)
    return means[:, 0]


def active(activation: torch.Tensor, threshold: torch.Tensor, k: int | None) -> torch.Tensor:
    """``activation`` [t, k] where it is above ``threshold`` [k], else 0; with ``k``, of its k largest."""
    if k is None:
        return activation * (activation > threshold)
    values, places = activation.topk(k, dim=1)
    return torch.zeros_like(activation).scatter_(1, places, values.clamp_min(0.0))


def _encoder(
    sae: SparseAutoencoder, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.empty(sae.latents, sae.width, device=device)
    bias, threshold = torch.empty(2, sae.latents, device=device)
    for part in sae.parts():
        rows = sae.rows(part)
        weight[part], bias[part], threshold[part] = rows.weight, rows.bias, rows.threshold
    return weight, bias, threshold
