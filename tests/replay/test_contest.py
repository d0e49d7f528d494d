"""Top-k latents against sorting, and masked tokens, as the engine reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.replay import contest as contest_module
from monitor.replay.engine import ReplayEngine
from monitor.replay.pooling import MASKED, FeatureBank, normalised
from monitor.replay.regions import Tokens
from monitor.replay.residuals import ResidualReader
from monitor.values.features import Encoder, Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed

WIDTH, LATENTS, PLACES = 32, 50, 7
CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> Encoder:
    generator = np.random.default_rng(8)
    return Encoder(
        name="sae",
        weight=generator.normal(size=(LATENTS, WIDTH)).astype(np.float32),
        bias=generator.normal(size=LATENTS).astype(np.float32),
        places=PLACES,
    )


@pytest.fixture
def contested(encoder: Encoder, feature: Callable[..., Feature]) -> Callable[..., Feature]:
    def build(latent: int, **changes: Any) -> Feature:
        return feature(
            latent,
            kind="latent",
            activation="topk",
            weight=encoder.weight[latent],
            bias=float(encoder.bias[latent]),
            encoder=encoder,
            latent=latent,
            **changes,
        )

    return build


def by_sorting(encoder: Encoder, x: torch.Tensor) -> Any:
    a = x.double().numpy() @ encoder.weight.T.astype(np.float64) + encoder.bias
    kept = np.zeros_like(a)
    for row, order in enumerate(np.argsort(-a, axis=1)[:, :PLACES]):
        kept[row, order] = np.maximum(a[row, order], 0.0)
    return kept


def row(tokens: int) -> Tokens:
    return Tokens(
        ids=tuple(range(tokens)),
        prompt_tokens=1,
        response_tokens=tokens - 1,
        readable=np.ones(tokens, dtype=bool),
    )


@pytest.mark.parametrize("norm", ["none", "rescale", "layer_norm"])
@pytest.mark.parametrize("held", [1 << 24, 120])
def test_latents_are_those_among_the_largest(
    contested: Callable[..., Feature],
    feature: Callable[..., Feature],
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    norm: Any,
    held: int,
) -> None:
    monkeypatch.setattr(contest_module, "PARTIAL_ENTRIES", held)
    x = 3.0 * torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(2))
    chosen = [17, 3, 41]
    features = [feature(99), *(contested(i, input_norm=norm) for i in chosen)]
    into = torch.empty(60, 4)
    FeatureBank(features, WIDTH, CPU).project(1, x, into)
    expected = by_sorting(encoder, normalised(x, norm))[:, chosen]
    np.testing.assert_allclose(into[:, 1:].numpy(), expected, atol=1e-4)
    assert 0 < (expected > 0).sum() < expected.size / 2


def test_a_latent_reads_the_same_alone_and_beside_others(
    contested: Callable[..., Feature],
) -> None:
    """What else the pack holds must not decide who is among the largest."""
    x = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(2))
    alone, beside = torch.empty(60, 1), torch.empty(60, 30)
    FeatureBank([contested(5)], WIDTH, CPU).project(1, x, alone)
    FeatureBank([contested(i) for i in range(30)], WIDTH, CPU).project(1, x, beside)
    torch.testing.assert_close(alone[:, 0], beside[:, 5])


def test_a_residual_that_is_not_finite_is_not_read_as_asleep(
    contested: Callable[..., Feature],
) -> None:
    x = torch.zeros(2, WIDTH)
    x[1] = torch.nan
    into = torch.empty(2, 1)
    FeatureBank([contested(5)], WIDTH, CPU).project(1, x, into)
    assert torch.isnan(into[:, 0]).tolist() == [False, True]


def test_long_residuals_are_left_out_of_every_pooling(feature: Callable[..., Feature]) -> None:
    x = torch.ones(6, WIDTH)
    x[3] *= 50.0
    poolings: list[Any] = ["mean", "max", "last", "max_rolling_mean"]
    weight = np.full(WIDTH, 1 / WIDTH, dtype=np.float32)
    masked = [
        feature(i, pooling=p, weight=weight, largest_norm=100.0, rolling_tokens=2)
        for i, p in enumerate(poolings)
    ]
    features = [*masked, feature(9, weight=weight), feature(10, weight=weight, largest_norm=1e4)]
    bank = FeatureBank(features, WIDTH, CPU)
    into = torch.empty(6, 6)
    bank.project(1, x, into)
    assert (into[:, :4] == MASKED).nonzero()[:, 0].unique().tolist() == [3]
    readings, counts = bank.pool(row(6), into)
    np.testing.assert_allclose(readings.numpy()[:4], 1.0, rtol=1e-5)
    np.testing.assert_allclose(readings.numpy()[4:], (4 + 50) / 5, rtol=1e-5)
    assert counts.tolist() == [4, 4, 1, 4, 5, 5]


def test_a_region_that_is_masked_whole_is_absent(feature: Callable[..., Feature]) -> None:
    bank = FeatureBank([feature(0, largest_norm=1.0), feature(1)], WIDTH, CPU)
    into = torch.empty(4, 2)
    bank.project(1, torch.ones(4, WIDTH), into)
    readings, counts = bank.pool(row(4), into)
    assert torch.isnan(readings).tolist() == [True, False]
    assert counts.tolist() == [0, 3]


def test_masks_of_two_sites_do_not_mix(feature: Callable[..., Feature]) -> None:
    features = [feature(0, site=0, largest_norm=9.0), feature(1, site=1, largest_norm=9.0)]
    bank = FeatureBank(features, WIDTH, CPU)
    long, short = torch.full((4, WIDTH), 5.0), torch.ones(4, WIDTH)
    into = torch.empty(4, 2)
    bank.project(0, long, into)
    bank.project(1, short, into)
    assert torch.isnan(bank.pool(row(4), into)[0]).tolist() == [True, False]


def test_the_engine_reads_top_k_latents(
    llama: Any,
    contested: Callable[..., Feature],
    encoder: Encoder,
    chat: Callable[..., Prompt],
    sentences: Callable[[int, int], list[str]],
) -> None:
    loaded, settings = llama
    traffic = [chat("a river", response=text) for text in sentences(9, 20)]
    features = [contested(i, region="response") for i in (4, 30)]
    features.append(replace(contested(8), site=2, region="response"))
    outcomes = ReplayEngine(loaded, features, settings).replay(traffic)

    def mean_latents(weights: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return weights @ torch.from_numpy(by_sorting(encoder, residual)).float()

    reader = ResidualReader(loaded, settings)
    expected = reader.pooled(traffic, [1, 2], "response", mean_latents, LATENTS)
    found = np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])
    np.testing.assert_allclose(found[:, :2], expected[:, 0, [4, 30]], atol=1e-4)
    np.testing.assert_allclose(found[:, 2], expected[:, 1, 8], atol=1e-4)
    assert found.std() > 0


def test_topk_without_its_encoder_is_refused(
    encoder: Encoder, feature: Callable[..., Feature]
) -> None:
    with pytest.raises(ValueError, match="topk needs the encoder"):
        feature(1, activation="topk", latent=3)
    with pytest.raises(ValueError, match="latent must be one"):
        feature(1, activation="topk", encoder=encoder, latent=LATENTS)
    with pytest.raises(ValueError, match="belong to topk"):
        feature(1, encoder=encoder, latent=3)
    with pytest.raises(ValueError, match="largest_norm"):
        feature(1, largest_norm=0.0)
