"""Proof at load: tiny checkpoints of many architectures, loaded as a worker does, against the whole model in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.architectures.prove import proved
from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import ModelError
from monitor.replay import architectures
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings
from monitor.values.features import Feature

TOLERANCE = 2e-4
PACKED = (
    *("apertus", "arcee", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma"),
    *("gemma4_text", "glm4", "glm4_moe", "granite", "hunyuan_v1_dense", "minimax_m2", "ministral3"),
    *("olmo2", "olmo3", "olmoe", "phimoe", "qwen2_moe", "seed_oss", "smollm3", "starcoder2"),
)
ONE_BY_ONE = (
    *("bamba", "falcon_h1", "gpt_oss", "granitemoehybrid", "jamba", "lfm2", "llama4_text"),
    *("mamba2", "minimax", "qwen3_5_text", "qwen3_next"),
)


@pytest.mark.parametrize("kind", PACKED)
def test_what_attends_as_it_says_is_packed(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is not None, found.way
    assert found.packed, found.way
    assert found.difference <= TOLERANCE


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_what_packing_would_change_is_read_one_by_one(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is not None, found.way
    assert not found.packed, found.way
    assert found.difference <= TOLERANCE


@pytest.mark.parametrize("kind", ["gemma3n_text", "deepseek_v4"])
def test_several_residual_streams_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is None
    assert kind in found.way
    assert "residual stream" in found.way


def settings(folder: Path, **changes: Any) -> ReplaySettings:
    return ReplaySettings(
        **({"model": folder, "device": "cpu", "dtype": "float32", "max_tokens": 256} | changes)
    )


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture that is not on the list, with a window far beyond the proof's short prompts."""
    folder = tmp_path_factory.mktemp("cohere2")
    save_tiny(
        tiny_config("cohere2", sliding_window=100, layer_types=["sliding_attention"] * 4), folder
    )
    return folder


def test_the_outcome_stands_in_the_lineage_and_the_time_does_not(
    window: Path, feature: Callable[..., Feature]
) -> None:
    loaded = load_model(settings(window), 2)
    assert loaded.packing.ground == "proven"
    assert loaded.packing.seconds > 0.0
    assert "packed, proven on this copy in" in loaded.packing.sentence
    lineage = ReplayEngine(loaded, [feature(1)], settings(window)).lineage("pack")
    assert '"packing":"proven"' in lineage.rules
    assert lineage.attention == "packed-sdpa"
    again = ReplayEngine(load_model(settings(window), 2), [feature(1)], settings(window))
    assert again.lineage("pack") == lineage


def test_a_window_that_packing_ignores_is_found_out(
    window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window lies beyond every short prompt: only the one that crosses it can tell."""
    whole = architectures.PACKED

    def blind(*given: Any, **options: Any) -> Any:
        from monitor.replay.attention import packed_attention

        return packed_attention(*given, **(options | {"sliding_window": None}))

    from transformers import AttentionInterface

    AttentionInterface.register("blind", blind)
    monkeypatch.setattr(architectures, "PACKED", "blind")
    loaded = load_model(settings(window), 2)
    assert whole != "blind"
    assert loaded.packing.ground == "disproven"
    assert loaded.packing.reason.startswith("packed, its readings differ by")
    assert loaded.model.config._attn_implementation == "sdpa"
    # A replay that never crosses the window reads the same either way.
    assert load_model(settings(window, max_tokens=90), 2).packed


def test_what_loads_and_cannot_run_is_refused_when_it_is_loaded(
    window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.cohere2.modeling_cohere2 import Cohere2MLP

    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel for this precision")

    monkeypatch.setattr(Cohere2MLP, "forward", broken)
    with pytest.raises(ModelError, match=r"cohere2\) was loaded but cannot be run: .* no kernel"):
        load_model(settings(window), 2)


def test_an_adapter_or_damaged_copy_is_read_one_by_one_when_it_is_not_finite(window: Path) -> None:
    loaded = load_model(settings(window), 2)
    with torch.no_grad():
        loaded.blocks[0].mlp.up_proj.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    stock = dataclasses.replace(loaded, attention="sdpa")
    loaded.model.set_attn_implementation("sdpa")
    found = architectures.proven(stock, limit=256, batch_tokens=256)
    assert not found.packed
