"""Variance explained and L0 against their definition, in every norm and activation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.research.saes import autoencoder
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.fidelity import Expected, Fidelity, encoded, measure

D, N, T = 6, 10, 50


@pytest.fixture
def sae() -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(N, D, generator=generator)
    return SparseAutoencoder(
        format="saelens",
        path=Path("nowhere"),
        site=1,
        activation="relu",
        encoder=encoder,
        bias=torch.randn(N, generator=generator),
        decoder=encoder / 4,
        decoder_bias=torch.randn(D, generator=generator),
    )


@pytest.fixture
def residuals() -> torch.Tensor:
    return 2.0 * torch.randn(T, D, generator=torch.Generator().manual_seed(1)) + 0.5


def expected(sae: SparseAutoencoder, x: Any, norm: str, scale: float, k: int | None) -> Fidelity:
    """By the definition of `SparseAutoencoder`, in float64 and whole."""
    mean = x.mean(axis=1, keepdims=True)
    deviation = x.std(axis=1, ddof=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    inputs = {
        "none": x,
        "rescale": x * np.sqrt(D) / length,
        "layer_norm": (x - mean) / (deviation + 1e-5),
    }[norm]
    b_dec = sae.decoder_bias.double().numpy()
    a = (scale * inputs - b_dec) @ sae.encoder.double().numpy().T + sae.bias.double().numpy()
    if k is not None:
        a = np.where(a >= np.sort(a, axis=1)[:, -k][:, None], a, 0.0)
    latents = np.maximum(a, 0.0)
    rebuilt = (latents @ sae.decoder.double().numpy() + b_dec) / scale
    rebuilt = {
        "none": rebuilt,
        "rescale": rebuilt * length / np.sqrt(D),
        "layer_norm": rebuilt * deviation + mean,
    }[norm]
    error = np.square(x - rebuilt).sum() / np.square(x - x.mean(axis=0)).sum()
    return Fidelity(
        tokens=len(x),
        variance_explained=1.0 - error,
        l0=float((latents > 0).sum(axis=1).mean()),
        silent=float(1.0 - (latents > 0).any(axis=0).mean()),
    )


@pytest.mark.parametrize("norm", ["none", "rescale", "layer_norm"])
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("part", [4_096, 4])
def test_fidelity_is_what_the_definition_gives(
    sae: SparseAutoencoder,
    residuals: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    norm: Any,
    k: int | None,
    scale: float,
    part: int,
) -> None:
    monkeypatch.setattr(autoencoder, "PART", part)
    changed = replace(
        sae,
        input_norm=norm,
        activation="relu" if k is None else "topk",
        k=k,
        norm_factor=scale,
        subtracted=sae.decoder_bias,
    )
    found = measure(changed, residuals)
    wanted = expected(sae, residuals.double().numpy(), norm, scale, k)
    assert found.tokens == T
    assert found.variance_explained == pytest.approx(wanted.variance_explained, abs=1e-4)
    assert found.l0 == pytest.approx(wanted.l0, abs=1e-6)
    assert found.silent == pytest.approx(wanted.silent, abs=1e-6)


def test_parts_join_to_all_latents(
    sae: SparseAutoencoder, residuals: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.cat([values for _, values in encoded(sae, residuals)], dim=1)
    monkeypatch.setattr(autoencoder, "PART", 3)
    parts = list(encoded(sae, residuals))
    assert [part.start for part, _ in parts] == [0, 3, 6, 9]
    torch.testing.assert_close(torch.cat([values for _, values in parts], dim=1), whole)


def test_what_agrees_and_what_does_not() -> None:
    found = Fidelity(tokens=9, variance_explained=0.6, l0=50.0, silent=0.0)
    assert Expected().disagreements(found) == []
    assert Expected(l0=99.0, variance_explained=0.74).disagreements(found) == []
    assert Expected(l0=101.0).disagreements(found) == ["mean L0 is 50.0, expected 101"]
    assert len(Expected(l0=24.0, variance_explained=0.76).disagreements(found)) == 2
    lost = replace(found, variance_explained=float("nan"), l0=float("nan"))
    assert len(Expected(l0=50.0, variance_explained=0.6).disagreements(lost)) == 2
    assert Expected(l0=1.0).over(Expected(l0=2.0, variance_explained=0.5)) == Expected(
        l0=1.0, variance_explained=0.5
    )
