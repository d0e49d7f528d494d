"""A copy on several devices: what stands where, and that nothing meets what stands elsewhere.

No second device is needed. That tensors of two never meet is shown on torch's fake ones, which know where
they are and hold no numbers; that numbers stay what they are, with both halves on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.architectures.prove import LIMIT
from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import ModelError
from monitor.replay import model as loading
from monitor.replay.architectures import proof_prompts
from monitor.replay.engine import ReplayEngine
from monitor.replay.forward import Forward, RowReader
from monitor.replay.loaded import Fused, LoadedModel
from monitor.replay.memory import sizes
from monitor.replay.model import load_model
from monitor.replay.plan import Way, plan
from monitor.replay.pooling import FeatureBank
from monitor.replay.spread import LARGEST_SHARE, shares, spread
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.scores import Replayed

SITE = 3
CPUS = (torch.device("cpu"), torch.device("cpu", 0))
FAKE = tuple(torch.device("cpu", index) for index in (1, 2, 3))


def settings(folder: Path, **changes: Any) -> ReplaySettings:
    given: dict[str, Any] = {"model": folder, "dtype": "float32", "max_tokens": LIMIT}
    return ReplaySettings(**(given | changes))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places of this machine's one, for whoever asks for all."""
    monkeypatch.setattr(loading, "devices", lambda given: CPUS if given.device_map else ())
    monkeypatch.setattr(loading, "free_bytes", lambda place: 1 << (17 if place.index == 0 else 19))


@given(
    blocks=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    rest=st.integers(0, 80),
    free=st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
def test_the_fullest_device_is_as_empty_as_any_split_leaves_it(
    blocks: list[int], rest: int, free: list[int]
) -> None:
    def fullest(counts: Sequence[int]) -> float:
        used, start = [rest] + [0] * (len(free) - 1), 0
        for place, count in enumerate(counts):
            used[place] += sum(blocks[start : start + count])
            start += count
        return max(bytes_ / room for bytes_, room in zip(used, free, strict=True))

    def splits(left: int, places: int) -> list[tuple[int, ...]]:
        if places == 1:
            return [(left,)]
        return [(n, *more) for n in range(left + 1) for more in splits(left - n, places - 1)]

    best = min(map(fullest, splits(len(blocks), len(free))))
    counts = shares(blocks, rest, free)
    if best > LARGEST_SHARE:
        assert counts == []
    else:
        assert sum(counts) == len(blocks)
        assert fullest(counts) == pytest.approx(best)


@pytest.mark.usefixtures("two")
def test_a_spread_copy_reads_and_answers_what_one_on_one_device_does(
    llama_folder: Path, feature: Callable[..., Feature], chat: Callable[..., Any]
) -> None:
    features = [feature(0, site=0), feature(1, site=2), feature(2, site=3)]
    prompts = [chat("one two three"), chat("one two four five", response="six seven")]
    found = []
    for options in ({"device": "cpu"}, {"device_map": "auto"}):
        given = settings(llama_folder, mode="generate", generate_tokens=4, **options)
        loaded = load_model(given, SITE, full=True)
        engine = ReplayEngine(loaded, features, given)
        outcomes = engine.run(engine.prepare(prompts, own_answers=[0]))
        found.append([one.readings for one in outcomes if isinstance(one, Replayed)])
        assert engine.lineage("p").device == "cpu"
    assert set(loaded.places) == set(CPUS)
    assert len(found[0]) == len(prompts)
    np.testing.assert_array_equal(found[0], found[1])


def kernel(query: Any, key: Any, value: Any, layout: Any, **_options: Any) -> torch.Tensor:
    """In the place of a GPU's: asks that everything it gets is on one device."""
    places = {one.device for one in (query, key, value, layout.query_starts, layout.key_starts)}
    assert places == {query.device}
    return query * value.mean()


@pytest.mark.parametrize(
    ("kind", "at_once"),
    [
        ("llama", True),
        *((kind, False) for kind in ("llama", "gemma3_text", "gpt_oss", "qwen3_moe")),
        *((kind, False) for kind in ("bloom", "falcon_h1", "gemma4_text", "lfm2", "qwen3_next")),
    ],
)
def test_tensors_of_two_devices_never_meet(
    kind: str,
    at_once: bool,
    tmp_path: Path,
    feature: Callable[..., Feature],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_tiny(tiny_config(kind), tmp_path)
    loaded = load_model(settings(tmp_path, device="cpu"), SITE)
    prompts = proof_prompts(loaded, LIMIT)
    # Of the others the shapes depend on numbers, or they have no fake in float32.
    loaded.model.set_experts_implementation("batched_mm")
    made = torch.tensor

    def tensor(data: Any, device: torch.device = CPUS[0], **options: Any) -> torch.Tensor:
        return made(data, **options).to(device)

    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        # What is made of numbers is no fake one before it is moved, and real ones know one CPU.
        monkeypatch.setattr(torch, "tensor", tensor)
        monkeypatch.setattr(torch, "from_numpy", lambda array: made(array.tolist()))
        for module in loaded.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fakes.from_tensor(buffer))
        taken = sizes(loaded.model)
        block = max(taken.blocks)
        free = [2 * (taken.rest + block), 2 * block, 4 * block]
        places = spread(loaded.model, FAKE, free, full=False)
        assert [places.count(place) for place in FAKE] == [1, 1, 2]
        changes = {"device": FAKE[0], "places": places, "fused": Fused()}
        there = replace(loaded, kernel=kernel if at_once else None, **changes)
        seen = read(there, prompts, feature)
    assert seen == {site: there.place(site) for site in (0, 2, SITE)}
    assert len(set(seen.values())) == 2


def read(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], feature: Callable[..., Feature]
) -> dict[int, torch.device]:
    """Read features at three sites, and where the residuals of each stood."""
    sites = (0, 2, SITE)
    width = loaded.config.hidden_size
    features = [
        feature(site, site=site, width=width, largest_norm=limit)
        for site in sites
        for limit in (None, 5.0)
    ]
    bank = FeatureBank(features, width, loaded.device, loaded.place)
    seen: dict[int, torch.device] = {}

    parts: dict[torch.device, torch.Tensor] = {}

    def start_row(_members: tuple[int, ...], total: int) -> RowReader:
        parts.clear()

        def reader(site: int, residual: torch.Tensor) -> None:
            seen[site] = residual.device
            empty = torch.empty(total, len(features), device=residual.device)
            bank.project(site, residual, parts.setdefault(residual.device, empty))

        return reader

    shared = 8 if loaded.packed else None
    # Which places of a batch are filled up depends on numbers, too.
    way: Way = "packed" if loaded.packed else "alone"
    work = plan(prompts, batch_tokens=64, min_shared_tokens=shared, way=way)
    with Moves() as moves:
        Forward(loaded, work, sites, start_row, lambda _members: None).run()
    assert {one for one in moves.seen if one[0] != one[1]} >= set(pairwise(FAKE))
    assert all(FAKE.index(one) <= FAKE.index(other) for one, other in moves.seen), "nothing back"
    copied = [(id(one), place) for one, place in moves.copied]
    assert len(copied) == len(set(copied)), "what every block is given is copied once"
    assert bank.gathered(parts).device == loaded.device
    return seen


class Moves(TorchDispatchMode):
    """From which fake device to which other tensors were copied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.device, torch.device]] = set()
        self.copied: list[tuple[torch.Tensor, torch.device]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [one.device for one in args if isinstance(one, torch.Tensor)]
        if isinstance(found, torch.Tensor):
            self.copied += [
                (one, found.device)
                for one in args
                if isinstance(one, torch.Tensor) and one.device != found.device
            ]
            self.seen |= {(one, found.device) for one in given if {one, found.device} <= set(FAKE)}
        return found


@pytest.mark.usefixtures("two")
def test_what_fits_no_device_is_refused_in_numbers(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda _place: 20_000)
    with pytest.raises(ModelError, match=r"take 0\.0 GiB, and its devices have 0\.0 \+ 0\.0 GiB"):
        load_model(settings(llama_folder, device_map="auto"), SITE)


def test_blocks_that_share_weights_are_not_spread(llama_folder: Path) -> None:
    loaded = load_model(settings(llama_folder, device="cpu"), SITE)
    loaded.blocks[3].mlp = loaded.blocks[0].mlp
    with pytest.raises(ModelError, match="blocks of llama share weights"):
        spread(loaded.model, CPUS, [1 << 20] * 2, full=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": "cpu"}, "replay.device names cpu"),
        ({"backend": "vllm", "url": "http://r:1"}, "--tensor-parallel-size"),
    ],
)
def test_settings_that_contradict_it_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ReplaySettings(device_map="auto", **changes)
