"""Random tensors, and what the production code reads of a loaded SAE.

Legend: D = model width, N = latents, t = tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from monitor.replay.pooling import FeatureBank
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.features import latent_features

Doubles = NDArray[np.float64]


@pytest.fixture
def residuals() -> torch.Tensor:
    """Residuals [40, 6] of several lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(0.3, 4.0, 40)[:, None]
    return lengths * torch.randn(40, 6, generator=generator)


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """Normal numbers of a shape; the same ones in every test."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    return tensor


@pytest.fixture
def read() -> Callable[[SparseAutoencoder, torch.Tensor], Doubles]:
    """All latents of an SAE [t, N], read as features of a pack are read in production."""

    def latents(sae: SparseAutoencoder, x: torch.Tensor) -> Doubles:
        features = latent_features(sae, range(sae.latents))
        into = torch.empty(len(x), sae.latents)
        FeatureBank(features, sae.width, torch.device("cpu")).project(sae.site, x, into)
        found: Any = into.double().numpy()
        return found

    return latents


@pytest.fixture
def largest() -> Callable[[Doubles, int], Doubles]:
    """relu of the k largest of every row [t, N], the rest 0: top-k by sorting."""

    def latents(a: Doubles, k: int) -> Doubles:
        kept = np.zeros_like(a)
        for row, order in enumerate(np.argsort(-a, axis=1)[:, :k]):
            kept[row, order] = np.maximum(a[row, order], 0.0)
        return kept

    return latents
