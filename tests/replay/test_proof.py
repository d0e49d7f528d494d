"""Proof at load: tiny checkpoints of many architectures, loaded as a worker does, against the whole model in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
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
    *(
        "nemotron",
        "olmo2",
        "olmo3",
        "olmoe",
        "phimoe",
        "qwen2_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
    ),
    *("starcoder2", "gpt_oss", "granite_swa", "mimo_v2_flash", "llama4_text"),
)
RECURRENT = (
    *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2"),
    *("minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_text", "qwen3_next"),
)
BATCHED = {
    "its attention cannot be exchanged": ("bloom", "falcon", "gptj"),
    "its attention is sparse": ("minimax_m3_vl",),
}


@pytest.mark.parametrize("kind", [*PACKED, *RECURRENT])
def test_what_attends_as_it_says_or_carries_a_state_is_packed(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is not None, found.reason
    assert found.way == "packed", found.reason
    assert found.difference <= TOLERANCE


@pytest.mark.parametrize(
    ("reason", "kind"), [(r, k) for r, kinds in BATCHED.items() for k in kinds]
)
def test_what_packing_would_change_is_read_in_batches(
    reason: str, kind: str, tmp_path: Path
) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is not None, found.reason
    assert found.way == "batched", found.reason
    assert found.padding > 0.0
    assert found.reason.startswith(reason)
    assert found.difference <= TOLERANCE


def test_what_filling_up_would_change_is_read_in_batches_of_equal_length(tmp_path: Path) -> None:
    """Of keys that score alike, its sparse attention picks others where a prompt is filled up."""
    save_tiny(tiny_config("deepseek_v32"), tmp_path)
    loaded = load_model(settings(tmp_path), 2)
    assert loaded.packing.way == "batched"
    assert loaded.packing.padding == 0.0
    assert loaded.packing.sentence.startswith("in batches of equal length, proven on this copy in")
    found = proved("deepseek_v32", tmp_path)
    assert found.way == "batched"
    assert found.difference is not None
    assert found.difference <= TOLERANCE


def test_queries_are_as_hot_as_their_positions_say(tmp_path: Path) -> None:
    """Llama 4 counts the positions that scale its queries from the start of the row, not of the prompt."""
    found = proved(
        "llama4_text", tmp_path, floor_scale=4, attn_scale=2.0, no_rope_layers=[1, 0, 1, 0]
    )
    assert found.way == "packed", found.reason
    assert found.difference is not None
    assert found.difference <= TOLERANCE


@pytest.mark.parametrize("kind", ["gemma3n_text", "deepseek_v4"])
def test_several_residual_streams_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    found = proved(kind, tmp_path)
    assert found.difference is None
    assert kind in found.reason
    assert "residual stream" in found.reason


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
    assert lineage.attention == "packed-blocks"
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
    assert loaded.packing.way == "batched"
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
    assert found.packing.way == "alone"


def test_what_depends_on_its_neighbours_is_read_one_by_one(
    window: Path, feature: Callable[..., Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations rounded on the scale of the whole pass, as some quantised layers round them."""
    from transformers.models.cohere2.modeling_cohere2 import Cohere2MLP

    forward = Cohere2MLP.forward

    def rounded(self: Any, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 8
        return forward(self, (x / scale).round() * scale)

    monkeypatch.setattr(Cohere2MLP, "forward", rounded)
    loaded = load_model(settings(window), 2)
    assert loaded.packing.ground == "disproven"
    assert "in batches, its readings differ by" in loaded.packing.reason
    assert loaded.packing.sentence.startswith("one prompt at a time, found out in")
    lineage = ReplayEngine(loaded, [feature(1)], settings(window)).lineage("pack")
    assert '"packing":"disproven"' in lineage.rules


def test_batches_stand_in_lineage_log_and_sentence(
    tmp_path: Path, feature: Callable[..., Feature]
) -> None:
    save_tiny(tiny_config("bloom"), tmp_path)
    with structlog.testing.capture_logs() as lines:
        loaded = load_model(settings(tmp_path), 2)
    assert loaded.packing.sentence.startswith("in batches of like length, proven on this copy in")
    lineage = ReplayEngine(loaded, [feature(1)], settings(tmp_path)).lineage("pack")
    assert '"packing":"batched"' in lineage.rules
    assert lineage.attention == "eager"
    [event] = [one for one in lines if one["event"] == "model.packing"]
    assert event["ground"] == "batched"
