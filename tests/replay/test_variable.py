"""A kernel for whole rows: what it is handed, on every packed architecture, and that a wrong one is refused.

The kernel here is the definition in `VariableKernel`, written out, beside a CPU's; torch's own needs a GPU (test_gpu.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from monitor.replay.engine import ReplayEngine
from monitor.replay.fused.blocks import by_blocks
from monitor.replay.model import load_model
from monitor.replay.proving import kernel_proof
from monitor.replay.variable import Layout, VariableKernel, flash, found_kernel, layout_of
from monitor.settings import ReplaySettings
from monitor.values.features import Feature
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed
from tests.replay.architectures import PACKED
from tests.replay.kernels import by_definition


@pytest.fixture
def prompts(
    chat: Callable[..., Prompt], sentences: Callable[[int, int], list[str]], words: list[str]
) -> list[Prompt]:
    """Short and far beyond the tiny window, nested in two shared prefixes, and one with nothing shared."""
    system = ("system", " ".join(words[:16]))
    texts = sentences(6, 40)
    deeper = [chat(system, " ".join(words[8:24]), response=text) for text in texts]
    return [*(chat(system, text, response=texts[0]) for text in texts), *deeper, chat(text="heron")]


@pytest.mark.parametrize("name", PACKED)
def test_whole_rows_read_as_segment_by_segment(
    name: str,
    tiny_model: Callable[[Any], Path],
    feature: Callable[..., Feature],
    prompts: list[Prompt],
) -> None:
    kind, options = PACKED[name]
    settings = ReplaySettings(
        model=tiny_model(getattr(transformers, kind)(**options)),
        device="cpu",
        dtype="float32",
        batch_tokens=128,
        min_shared_tokens=8,
    )
    copy = load_model(settings, 3)
    assert (copy.kernel, copy.attention) == (by_blocks, "packed-blocks")
    loaded = replace(copy, kernel=None)
    called: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        called.append(len(args[3].prefixes))
        return by_definition(*args, **kwargs)

    features = [feature(1, site=1), feature(2, site=3, pooling="max")]
    copies = (loaded, replace(loaded, kernel=counted), copy)
    readings = [
        np.stack([o.readings for o in engine.replay(prompts) if isinstance(o, Replayed)])
        for engine in (ReplayEngine(one, features, settings) for one in copies)
    ]
    assert readings[0].shape == (len(prompts), 2)
    for other in readings[1:]:
        np.testing.assert_allclose(other, readings[0], rtol=0, atol=1e-4)
    if name == "gemma2":
        assert not called  # no such kernel knows a soft cap
    else:
        assert {0, 1} <= set(called)
        assert max(called) > 1  # rows that continue several prefixes, and chains of two


def test_layout_of_chains() -> None:
    layout = layout_of([(2, (4, 7)), (1, (4,)), (3, ())], {4: 2, 7: 1}, torch.device("cpu"))
    assert layout.query_starts.tolist() == [0, 2, 3, 6]
    assert layout.key_starts.tolist() == [0, 5, 8, 11]
    assert (layout.longest_query, layout.longest_key, layout.prefixes) == (3, 5, (4, 7))
    assert layout.gather is not None
    # Kept: 0 and 1 of prefix 4, 2 of prefix 7; the row's own from 3.
    assert layout.gather.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8]


@pytest.mark.parametrize("wrong", ["a key too late", "no prefix", "other scale", "window", "nan"])
def test_wrong_kernel_is_refused(llama_folder: Path, wrong: str) -> None:
    settings = ReplaySettings(model=llama_folder, device="cpu", dtype="float32")
    model = load_model(settings, 2).model

    def kernel(q: Any, k: Any, v: Any, layout: Layout, **options: Any) -> torch.Tensor:
        if wrong == "a key too late":
            return by_definition(q, k, v, layout, **options, late=1)
        if wrong == "no prefix":
            return by_definition(q, k, v, layout, **options | {"window": layout.longest_query})
        if wrong == "other scale":
            return by_definition(q, k, v, layout, **options | {"scaling": 0.5})
        if wrong == "window":
            return by_definition(q, k, v, layout, **options | {"window": 4})
        return by_definition(q, k, v, layout, **options) * torch.nan

    assert kernel_proof(model, by_definition).holds
    assert not kernel_proof(model, kernel).holds


def test_a_copy_whose_blocks_read_otherwise_keeps_the_plain_form(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a thousandth is no rounding."""

    def off(*args: Any, **options: Any) -> torch.Tensor:
        return by_blocks(*args, **options) * 1.001

    monkeypatch.setattr("monitor.replay.model.by_blocks", off)
    settings = ReplaySettings(model=llama_folder, device="cpu", dtype="float32")
    loaded = load_model(settings, 2)
    assert (loaded.kernel, loaded.attention) == (None, "packed-sdpa")


def test_with_many_threads_a_cpu_keeps_torchs_own_kernel(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.replay.model.torch.get_num_threads", lambda: 3)
    loaded = load_model(
        ReplaySettings(model=llama_folder, device="cpu", dtype="float32"), deepest_site=2
    )
    assert (loaded.kernel, loaded.attention) == (None, "packed-sdpa")


def test_kernel_is_only_found_where_one_is() -> None:
    assert found_kernel(torch.device("cpu"), torch.bfloat16) is None
    assert found_kernel(torch.device("cuda"), torch.float32) is None


def test_torch_is_told_the_keys_before_a_querys_own() -> None:
    """A window of w keys, its own among them, is w - 1 before it to torch; the causal rule is 0 behind."""
    told: list[dict[str, Any]] = []

    def varlen(query: torch.Tensor, *_args: Any, **options: Any) -> torch.Tensor:
        told.append(options)
        return query

    kernel: VariableKernel = flash(varlen, {"enable_gqa": True})
    layout = layout_of([(2, ())], {}, torch.device("cpu"))
    query, key = torch.zeros(2, 4, 8), torch.zeros(2, 2, 8)
    kernel(query, key, key, layout, scaling=0.5, window=8)
    kernel(query, query, query, layout, scaling=None, window=None)
    assert told == [
        {"scale": 0.5, "window_size": (7, 0), "enable_gqa": True},
        {"scale": None, "window_size": (-1, 0)},
    ]
