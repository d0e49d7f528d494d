"""The replay engine against the other ways to read a model's residual stream, on the same prompts.

One process holds one full copy (transformers, nnsight and TransformerLens share it) and the engine's
truncated one. Every way reads the same features at the same site; rounds are interleaved, medians
reported, and each way's readings compared with transformers one by one. The engine's time includes
tokenising, planning and pooling; the other ways are handed finished token ids.

    python -m benchmarks.engine --model FOLDER [--json FILE] [--rounds 3] [--threads 2]
    python -m benchmarks.engine --model FOLDER --device cuda --dtype float32 bfloat16
    python -m benchmarks.engine --model FOLDER --device cuda --dtype bfloat16 --shape 8b  # see shape.py
    python -m benchmarks.engine --model FOLDER --peers vllm --vllm .venv-vllm  # see vllm_peer.py

nnsight and TransformerLens take part when they are installed (extra ``benchmarks``).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.peers import Peers
from benchmarks.shape import DTYPES, SHAPES, run_shape
from benchmarks.vllm_peer import MODES, PeerWay, vllm_ways
from benchmarks.workload import directions, workload
from monitor.replay.cost import product_seconds, product_shapes, waited
from monitor.replay.engine import ReplayEngine
from monitor.replay.loaded import Fused
from monitor.replay.model import load_model
from monitor.replay.prepared import Prepared
from monitor.replay.regions import Tokens
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed

Ways = Mapping[str, Callable[[], np.ndarray]]


def matmul_seconds(
    engine: ReplayEngine, tokens: Sequence[int], clock: Callable[[], float]
) -> float:
    """Time of the bare matrix products of the truncated model on rows of these sizes."""
    loaded = engine.loaded
    return sum(
        count * product_seconds(shape, size, loaded.device, loaded.dtype, clock)
        for shape, count in product_shapes(engine.blocks).items()
        for size in tokens
    )


def measure(options: argparse.Namespace, system_words: int, dtype: Any) -> dict[str, Any]:
    """One workload: seconds of each way per round, and how far its readings are from the reference.

    Where the copy has a kernel for whole rows, or faster pieces, the engine without them is a way of its own.
    """
    generator = np.random.default_rng(options.seed)
    settings = ReplaySettings(
        model=options.model,
        device=options.device,
        dtype=dtype,
        threads=options.threads,
        batch_tokens=options.batch_tokens,
    )
    loaded = load_model(settings, options.site)
    features = directions(options.features, loaded.config.hidden_size, options.site, generator)
    prompts = workload(options.prompts, system_words, generator)
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(prompts)
    rows = [prepared.replays[prepared.replay_of[index]] for index in range(len(prompts))]

    full: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPES[dtype])
    full = full.to(loaded.device).eval()
    ways: dict[str, Callable[[], np.ndarray]] = {"engine": readings_of(engine, prompts)}
    if loaded.kernel is not None:
        plain = ReplayEngine(replace(loaded, kernel=None), features, settings)
        ways["engine, segment by segment"] = readings_of(plain, prompts)
    if loaded.fused.places:
        stock = ReplayEngine(replace(loaded, fused=Fused()), features, settings)
        ways["engine, stock modules"] = readings_of(stock, prompts)
    ways |= Peers(full, loaded.tokenizer, rows, features).ways()
    with ExitStack() as peers:
        if "vllm" in options.peers:
            python = options.vllm / "bin" / "python"
            given = (python, options.model, dtype, options.threads, rows, features)
            modes = [mode for mode, told in MODES.items() if wanted(options, told)]
            ways |= peers.enter_context(vllm_ways(*given, modes))
        seconds, readings = timed(options, ways, loaded.device)
    clock = clock_of(options, loaded.device)
    return figures(engine, prepared, rows, seconds, readings, clock)


def wanted(options: argparse.Namespace, name: str) -> bool:
    """Whether ``--ways`` asks for the way of this name."""
    return not options.ways or any(part in name for part in options.ways)


def clock_of(
    options: argparse.Namespace, device: torch.device, way: Callable[[], np.ndarray] | None = None
) -> Callable[[], float]:
    """Seconds that passed, or with ``--cpu-time`` those that this process computed, or the one that ``way`` runs in."""
    if not options.cpu_time:
        return partial(waited, device)
    return way.cpu_seconds if isinstance(way, PeerWay) else time.process_time


def timed(
    options: argparse.Namespace, ways: Ways, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Seconds of each way in each round, the ways one after the other, and what they read."""
    ways = {name: way for name, way in ways.items() if wanted(options, name)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    readings: dict[str, np.ndarray] = {}
    for index in range(options.rounds + options.warm_rounds):
        for name, way in ways.items():
            clock = clock_of(options, device, way)
            start = clock()
            readings[name] = way()
            if index >= options.warm_rounds:
                seconds[name].append(clock() - start)
    return seconds, readings


def figures(
    engine: ReplayEngine,
    prepared: Prepared,
    rows: Sequence[Tokens],
    seconds: dict[str, list[float]],
    readings: dict[str, np.ndarray],
    clock: Callable[[], float],
) -> dict[str, Any]:
    reference = readings["transformers, one by one"]
    row_sizes = [
        sum(len(prepared.plan.segments[index].ids) for index in batch)
        for batch in prepared.plan.batches
    ]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "prompts": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "tokens_run_by_engine": prepared.plan.tokens,
        "median_tokens": float(np.median([len(row.ids) for row in rows])),
        "p95_tokens": float(np.quantile([len(row.ids) for row in rows], 0.95)),
        "seconds": seconds,
        "prompts_per_second": {name: len(rows) / value for name, value in median.items()},
        "engine_times_faster": {name: value / median["engine"] for name, value in median.items()},
        "largest_difference": {
            name: float(np.abs(read - reference).max())
            for name, read in readings.items()
            if not np.isnan(read).any()  # as of a way that reads nothing
        },
        "reading_deviation": float(reference.std(axis=0).mean()),
        "share_of_matmul_limit": matmul_seconds(engine, row_sizes, clock) / median["engine"],
    }


def readings_of(engine: ReplayEngine, prompts: Sequence[Prompt]) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        outcomes = engine.replay(prompts)
        return np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])

    return run


def peak_memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak resident MiB of fresh processes: nothing loaded, the engine, the full model one by one."""
    peaks = {}
    for what in ("nothing", "engine", "full model"):
        command = [sys.executable, "-m", "benchmarks.engine", "--model", str(options.model)]
        command += ["--site", str(options.site), "--features", str(options.features)]
        command += ["--threads", str(options.threads), "--prompts", str(min(options.prompts, 16))]
        done = subprocess.run(
            [*command, "--peak-of", what], capture_output=True, text=True, check=True
        )
        peaks[what] = float(done.stdout.splitlines()[-1])
    return peaks


def peak_of(options: argparse.Namespace) -> None:
    """What the process of `peak_memory` does; prints its own peak."""
    generator = np.random.default_rng(options.seed)
    settings = ReplaySettings(
        model=options.model, device="cpu", dtype="float32", threads=options.threads
    )
    prompts = workload(options.prompts, 0, generator)
    if options.peak_of == "engine":
        loaded = load_model(settings, options.site)
        features = directions(options.features, loaded.config.hidden_size, options.site, generator)
        ReplayEngine(loaded, features, settings).replay(prompts)
    elif options.peak_of == "full model":
        torch.set_num_threads(options.threads)
        full = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        sizes = [sum(len(m.content.split()) for m in p.messages) * 2 + 20 for p in prompts]
        with torch.no_grad():
            for size in sizes:
                full(torch.ones(1, size, dtype=torch.long), output_hidden_states=True)
    # ru_maxrss survives exec and would report the parent's size; VmHWM begins anew.
    status = Path("/proc/self/status").read_text()
    print(next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1024)


def show(console: Console, title: str, result: dict[str, Any]) -> None:
    table = Table(title=title)
    for heading in ("way", "prompts/s", "engine is × faster", "largest difference"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, rate in result["prompts_per_second"].items():
        difference = result["largest_difference"].get(name)
        table.add_row(
            name,
            f"{rate:.2f}",
            f"{result['engine_times_faster'][name]:.2f}",
            "nothing read" if difference is None else f"{difference:.1e}",
        )
    console.print(table)
    console.print(
        f"{result['tokens']} tokens (median {result['median_tokens']:.0f}, "
        f"p95 {result['p95_tokens']:.0f}), {result['tokens_run_by_engine']} run by the engine; "
        f"{result['share_of_matmul_limit']:.2f} of the matmul limit; "
        f"readings deviate by {result['reading_deviation']:.2f} between prompts\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--site", type=int, default=15)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--system-words", type=int, default=195, help="about as many tokens")
    parser.add_argument("--batch-tokens", type=int, help="default: what suits the device")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-rounds", type=int, default=0, help="before what is counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count what a way's processes compute: for one thread on a machine that others use",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), default=["float32"])
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[8_192, 16_384], help="tokens per row, of --shape"
    )
    parser.add_argument("--ways", nargs="*", help="only ways whose name contains one of these")
    parser.add_argument("--peers", nargs="*", choices=("vllm",), default=[])
    parser.add_argument(
        "--vllm", type=Path, default=Path(".venv-vllm"), help="environment of `make test-vllm`"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_of(options)
        return
    torch.set_num_threads(options.threads)
    if options.ways:
        options.ways += ["engine", "one by one"]
    if not run_all(options):
        sys.exit(1)


def run_all(options: argparse.Namespace) -> bool:
    """Every part, each saved as soon as it is there; one that fails is told, and the next one run."""
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    results: dict[str, Any] = {
        "machine": f"{where}, {options.threads} threads, torch {torch.__version__}"
    }

    def save(name: str, part: object) -> None:
        results[name] = part
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    console = Console()

    def workload_part(name: str, words: int, dtype: Any) -> Callable[[], None]:
        def run() -> None:
            result = measure(options, words, dtype)
            save(f"{name}, {dtype}", result)
            show(console, f"{name}, {dtype}", result)

        return run

    parts: list[Callable[[], None]] = []
    if options.shape:
        parts.append(lambda: run_shape(options, save))
    else:
        for dtype in options.dtype:
            parts.append(workload_part("own prompts", 0, dtype))
            parts.append(workload_part("shared system prompt", options.system_words, dtype))
        if options.device == "cpu":
            parts.append(lambda: save("peak_mib", peak_memory(options)))
    failed = 0
    for part in parts:
        try:
            part()
        except Exception:
            failed += 1
            traceback.print_exc()
    if "peak_mib" in results:
        console.print("peak MiB:", results["peak_mib"])
    return not failed


if __name__ == "__main__":
    main()
