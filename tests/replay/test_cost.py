"""The operations of a replay by formula, beside those that torch counts while the plain modules run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.replay.cost import flops, product_rate, weights_passed
from monitor.replay.forward import Forward
from monitor.replay.loaded import Fused, LoadedModel
from monitor.replay.model import load_model
from monitor.replay.plan import Plan, plan
from monitor.settings import ReplaySettings

LENGTHS = (20, 32)


def loaded(folder: Path, kind: str) -> LoadedModel:
    """A tiny copy whose products torch can count: plain modules, one expert after the other, open attention."""
    save_tiny(tiny_config(kind), folder)
    settings = ReplaySettings(
        model=folder, device="cpu", dtype="float32", max_tokens=256, attention="eager"
    )
    copy: Any = load_model(settings, 2)
    if hasattr(copy.model, "set_experts_implementation"):
        copy.model.set_experts_implementation("eager")
    return replace(copy, fused=Fused())


def counted(copy: LoadedModel, work: Plan) -> float:
    with FlopCounterMode(display=False) as counter:
        forward = Forward(
            copy, work, (2,), lambda _members, _total: lambda _site, _residual: None, lambda _: None
        )
        forward.run()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "phi3"],
)
def test_the_formula_counts_what_is_computed(kind: str, tmp_path: Path) -> None:
    """But for the half of attention that causality forbids, which the open form computes, too."""
    copy = loaded(tmp_path, kind)
    rows = [tuple(range(length)) for length in LENGTHS]
    work = plan(rows, batch_tokens=512, min_shared_tokens=None)
    made = flops(copy.blocks, copy.config, work)
    allowed = sum(n * (n + 1) // 2 for n in LENGTHS)
    square = sum(n * n for n in LENGTHS)
    assert made.linear + made.attention * square / allowed == counted(copy, work)
    assert made.total == made.linear + made.attention


def test_a_shared_prefix_is_counted_once_and_seen_by_all(tmp_path: Path) -> None:
    copy = loaded(tmp_path, "llama")
    prefix = tuple(range(100, 116))
    rows = [(*prefix, 1, 2), (*prefix, 3)]
    apart = flops(copy.blocks, copy.config, plan(rows, batch_tokens=64, min_shared_tokens=None))
    shared = flops(copy.blocks, copy.config, plan(rows, batch_tokens=64, min_shared_tokens=8))
    assert shared.linear / apart.linear == (16 + 2 + 1) / (18 + 17)
    pairs = {"apart": 18 * 19 / 2 + 17 * 18 / 2, "shared": 16 * 17 / 2 + (17 + 18) + 17}
    assert shared.attention / apart.attention == pytest.approx(pairs["shared"] / pairs["apart"])


def test_a_token_passes_the_experts_that_it_is_sent_to(tmp_path: Path) -> None:
    copy = loaded(tmp_path, "mixtral")
    held = sum(w.numel() for w in copy.blocks.parameters() if w.ndim > 1)
    experts = sum(w.numel() for w in copy.blocks.parameters() if w.ndim == 3)
    chosen = copy.config.num_experts_per_tok / copy.config.num_local_experts
    assert chosen < 1
    assert weights_passed(copy.blocks, copy.config) == held - experts * (1 - chosen)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_products_are_timed_whatever_the_linear_layers_are_called(
    kind: str, tmp_path: Path
) -> None:
    copy = loaded(tmp_path, kind)
    rate = product_rate(copy.blocks, torch.device("cpu"), torch.float32)
    assert math.isfinite(rate)
    assert rate > 0.0
