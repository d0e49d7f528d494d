"""Prefixes that are kept from chunk to chunk: the same readings, within their memory, and never of another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.metrics import METRICS
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.plan import plan
from monitor.replay.prefixes import Kept, PrefixCache
from monitor.replay.taps import push, steered
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed, Unreplayable
from tests.replay.architectures import PACKED

TOLERANCE = 1e-5
"""Of a reading in float32, over the largest."""
MIB = 1 << 20
Engines = Callable[..., ReplayEngine]


def readings(outcomes: Sequence[Replayed | Unreplayable]) -> np.ndarray:
    assert all(isinstance(o, Replayed) for o in outcomes), outcomes
    return np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])


def same(found: np.ndarray, plain: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, plain, atol=tolerance * np.abs(plain).max())


@pytest.fixture
def features(feature: Callable[..., Feature]) -> list[Feature]:
    return [
        feature(1, site=1, region="all"),
        feature(2, site=2, region="response"),
        feature(3, site=2, region="prompt", pooling="max"),
        feature(4, site=2, region="prompt", pooling="max_rolling_mean", rolling_tokens=4),
        feature(5, site=2, region="last_prompt_token", pooling="last"),
        feature(6, site=1, region="prompt", skip_tokens=3),
    ]


@pytest.fixture
def chunks(chat: Callable[..., Prompt], words: list[str]) -> list[list[Prompt]]:
    """Below one system prompt; then some that go on alike, one alone, and some that leave it half way."""
    system = " ".join(words)

    def below(text: str, *turns: str, ends: int | None = None) -> Prompt:
        asked = [(("user", "assistant")[i % 2], turn) for i, turn in enumerate((text, *turns))]
        said = system if ends is None else " ".join(words[:ends])
        return chat(("system", said), *asked, response=f"a {text} said nothing")

    many = " ".join(words[:20])
    return [
        [below("heron"), below("fish"), below("river")],
        [below(many, "yes", "stones"), below(many, "yes", "path"), below("two")],
        [below(many, "yes", "quiet villages")],
        [below("old", ends=20), below("muddy", ends=20), below("heron")],
        [below("heron"), below("a patient heron"), below(many, "no", "anybody")],
    ]


def engines(folder: Path, features: list[Feature], **changes: Any) -> tuple[ReplayEngine, ...]:
    """One that keeps prefixes, and one that keeps none, of one copy."""
    settings = ReplaySettings(
        model=folder,
        **{"device": "cpu", "dtype": "float32", "max_tokens": 256, "min_shared_tokens": 8}
        | changes,
    )
    loaded = load_model(settings, 2)
    assert loaded.packed
    plain = settings.model_copy(update={"prefix_cache_mb": 0})
    return ReplayEngine(loaded, features, settings), ReplayEngine(loaded, features, plain)


@pytest.mark.parametrize("name", sorted(PACKED))
def test_readings_are_those_without_it_in_every_packed_architecture(
    name: str,
    tiny_model: Callable[[Any], Path],
    features: list[Feature],
    chunks: list[list[Prompt]],
) -> None:
    """Windows of eight tokens among them, soft caps and experts; regions that end inside of a kept prefix."""
    kind, options = PACKED[name]
    folder = tiny_model(getattr(transformers, kind)(**options))
    keeping, plain = engines(folder, features)
    for chunk in chunks:
        same(readings(keeping.replay(chunk)), readings(plain.replay(chunk)))
    assert keeping.statistics.tokens_kept > 0
    assert plain.statistics.tokens_kept == 0
    assert keeping.statistics.tokens_run < plain.statistics.tokens_run


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "granite_swa", "deepseek_v3"])
def test_sinks_chunks_and_compressed_keys_too(
    kind: str,
    tmp_path: Path,
    features: list[Feature],
    chunks: list[list[Prompt]],
) -> None:
    save_tiny(tiny_config(kind), tmp_path)
    keeping, plain = engines(tmp_path, features)
    for chunk in chunks:
        same(readings(keeping.replay(chunk)), readings(plain.replay(chunk)))
    assert keeping.statistics.tokens_kept > 0


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"attention": "eager"}, TOLERANCE), ({"dtype": "bfloat16"}, 3e-2), ({"batch_tokens": 16}, TOLERANCE)],
)  # fmt: skip
def test_in_every_form_of_attention_dtype_and_row(
    changes: dict[str, Any],
    tolerance: float,
    llama_folder: Path,
    features: list[Feature],
    chunks: list[list[Prompt]],
) -> None:
    keeping, plain = engines(llama_folder, features, **changes)
    for chunk in chunks:
        same(readings(keeping.replay(chunk)), readings(plain.replay(chunk)), tolerance)
    assert keeping.statistics.tokens_kept > 0


def test_what_an_earlier_chunk_ran_is_not_run_again(
    llama_folder: Path, features: list[Feature], chunks: list[list[Prompt]]
) -> None:
    keeping, plain = engines(llama_folder, features)
    before = METRICS.prefixes.labels(outcome="found")._value.get()
    for engine in (keeping, plain):
        engine.replay(chunks[0])
    first = keeping.statistics
    assert first == plain.statistics
    for engine in (keeping, plain):
        engine.replay(chunks[2])
    alone = keeping.statistics.tokens_run - first.tokens_run
    whole = plain.statistics.tokens_run - first.tokens_run
    kept = keeping.statistics.tokens_kept
    assert kept > len(chunks[0][0].messages[0].content.split()), "the system prompt"
    assert alone + kept == whole
    assert METRICS.prefixes.labels(outcome="found")._value.get() > before
    assert METRICS.prefix_bytes._value.get() > 0


def test_its_memory_is_bounded_and_the_least_recently_used_goes_first(
    llama_folder: Path, features: list[Feature], chat: Callable[..., Prompt], words: list[str]
) -> None:
    keeping, plain = engines(llama_folder, features)
    cache = keeping._prefixes
    limit = 64 * 1024
    cache._limit = limit

    def chunk(number: int) -> list[Prompt]:
        system = ("system", " ".join(words[number % 8 :][:20] + [words[number % 32]] * 5))
        return [chat(system, text, response="yes") for text in ("a heron", "two fish")]

    always = chunk(0)
    for number in range(1, 30):
        for given_chunk in (chunk(number), always):
            same(readings(keeping.replay(given_chunk)), readings(plain.replay(given_chunk)))
        assert cache.bytes <= limit
        assert cache.bytes == held(cache)
    before = keeping.statistics.tokens_kept
    keeping.replay(always)
    assert keeping.statistics.tokens_kept > before, "what every chunk uses stays"
    cache.relieve()
    assert (cache.bytes, cache._limit) == (0, limit // 2)


def held(cache: PrefixCache) -> int:
    """Bytes of everything that hangs below the root, storages and not views counted."""
    total, pending = 0, list(cache._root.children)
    while pending:
        node = pending.pop()
        pending += node.children
        total += node.bytes
    return total


def test_a_model_that_is_changed_or_steered_is_not_read_from_what_was_kept(
    llama_folder: Path, features: list[Feature], chunks: list[list[Prompt]]
) -> None:
    keeping, plain = engines(llama_folder, features)
    keeping.replay(chunks[0])
    direction = torch.from_numpy(np.random.default_rng(3).normal(size=32))
    with steered(keeping.loaded.blocks, [push(0, direction, 5.0)]):
        same(readings(keeping.replay(chunks[0])), readings(plain.replay(chunks[0])))
    usual = readings(plain.replay(chunks[0]))
    same(readings(keeping.replay(chunks[0])), usual)
    weight = next(keeping.loaded.blocks[0].parameters())
    with torch.no_grad():
        weight.add_(0.3)
    changed = readings(plain.replay(chunks[0]))
    assert np.abs(changed - usual).max() > 1e-3
    same(readings(keeping.replay(chunks[0])), changed)


def test_another_engine_begins_with_nothing(
    llama_folder: Path, features: list[Feature], chunks: list[list[Prompt]]
) -> None:
    keeping, _ = engines(llama_folder, features)
    keeping.replay(chunks[0])
    again = ReplayEngine(keeping.loaded, features, keeping.settings)
    assert again._prefixes.bytes == 0


def test_a_pass_that_does_not_fit_lets_go_of_it(
    llama_folder: Path,
    features: list[Feature],
    chunks: list[list[Prompt]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeping, plain = engines(llama_folder, features)
    keeping.replay(chunks[0])
    whole: Any = keeping.loaded.model.forward
    failures = [torch.OutOfMemoryError("no memory")]

    def short(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return whole(*args, **options)

    monkeypatch.setattr(keeping.loaded.model, "forward", short)
    found = readings(keeping.replay(chunks[1]))
    monkeypatch.undo()
    same(found, readings(plain.replay(chunks[1])))
    assert keeping._prefixes._limit == 128 * MIB


# --- the tree ------------------------------------------------------------------------------------


def made_of(ids: tuple[int, ...]) -> Kept:
    """A token's numbers tell the token and where it stands, as a model's do."""
    told = torch.tensor(
        [[hash(ids[: place + 1]) % 1_000, ids[place]] for place in range(len(ids))]
    ).float()
    keys = told[None, None].clone()
    return Kept({0: (keys, keys.clone())}, told)


@given(
    chunks_of_ids=st.lists(
        st.lists(
            st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
            min_size=1,
            max_size=6,
            unique=True,
        ),
        max_size=8,
    ),
    least=st.integers(1, 4),
    limit=st.integers(0, 2_000),
)
def test_whatever_comes_what_is_kept_is_that_of_the_same_tokens(
    chunks_of_ids: list[list[tuple[int, ...]]], least: int, limit: int
) -> None:
    cache = PrefixCache(limit, torch.nn.ModuleList([torch.nn.Linear(1, 1)]))
    for rows in chunks_of_ids:
        work = plan(rows, batch_tokens=20, min_shared_tokens=least, known=cache.known)
        for row, path in zip(rows, work.paths, strict=True):
            assert work.spelled(path[-1]) == row
        ready = cache.of_plan(work)
        for index, kept in ready.items():
            whole, segment = made_of(work.spelled(index)), work.segments[index]
            stop = segment.first + len(segment.ids)
            expected = whole.part(segment.first, stop)
            assert torch.equal(kept.activations, expected.activations)
            assert torch.equal(kept.blocks[0][1], expected.blocks[0][1])
        made = {
            index: made_of(work.spelled(index)).part(
                segment.first, segment.first + len(segment.ids)
            )
            for index, segment in enumerate(work.segments)
            if segment.shared and index not in ready
        }
        cache.keep(work, made)
        assert cache.bytes == held(cache) <= limit
        for row in rows:
            assert 0 <= cache.known(row) <= len(row)


def test_there_are_never_more_nodes_than_can_be_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("monitor.replay.prefixes.NODES", 3)
    cache = PrefixCache(MIB, torch.nn.ModuleList([torch.nn.Linear(1, 1)]))
    for number in range(6):
        row = (number,) * 4
        work = plan([(*row, 7), (*row, 8)], batch_tokens=64, min_shared_tokens=4)
        cache.keep(work, {0: made_of(row)})
    assert [cache.known((number,) * 4) for number in range(6)] == [0, 0, 0, 4, 4, 4]


def test_a_kept_prefix_ends_a_segment_and_any_beginning_of_it_serves() -> None:
    cache = PrefixCache(MIB, torch.nn.ModuleList([torch.nn.Linear(1, 1)]))
    system = tuple(range(100))

    def chunk(*rows: tuple[int, ...]) -> tuple[Any, dict[int, Kept]]:
        work = plan(rows, batch_tokens=512, min_shared_tokens=32, known=cache.known)
        ready = cache.of_plan(work)
        made = {
            index: made_of(work.spelled(index)).part(one.first, one.first + len(one.ids))
            for index, one in enumerate(work.segments)
            if one.shared and index not in ready
        }
        cache.keep(work, made)
        return work, ready

    _, nothing = chunk((*system, 1), (*system, 2))
    assert nothing == {}
    alone, ready = chunk((*system, 3))
    assert [(one.first, len(one.ids), one.shared) for one in alone.segments] == [
        (0, 100, True),
        (100, 1, False),
    ]
    assert list(ready) == [0]
    longer = (*system, *range(200, 210))
    deeper, ready = chunk((*longer, 1), (*longer, 2))
    assert [(one.first, len(one.ids)) for one in deeper.segments[:2]] == [(0, 100), (100, 10)]
    assert list(ready) == [0]
    _, ready = chunk((*longer, 3), (*longer, 4))
    assert [len(one.activations) for one in ready.values()] == [110]
    _, ready = chunk((*system[:50], 7), (*system[:50], 8))
    assert [len(one.activations) for one in ready.values()] == [50]
