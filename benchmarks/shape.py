"""The engine on a model of a large shape with random weights, made on the device itself.

What a GPU reaches does not depend on what the weights say, so no checkpoint is needed: an 8B-shaped
llama is drawn on the device, cut behind the site as a loaded copy would be, and packed rows of the
usual chats run through it. Reported beside the card's own peak in matrix products, measured in the
same run. FLOPs are counted by the formula of `monitor.replay.cost`.

    python -m benchmarks.engine --model FOLDER --shape 8b --device cuda --dtype bfloat16

FOLDER gives the tokenizer and template alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig

from benchmarks.workload import directions, workload
from monitor.replay.attention import PACKED
from monitor.replay.cost import flops, waited
from monitor.replay.engine import ReplayEngine
from monitor.replay.loaded import LoadedModel, Packing
from monitor.replay.model import proven_kernel
from monitor.replay.plan import Plan
from monitor.settings import ReplaySettings
from monitor.values.identity import ModelIdentity
from monitor.values.prompts import Prompt

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    # Small enough to try the command on a CPU.
    "small": {
        "vocab_size": 50_000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
PEAK_SIDE = {"cuda": 8_192, "cpu": 1_024}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten square matrix products (8,192 wide on a GPU)."""
    side = PEAK_SIDE[device.type]
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(3):
        left @ right
    best = float("inf")
    for _ in range(10):
        start = waited(device)
        left @ right
        best = min(best, waited(device) - start)
    return 2 * side**3 / best


def drawn_copy(options: argparse.Namespace, dtype: str) -> LoadedModel:
    """A copy of the shape, cut behind the site, its weights drawn on the device."""
    device = torch.device(options.device)
    shape = SHAPES[options.shape] | {"max_position_embeddings": 8_192}
    config = LlamaConfig(**shape)
    cut = LlamaConfig(**shape | {"num_hidden_layers": options.site + 1})
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    torch.manual_seed(options.seed)
    kind: Any = AutoModel
    with torch.device(device):
        stack = kind.from_config(cut, dtype=DTYPES[dtype], attn_implementation=PACKED)
    stack.eval().requires_grad_(False)
    kernel = proven_kernel(stack, device, DTYPES[dtype])
    print("kernel for whole rows:", "proven" if kernel else "none", flush=True)
    return LoadedModel(
        model=stack,
        answerer=None,
        tokenizer=tokenizer,
        config=config,
        device=device,
        dtype=DTYPES[dtype],
        packing=Packing(ground="tested"),
        attention="packed-varlen" if kernel else "packed-sdpa",
        identity=ModelIdentity(
            model_id=f"random-{options.shape}",
            architecture="llama",
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            vocab_size=config.vocab_size,
            weights_hash="0" * 64,
            tokenizer_hash="0" * 64,
            template_hash="0" * 64,
        ),
        kernel=kernel,
    )


def timed(
    ways: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each way over interleaved rounds, behind one that is not counted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(rounds + 1):
        for name, way in ways.items():
            start = waited(device)
            way()
            if index:
                seconds[name].append(waited(device) - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure_shape(options: argparse.Namespace, loaded: LoadedModel, words: int) -> dict[str, Any]:
    """One workload: every budget of row tokens, with and without the variable-length kernel."""
    generator = np.random.default_rng(options.seed)
    features = directions(options.features, loaded.config.hidden_size, options.site, generator)
    prompts = workload(options.prompts, words, generator)
    forms = {"segment by segment": replace(loaded, kernel=None)}
    if loaded.kernel is not None:
        forms["variable length"] = loaded
    ways: dict[str, Callable[[], object]] = {}
    plans: dict[str, Plan] = {}
    for form, copy in forms.items():
        for budget in options.budgets:
            settings = ReplaySettings(
                model=options.model, device=options.device, batch_tokens=budget
            )
            engine = ReplayEngine(copy, features, settings)
            prepared = engine.prepare(prompts)
            name = f"{form}, rows of {budget}"
            plans[name] = prepared.plan
            ways[name] = partial(engine.run, prepared)
        # Beside the model alone: tokenised and planned anew in the same thread.
        ways[f"{name}, with tokenising"] = partial(engine.replay, prompts)
        plans[f"{name}, with tokenising"] = prepared.plan
    seconds = timed(ways, options.rounds, loaded.device)
    peak = product_peak(loaded.device, loaded.dtype)
    return {
        "prompts": len(prompts),
        "peak_tflops": peak / 1e12,
        "ways": {name: line(loaded, plans[name], prompts, seconds[name], peak) for name in ways},
    }


def line(
    loaded: LoadedModel, work: Plan, prompts: Sequence[Prompt], seconds: float, peak: float
) -> dict[str, float]:
    count = flops(loaded.blocks, loaded.config, work)
    rate = count.total / seconds
    return {
        "seconds": seconds,
        "prompts_per_second": len(prompts) / seconds,
        "tokens_per_second": work.tokens / seconds,
        "tflops": rate / 1e12,
        "share_of_peak": rate / peak,
        "attention_share_of_flops": count.attention / count.total,
    }


def profile(options: argparse.Namespace, loaded: LoadedModel) -> dict[str, Any]:
    """Where one run's device time goes, by kernel; CPU operators where there is no GPU."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    generator = np.random.default_rng(options.seed)
    features = directions(options.features, loaded.config.hidden_size, options.site, generator)
    settings = ReplaySettings(
        model=options.model, device=options.device, batch_tokens=options.budgets[-1]
    )
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(workload(min(options.prompts, 128), 0, generator))
    engine.run(prepared)
    cuda = loaded.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    start = waited(loaded.device)
    with profiled(activities=activities) as prof:
        engine.run(prepared)
        seconds = waited(loaded.device) - start
    # An operator is listed beside the kernels that it started: count the kernels alone.
    events = [
        event for event in prof.key_averages() if not cuda or event.device_type.name == "CUDA"
    ]
    spent = {
        event.key[:120]: (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        for event in events
    }
    top = sorted(spent.items(), key=lambda pair: -pair[1])[:25]
    return {
        "seconds": seconds,
        "tokens": prepared.plan.tokens,
        "busy_seconds": sum(spent.values()),
        "seconds_by_kernel": dict(top),
    }


def run_shape(options: argparse.Namespace, save: Callable[[str, object], None]) -> None:
    """All of it, for `benchmarks.engine`; ``save`` takes each part as soon as it is there."""
    for dtype in options.dtype:
        loaded = drawn_copy(options, dtype)
        for title, words in (("own prompts", 0), ("shared system prompt", options.system_words)):
            result = measure_shape(options, loaded, words)
            save(f"{options.shape} {dtype}, {title}", result)
            print(f"{options.shape}, {dtype}, {title}: peak {result['peak_tflops']:.0f} TFLOP/s")
            for name, one in result["ways"].items():
                print(
                    f"  {name}: {one['prompts_per_second']:.1f} prompts/s, "
                    f"{one['tokens_per_second']:.0f} tokens/s, {one['tflops']:.1f} TFLOP/s, "
                    f"{one['share_of_peak']:.3f} of the peak",
                    flush=True,
                )
        save(f"{options.shape} {dtype}, profile", profile(options, loaded))
