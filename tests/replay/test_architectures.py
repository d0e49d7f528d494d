"""Readings of every architecture equal those computed from transformers' own hidden states in float64.

Stated tolerance: 2e-4 of the largest reading, for float32 copies of models with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.regions import Tokens
from monitor.settings import ReplaySettings
from monitor.values.features import Feature, Part
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.replay.architectures import LAYERS, OTHERS, PACKED

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[[Any], Path]) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in known:
            kind, options, *_ = (PACKED | OTHERS)[name]
            known[name] = tiny_model(getattr(transformers, kind)(**options))
        return known[name]

    return find


@pytest.fixture
def features(feature: Callable[..., Feature]) -> list[Feature]:
    """Every region and pooling, at a site within the model and behind its last block; and composites."""
    return [
        feature(1, site=1, region="all", pooling="mean"),
        feature(2, site=3, region="response", pooling="mean"),
        feature(3, site=3, region="prompt", pooling="max"),
        feature(4, site=1, region="last_prompt_token", pooling="last"),
        feature(5, site=3, region="all", pooling="max_rolling_mean", rolling_tokens=4),
        feature(6, site=3, region="all", pooling="mean", skip_tokens=5, bias=0.5),
        feature(7, site=1, region="response", bias=0.5, parts=parts(0, 3)),
        feature(8, site=3, pooling="max_rolling_mean", rolling_tokens=4, parts=parts(1)),
        feature(9, site=2, region="last_prompt_token", pooling="last", parts=parts(0, 1)),
    ]


def parts(*sites: int) -> tuple[Part, ...]:
    draw = np.random.default_rng(sites).normal
    return tuple(Part(site=site, weight=draw(size=32).astype(np.float32)) for site in sites)


@pytest.fixture
def prompts(
    chat: Callable[..., Prompt], sentences: Callable[[int, int], list[str]], words: list[str]
) -> list[Prompt]:
    """Short and far beyond the window; with a long prefix that several share, and two that equal."""
    system = ("system", " ".join(words[:16]))
    texts = sentences(6, 40)
    return [
        *(chat(system, text, response=texts[-1 - i]) for i, text in enumerate(texts)),
        *(chat(text) for text in texts[:3]),
        chat(system, texts[1], response=texts[-2]),
        chat(text=texts[4]),
    ]


def expected(folder: Path, rows: list[Tokens], features: list[Feature]) -> np.ndarray:
    """Readings [n, k] from `output_hidden_states` of the full model, in float64, one by one."""
    config = AutoConfig.from_pretrained(folder)
    # The fused kernels of experts know no float64.
    options = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    model = AutoModel.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", **options
    )
    for norm in ("norm", "ln_f", "final_layer_norm", "norm_f", "embedding_norm"):
        if hasattr(model, norm):
            # transformers gives the last block's output behind the final norm only.
            setattr(model, norm, torch.nn.Identity())
    # Mamba's hidden states begin behind the first block, not before it.
    first = 0 if config.model_type == "mamba" else 1
    result = np.full((len(rows), len(features)), np.nan)
    for row, tokens in enumerate(rows):
        with torch.no_grad():
            output = model(torch.tensor([tokens.ids]), output_hidden_states=True, use_cache=False)
        for column, one in enumerate(features):
            values = one.bias + sum(
                output.hidden_states[site + first][0].numpy()
                @ one.weight_at(site).astype(np.float64)
                for site in one.sites
            )
            values = values[tokens.positions(one.region, one.skip_tokens)]
            if len(values) == 0:
                continue
            if one.pooling == "max":
                result[row, column] = values.max()
            elif one.pooling == "last":
                result[row, column] = values[-1]
            elif one.pooling == "mean" or len(values) < one.rolling_tokens:
                result[row, column] = values.mean()
            else:
                windows = np.lib.stride_tricks.sliding_window_view(values, one.rolling_tokens)
                result[row, column] = windows.mean(axis=1).max()
    return result


def compare(
    folder: Path, features: list[Feature], prompts: list[Prompt], settings: ReplaySettings
) -> ReplayEngine:
    loaded = load_model(settings, max(one.sites[-1] for one in features))
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(prompts)
    outcomes = engine.run(prepared)
    rows = [prepared.replays[prepared.replay_of[i]] for i in range(len(prompts))]
    reference = expected(folder, rows, features)
    assert all(isinstance(outcome, Replayed) for outcome in outcomes)
    readings = np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])
    assert np.array_equal(np.isnan(readings), np.isnan(reference))
    scale = np.nanmax(np.abs(reference))
    assert scale > 1.0
    np.testing.assert_allclose(readings, reference, rtol=0, atol=TOLERANCE * scale)
    assert not any(block._forward_hooks for block in loaded.blocks)
    assert not any(module._forward_hooks for module in loaded.model.modules())
    return engine


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_readings_equal_transformers(
    name: str,
    attention: Any,
    folder: Callable[[str], Path],
    features: list[Feature],
    prompts: list[Prompt],
) -> None:
    settings = ReplaySettings(
        model=folder(name),
        device="cpu",
        dtype="float32",
        attention=attention,
        batch_tokens=256,
        min_shared_tokens=8,
    )
    engine = compare(folder(name), features, prompts, settings)
    assert engine.loaded.packed
    assert engine.statistics.tokens_shared > 50
    assert engine.statistics.tokens_duplicate > 20
    assert engine.statistics.passes < len(prompts)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_run_as_was_proven(
    name: str, folder: Callable[[str], Path], features: list[Feature], prompts: list[Prompt]
) -> None:
    settings = ReplaySettings(model=folder(name), device="cpu", dtype="float32")
    engine = compare(folder(name), features, prompts, settings)
    way = OTHERS[name][2]
    assert engine.loaded.packing.way == way
    distinct = len(prompts) - 1
    assert (
        engine.statistics.passes == distinct
        if way == "alone"
        else engine.statistics.passes < distinct
    )


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe", "gpt2", "phi3"])
def test_truncated_copy_reads_as_the_full_one(
    name: str, folder: Callable[[str], Path], feature: Callable[..., Feature], prompts: list[Prompt]
) -> None:
    settings = ReplaySettings(model=folder(name), device="cpu", dtype="float32")
    engine = compare(folder(name), [feature(1, site=0), feature(2, site=1)], prompts, settings)
    assert len(engine.loaded.blocks) == 2
    assert engine.loaded.identity.layers == LAYERS
