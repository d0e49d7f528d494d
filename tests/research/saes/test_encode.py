"""Every latent of an SAE, pooled over tokens by the engine's own forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import ModelError
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.diff.families import Readings, candidates, latent_family
from monitor.research.saes import encode
from monitor.research.saes.autoencoder import SparseAutoencoder
from monitor.research.saes.encode import active, latent_means
from monitor.research.saes.features import latent_features
from monitor.research.texts import exchange
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message, Prompt
from monitor.values.scores import Replayed

WIDTH, LATENTS = 32, 50


def autoencoder(width: int = WIDTH, **fields: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, LATENTS, width, generator=generator)
    given: dict[str, Any] = {
        "format": "saelens",
        "path": Path("sae"),
        "site": 1,
        "activation": "jumprelu",
        "encoder": encoder,
        "bias": torch.randn(LATENTS, generator=generator) * 0.1,
        "decoder": decoder,
        "decoder_bias": torch.zeros(width),
        "threshold": torch.full((LATENTS,), 0.05),
        "input_norm": "layer_norm",
    }
    return SparseAutoencoder(**(given | fields))


@pytest.fixture
def reader(tiny_folder: Path) -> ResidualReader:
    settings = ReplaySettings(model=tiny_folder, device="cpu", dtype="float32")
    return ResidualReader(load_model(settings, 1), settings)


@pytest.fixture
def chats() -> list[Prompt]:
    return [
        exchange((Message(role="user", content="Hello " * n),), "an answer of words " * (4 - n))
        for n in range(1, 4)
    ]


@pytest.mark.parametrize("held", [1 << 24, 1])
def test_a_full_encode_reads_as_the_production_engine_does(
    held: int, reader: ResidualReader, chats: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "HELD", held)
    sae = autoencoder()
    means = latent_means(reader, sae, chats, "response")
    features = latent_features(sae, range(LATENTS), region="response")
    engine = ReplayEngine(reader.loaded, features, reader.settings)
    replayed = [one for one in engine.replay(chats) if isinstance(one, Replayed)]
    expected = np.stack([one.readings for one in replayed])
    assert (expected > 0).any()
    assert (expected == 0).any()
    np.testing.assert_allclose(means, expected, atol=1e-5)


def test_the_mean_of_activations_is_not_the_activation_of_the_mean(
    reader: ResidualReader, chats: list[Prompt]
) -> None:
    sae = autoencoder(input_norm="none")
    means = latent_means(reader, sae, chats, "response")
    residual = torch.from_numpy(reader.mean_residuals(chats, [1], "response")[:, 0])
    of_mean = active(
        residual @ sae.encoder.T + sae.bias, torch.full((LATENTS,), 0.05), None
    ).numpy()
    assert np.abs(means - of_mean).max() > 0.01


def test_of_top_k_only_the_k_largest_are_active() -> None:
    activation = torch.tensor([[3.0, 1.0, 2.0, -1.0], [-3.0, -1.0, -2.0, -4.0]])
    expected = torch.tensor([[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(active(activation, torch.zeros(4), 2), expected)


def test_an_sae_of_another_width_is_refused(reader: ResidualReader, chats: list[Prompt]) -> None:
    with pytest.raises(ModelError, match="reads residuals 48 wide"):
        latent_means(reader, autoencoder(width=48), chats, "response")


def test_latents_are_ranked_by_their_mean_change_and_steered_along_their_decoder() -> None:
    sae = autoencoder()
    base = np.abs(np.random.default_rng(0).normal(size=(20, LATENTS))).astype(np.float32)
    tuned = base.copy()
    tuned[:, 7] += 2.0
    tuned[:, 9] -= 1.0
    empty = np.zeros((20, 1, WIDTH), np.float32)
    sides = [
        Readings(residuals=empty, lengths=np.ones(1), latents=latents) for latents in (base, tuned)
    ]
    rises, falls = candidates(latent_family(*sides, sae, "response"), 20, 5)
    assert [(one.name, one.feature.expected) for one in (rises, falls)] == [
        ("latent.7", "rises"),
        ("latent.9", "falls"),
    ]
    rows = sae.decoder_rows([7, 9]).numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rises.direction, rows[0], atol=1e-6)
    np.testing.assert_allclose(falls.direction, -rows[1], atol=1e-6)
