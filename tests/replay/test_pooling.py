"""Activations and poolings against their definitions in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from monitor.errors import PackError
from monitor.replay.pooling import FeatureBank, normalised, pooled
from monitor.replay.regions import Tokens
from monitor.values.features import Feature, Part

CPU = torch.device("cpu")


@pytest.fixture
def residual() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(9, 32)).astype(np.float32) * 3)


def row(tokens: int, prompt: int) -> Tokens:
    return Tokens(
        ids=tuple(range(tokens)),
        prompt_tokens=prompt,
        response_tokens=tokens - prompt,
        readable=np.ones(tokens, dtype=bool),
    )


@pytest.mark.parametrize("norm", ["none", "rescale", "layer_norm"])
@pytest.mark.parametrize("activation", ["identity", "relu", "jumprelu"])
def test_activation_is_what_the_record_defines(
    norm: Any, activation: Any, residual: torch.Tensor, feature: Callable[..., Feature]
) -> None:
    one = feature(3, activation=activation, input_norm=norm, bias=0.2, threshold=0.9)
    into = torch.empty(9, 2)
    FeatureBank([feature(4), one], 32, CPU).project(1, residual, into)
    x = residual.numpy().astype(np.float64)
    if norm == "rescale":
        x = x * np.sqrt(32) / np.linalg.norm(x, axis=1, keepdims=True)
    elif norm == "layer_norm":
        x = x - x.mean(axis=1, keepdims=True)
        x = x / (x.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    a = x @ one.weight.astype(np.float64) + 0.2
    if activation == "relu":
        a = np.maximum(a, 0.0)
    elif activation == "jumprelu":
        a = np.where(a > 0.9, a, 0.0)
    np.testing.assert_allclose(into[:, 1].numpy(), a, atol=1e-4)


def test_zero_residual_stays_finite() -> None:
    for norm in ("none", "rescale", "layer_norm"):
        assert torch.isfinite(normalised(torch.zeros(2, 32), norm)).all()  # type: ignore[arg-type]


def test_probe_pools_its_logit_and_squashes_last(
    residual: torch.Tensor, feature: Callable[..., Feature]
) -> None:
    probe = feature(3, kind="probe", activation="sigmoid", bias=-0.1)
    bank = FeatureBank([probe, feature(4)], 32, CPU)
    into = torch.empty(9, 2)
    bank.project(1, residual, into)
    readings, counts = bank.pool(row(9, 4), into)
    values = bank.finished([readings])
    logits = residual.numpy().astype(np.float64) @ probe.weight - 0.1
    assert values[0, 0] == pytest.approx(1.0 / (1.0 + np.exp(-logits[1:].mean())), abs=1e-5)
    assert counts.tolist() == [8, 8]
    extreme = bank.finished([torch.tensor([-1e4, 0.0]), torch.tensor([1e4, 0.0])])
    assert extreme[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 9])
def test_rolling_mean_is_the_largest_window_or_the_mean_of_what_there_is(tokens: int) -> None:
    values = np.random.default_rng(tokens).normal(size=(tokens, 3)).astype(np.float32)
    got = pooled(torch.from_numpy(values), "max_rolling_mean", 4).numpy()
    windows = [values[i : i + 4].mean(axis=0) for i in range(max(tokens - 3, 1))]
    np.testing.assert_allclose(got, np.max(windows, axis=0), atol=1e-6)


def test_max_and_last() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0], [2.0, 4.0]])
    assert pooled(values, "max", 0).tolist() == [3.0, 5.0]
    assert pooled(values, "last", 0).tolist() == [2.0, 4.0]


def test_absent_region_reads_nan_and_counts_nothing(feature: Callable[..., Feature]) -> None:
    bank = FeatureBank(
        [feature(1, region="response"), feature(2, region="prompt", pooling="last")], 32, CPU
    )
    readings, counts = bank.pool(row(5, 5), torch.ones(5, 2))
    assert torch.isnan(readings).tolist() == [True, False]
    assert counts.tolist() == [0, 1]


def test_first_token_never_reaches_a_pool(feature: Callable[..., Feature]) -> None:
    poolings = ["mean", "max", "max_rolling_mean"]
    bank = FeatureBank([feature(i, pooling=p) for i, p in enumerate(poolings)], 32, CPU)
    activations = torch.ones(6, 3)
    activations[0] = 25_000.0
    readings, _ = bank.pool(row(6, 3), activations)
    assert readings.tolist() == [1.0, 1.0, 1.0]


def test_feature_of_another_width_is_refused(feature: Callable[..., Feature]) -> None:
    with pytest.raises(PackError, match=r"feature-1: weight has 16 entries.*32"):
        FeatureBank([feature(1, width=16)], 32, CPU)
    with pytest.raises(PackError, match="without features"):
        FeatureBank([], 32, CPU)


def test_what_each_device_projects_is_gathered_behind_all_passes(
    feature: Callable[..., Feature],
) -> None:
    """A composite of sites on two devices, one that is masked, and features of one device alone."""
    drawn = np.random.default_rng(3)

    def parts(*sites: int) -> tuple[Part, ...]:
        return tuple(
            Part(site=site, weight=drawn.normal(size=32).astype(np.float32)) for site in sites
        )

    features = [
        feature(1, site=0, bias=0.5),
        feature(2, site=0, bias=0.7, parts=parts(1, 2)),
        feature(3, site=1, bias=-0.2, parts=parts(2)),
        feature(4, site=2, largest_norm=6.0),
        feature(5, site=0, largest_norm=6.0, activation="relu"),
    ]
    places = (CPU, torch.device("cpu", 0), torch.device("cpu", 0))
    streams = torch.from_numpy(drawn.normal(size=(3, 9, 32)).astype(np.float32))
    alone = FeatureBank(features, 32, CPU)
    expected = torch.full((9, 5), torch.nan)
    spread = FeatureBank(features, 32, CPU, places.__getitem__)
    rows = {place: torch.full((9, 5), torch.nan) for place in places}
    for site in alone.sites:
        alone.project(site, streams[site], expected)
        spread.project(site, streams[site], rows[places[site]])
    assert torch.isfinite(expected[:, :3]).all()
    torch.testing.assert_close(spread.gathered(rows), expected)
    torch.testing.assert_close(alone.gathered({CPU: expected}), expected)
