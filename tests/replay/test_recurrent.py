"""Parts that carry a state, beside packed attention: every token once, behind its own prompt's tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.replay.batches import CPU_PLACES, batches_of
from monitor.replay.engine import ReplayEngine
from monitor.replay.loaded import LoadedModel, Packing
from monitor.replay.model import load_model
from monitor.replay.recurrent import recurrent_places
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed

SITE = 2
CPU = torch.device("cpu")


@given(
    prefixes=st.lists(st.integers(1, 90), max_size=3),
    segments=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=20),
)
def test_each_token_is_read_once_behind_its_own_prompt(
    prefixes: list[int], segments: list[tuple[int, int]]
) -> None:
    """A prefix continues the one before it, as in a chain; its tokens are named by where they stand."""
    row = [(tokens, tuple(range(min(depth, len(prefixes))))) for tokens, depth in segments]
    known = {prefix: prefixes[prefix] for _, chain in row for prefix in chain}
    found = batches_of(row, known, CPU)
    kept = [(prefix, place) for prefix in found.prefixes for place in range(known[prefix])]
    names = [*kept, *(("row", i) for i in range(sum(tokens for tokens, _ in row)))]
    starts = np.cumsum([0, *(tokens for tokens, _ in row)])
    read: dict[int, int] = {}
    for batch in found.batches:
        lines, longest = batch.taken.shape
        assert lines == 1 or lines * longest <= max(CPU_PLACES, longest)
        for own, into in zip(batch.own.tolist(), batch.into.tolist(), strict=True):
            read[into] = read.get(into, 0) + 1
            segment = int(np.searchsorted(starts, into, side="right")) - 1
            line, place = divmod(own, longest)
            before = [names[one] for one in batch.taken[line, : place + 1].tolist()]
            prompt = [(one, at) for one in row[segment][1] for at in range(known[one])]
            own_tokens = [("row", at) for at in range(starts[segment], into + 1)]
            assert before == [*prompt, *own_tokens]
    assert read == dict.fromkeys(range(int(starts[-1])), 1)


def test_short_prompts_are_read_together_and_long_ones_alone() -> None:
    found = batches_of([(200, ()), (20, ()), (18, ()), (19, ()), (66, ())], {}, CPU)
    assert [tuple(batch.taken.shape) for batch in found.batches] == [(1, 200), (1, 66), (3, 20)]


@pytest.fixture(scope="module", params=["qwen3_next", "lfm2", "falcon_h1", "minimax"])
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Linear attention; convolutions; a state beside attention in one block; one that gives more than its stream."""
    folder = tmp_path_factory.mktemp("hybrid")
    save_tiny(tiny_config(request.param), folder)
    settings = ReplaySettings(
        model=folder, device="cpu", dtype="float32", max_tokens=256, min_shared_tokens=4
    )
    return load_model(settings, SITE), settings


@pytest.fixture
def features(feature: Callable[..., Feature]) -> list[Feature]:
    return [feature(1, site=1), feature(2, site=2, pooling="max"), feature(3, site=SITE)]


@pytest.fixture
def chunks(chat: Callable[..., Prompt], words: list[str]) -> list[list[Prompt]]:
    """Prompts below one system prompt, some of which go on alike: prefixes behind prefixes, and again in a second chunk."""
    system, further = ("system", " ".join(words)), " ".join(words[5:20])
    return [
        [chat(system, f"{further} {words[i]} {words[-1 - i]}", response=words[i]) for i in range(3)]
        + [chat(system, " ".join(words[i : i + 9])) for i in range(2)]
        + [chat(" ".join(words[: 3 + start]))]
        for start in range(2)
    ]


def readings(engine: ReplayEngine, prompts: list[Prompt]) -> np.ndarray:
    outcomes = engine.replay(prompts)
    assert all(isinstance(one, Replayed) for one in outcomes)
    return np.stack([one.readings for one in outcomes if isinstance(one, Replayed)])


def alone(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, packing=Packing(ground="excluded"), attention="sdpa")


def test_prefixes_are_shared_within_a_chunk_and_across(
    hybrid: tuple[LoadedModel, ReplaySettings],
    features: list[Feature],
    chunks: list[list[Prompt]],
) -> None:
    loaded, settings = hybrid
    engine = ReplayEngine(loaded, features, settings)
    found = [readings(engine, chunk) for chunk in chunks]
    deepest = max(len(one.chain) for one in engine.prepare(chunks[0]).plan.segments)
    assert deepest >= 2
    assert engine.statistics.tokens_kept > 0
    packed = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    try:
        one_by_one = ReplayEngine(alone(loaded), features, settings)
        expected = [readings(one_by_one, chunk) for chunk in chunks]
    finally:
        loaded.model.set_attn_implementation(packed)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_outside_of_a_replay_the_model_is_as_it_was(
    hybrid: tuple[LoadedModel, ReplaySettings], features: list[Feature], chunks: list[list[Prompt]]
) -> None:
    loaded, settings = hybrid
    before = [type(one) for one in loaded.model.modules()]
    ReplayEngine(loaded, features, settings).replay(chunks[0])
    assert [type(one) for one in loaded.model.modules()] == before
    assert {place.plain for place in loaded.recurrent} <= set(loaded.model.modules())


def test_attention_carries_no_state(tmp_path: Path) -> None:
    save_tiny(tiny_config("llama"), tmp_path)
    settings = ReplaySettings(model=tmp_path, device="cpu", dtype="float32", max_tokens=256)
    loaded = load_model(settings, SITE)
    assert recurrent_places(loaded.blocks) == loaded.recurrent == ()
