"""Chosen latents of an SAE as features of a pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.errors import BadInput
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.values.arrays import Floats
from monitor.values.features import Encoder, Feature, Pooling, Region


def latent_features(
    sae: SparseAutoencoder,
    latents: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    region: Region = "response",
    pooling: Pooling = "mean",
    rolling_tokens: int = 16,
    skip_tokens: int | None = None,
    largest_norm: float | None = None,
    falls: Sequence[int] = (),
    tags: tuple[str, ...] = (),
) -> tuple[Feature, ...]:
    """``latents`` of ``sae`` as uncalibrated features, in their order, with everything folded.

    ``names`` default to ``latent.NUMBER``, ``skip_tokens`` to what the SAE was trained without. A
    top-k SAE comes whole, as the `Encoder` that its latents share. All are tagged ``latent``, then
    with ``tags``; those that ``falls`` names fall when a persona appears, and are tagged
    ``assistant`` in their place. Raises `BadInput`.
    """
    _check(sae, latents, names)
    rows = sae.rows(latents)
    encoder = _encoder(sae) if sae.activation == "topk" else None
    weights: Floats = rows.weight.numpy().astype(np.float32)
    return tuple(
        Feature(
            name=names[index] if names else f"latent.{latent}",
            kind="latent",
            site=sae.site,
            region=region,
            pooling=pooling,
            weight=weights[index] if encoder is None else encoder.weight[latent],
            bias=float(rows.bias[index]),
            activation=sae.activation,
            threshold=float(rows.threshold[index]),
            input_norm=sae.input_norm,
            rolling_tokens=rolling_tokens,
            skip_tokens=sae.skip_tokens if skip_tokens is None else skip_tokens,
            calibration=UNCALIBRATED,
            expected="falls" if latent in falls else "rises",
            tags=("latent", *(("assistant",) if latent in falls else tags)),
            description=f"latent {latent} of {sae.latents} of a {sae.format} checkpoint",
            encoder=encoder,
            latent=None if encoder is None else latent,
            largest_norm=largest_norm,
        )
        for index, latent in enumerate(latents)
    )


def _check(sae: SparseAutoencoder, latents: Sequence[int], names: Sequence[str] | None) -> None:
    if not latents:
        raise BadInput("latents: name at least one")
    outside = [latent for latent in latents if not 0 <= latent < sae.latents]
    if outside:
        raise BadInput(f"latents: {outside} are outside 0..{sae.latents - 1}")
    if len(set(latents)) != len(latents):
        raise BadInput("latents: each may be named once")
    if names is not None and len(names) != len(latents):
        raise BadInput(f"names: {len(names)} names for {len(latents)} latents")
    if names is not None and len(set(names)) != len(names):
        raise BadInput("names: each may be given once")


def _encoder(sae: SparseAutoencoder) -> Encoder:
    weight = np.empty((sae.latents, sae.width), dtype=np.float32)
    bias = np.empty(sae.latents, dtype=np.float32)
    for part in sae.parts():
        rows = sae.rows(part)
        weight[part], bias[part] = rows.weight.numpy(), rows.bias.numpy()
    return Encoder(name=f"sae.{sae.site}", weight=weight, bias=bias, places=sae.k or 1)
