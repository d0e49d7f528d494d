"""The replay engine against the other ways to read a model's residual stream, on the same prompts.

One process holds one full copy (transformers, nnsight and TransformerLens share it) and the engine's
truncated one. Every way reads the same features at the same site; rounds are interleaved, medians
reported, and each way's readings compared with transformers one by one. The engine's time includes
tokenising, planning and pooling; the other ways are handed finished token ids.

    python -m benchmarks.engine --model FOLDER [--json FILE] [--rounds 3] [--threads 2]

nnsight and TransformerLens take part when they are installed (extra ``benchmarks``).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.regions import Tokens
from monitor.settings import ReplaySettings
from monitor.values.features import Calibration, Feature
from monitor.values.prompts import Message, Prompt, RecordKey
from monitor.values.scores import Replayed

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "kid",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
]
MEDIAN_TOKENS, P95_TOKENS = 120, 600
PEER_BATCH, TUNED_TOKENS = 16, 2_048

Rows = Sequence[Tokens]
Way = Callable[[], np.ndarray]
"""Runs every prompt once and returns readings [n, k]."""


def workload(n: int, system_words: int, generator: np.random.Generator) -> list[Prompt]:
    """``n`` chats whose lengths are log-normal; half of each is the answer."""
    spread = np.log(P95_TOKENS / MEDIAN_TOKENS) / 1.645
    sizes = np.clip(np.exp(generator.normal(np.log(MEDIAN_TOKENS), spread, n)), 8, 1_800).astype(
        int
    )
    system = " ".join(generator.choice(WORDS, system_words))

    def text(words: int) -> str:
        return " ".join(generator.choice(WORDS, max(words, 1)))

    return [
        Prompt(
            key=RecordKey(topic="benchmark", partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=(
                *([Message(role="system", content=system)] if system_words else []),
                Message(role="user", content=text(size // 2)),
            ),
            response=text(size - size // 2),
        )
        for index, size in enumerate(sizes)
    ]


def directions(k: int, width: int, site: int, generator: np.random.Generator) -> list[Feature]:
    weights = generator.normal(size=(k, width)).astype(np.float32)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    flat = Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,))
    return [
        Feature(
            name=f"direction-{index}",
            kind="direction",
            site=site,
            region="all",
            pooling="mean",
            weight=weight,
            calibration=flat,
        )
        for index, weight in enumerate(weights)
    ]


class Peers:
    """The other ways: all read hidden states [batch, tokens, d] and project and pool them alike."""

    def __init__(self, model: Any, tokenizer: Any, rows: Rows, features: list[Feature]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.rows = rows
        self.site = features[0].site
        self.weight = torch.from_numpy(np.stack([f.weight for f in features], axis=1))
        self.pad = tokenizer.pad_token_id or 0
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
        self.one_by_one = [[index] for index in range(len(rows))]
        self.arrival = [
            list(range(start, min(start + PEER_BATCH, len(rows))))
            for start in range(0, len(rows), PEER_BATCH)
        ]
        self.sorted: list[list[int]] = []
        for index in longest_first:
            fits = self.sorted and len(rows[self.sorted[-1][0]].ids) * (len(self.sorted[-1]) + 1)
            if fits and fits <= TUNED_TOKENS:
                self.sorted[-1].append(index)
            else:
                self.sorted.append([index])

    def way(
        self, batches: list[list[int]], states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Way:
        def run() -> np.ndarray:
            readings = np.empty((len(self.rows), self.weight.shape[1]), dtype=np.float32)
            for batch in batches:
                width = max(len(self.rows[index].ids) for index in batch)
                ids = torch.full((len(batch), width), self.pad)
                mask = torch.zeros_like(ids)
                for line, index in enumerate(batch):
                    own = self.rows[index].ids
                    ids[line, : len(own)] = torch.tensor(own)
                    mask[line, : len(own)] = 1
                with torch.no_grad():
                    projected = states(ids, mask) @ self.weight
                for line, index in enumerate(batch):
                    positions = self.rows[index].positions("all", 1)
                    readings[index] = projected[line, positions].mean(dim=0).numpy()
            return readings

        return run

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=None if len(ids) == 1 else mask,
            output_hidden_states=True,
            use_cache=False,
        )
        states: torch.Tensor = output.hidden_states[self.site + 1]
        return states

    def ways(self) -> dict[str, Way]:
        found = {
            "transformers, one by one": self.way(self.one_by_one, self.hidden_states),
            f"transformers, padded batches of {PEER_BATCH}": self.way(
                self.arrival, self.hidden_states
            ),
        }
        for name, states in (("nnsight", self._nnsight()), ("TransformerLens", self._lens())):
            if states is not None:
                found[f"{name}, batches of {PEER_BATCH}"] = self.way(self.arrival, states)
                found[f"{name}, tuned"] = self.way(self.sorted, states)
        return found

    def _nnsight(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if importlib.util.find_spec("nnsight") is None:
            return None
        from nnsight import NNsight

        wrapped = NNsight(self.model)

        def states(ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            # Right padding needs no mask in a causal model, and is faster without.
            with wrapped.trace(input_ids=ids, use_cache=False) as tracer:
                output = wrapped.model.layers[self.site].output.save()
                tracer.stop()
            result: torch.Tensor = output[0] if isinstance(output, tuple) else output
            return result

        return states

    def _lens(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        if importlib.util.find_spec("transformer_lens") is None:
            return None
        from transformer_lens.model_bridge import TransformerBridge

        path = self.model.config._name_or_path
        # A copy of its own: the bridge replaces parts of the model it is given.
        own = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        bridge = TransformerBridge.boot_transformers(
            path, hf_model=own, tokenizer=self.tokenizer, device="cpu"
        )
        name = f"blocks.{self.site}.hook_out"

        def states(ids: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            _, cache = bridge.run_with_cache(
                ids, names_filter=lambda hook: hook == name, stop_at_layer=self.site + 1
            )
            result: torch.Tensor = cache[name]
            return result

        return states


def matmul_seconds(engine: ReplayEngine, tokens: Sequence[int]) -> float:
    """Time of the bare matrix products of the truncated model on rows of these sizes."""
    shapes: dict[tuple[int, int], int] = {}
    for module in engine.loaded.blocks.modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.in_features, module.out_features)
            shapes[shape] = shapes.get(shape, 0) + 1
    total = 0.0
    with torch.inference_mode():
        for (inputs, outputs), count in shapes.items():
            weight = torch.randn(outputs, inputs)
            for size in tokens:
                row = torch.randn(size, inputs)
                torch.nn.functional.linear(row, weight)
                start = time.perf_counter()
                for _ in range(3):
                    torch.nn.functional.linear(row, weight)
                total += (time.perf_counter() - start) / 3 * count
    return total


def measure(options: argparse.Namespace, system_words: int) -> dict[str, Any]:
    """One workload: seconds of each way per round, and how far its readings are from the reference."""
    generator = np.random.default_rng(options.seed)
    settings = ReplaySettings(
        model=options.model,
        device="cpu",
        dtype="float32",
        threads=options.threads,
        batch_tokens=options.batch_tokens,
    )
    loaded = load_model(settings, options.site)
    features = directions(options.features, loaded.config.hidden_size, options.site, generator)
    prompts = workload(options.prompts, system_words, generator)
    engine = ReplayEngine(loaded, features, settings)
    prepared = engine.prepare(prompts)
    rows = [prepared.replays[prepared.replay_of[index]] for index in range(len(prompts))]

    full = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]

    def run_engine() -> np.ndarray:
        outcomes = engine.replay(prompts)
        return np.stack([o.readings for o in outcomes if isinstance(o, Replayed)])

    ways = {"engine": run_engine} | Peers(full, loaded.tokenizer, rows, features).ways()
    if options.ways:
        ways = {n: w for n, w in ways.items() if any(wanted in n for wanted in options.ways)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    readings: dict[str, np.ndarray] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            readings[name] = way()
            seconds[name].append(time.perf_counter() - start)
    reference = readings["transformers, one by one"]
    row_sizes = [
        sum(len(prepared.plan.segments[index].ids) for index in batch)
        for batch in prepared.plan.batches
    ]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "prompts": len(prompts),
        "tokens": sum(len(row.ids) for row in rows),
        "tokens_run_by_engine": prepared.plan.tokens,
        "median_tokens": float(np.median([len(row.ids) for row in rows])),
        "p95_tokens": float(np.quantile([len(row.ids) for row in rows], 0.95)),
        "seconds": seconds,
        "prompts_per_second": {name: len(prompts) / value for name, value in median.items()},
        "engine_times_faster": {name: value / median["engine"] for name, value in median.items()},
        "largest_difference": {n: float(np.abs(r - reference).max()) for n, r in readings.items()},
        "reading_deviation": float(reference.std(axis=0).mean()),
        "share_of_matmul_limit": matmul_seconds(engine, row_sizes) / median["engine"],
    }


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
        table.add_row(
            name,
            f"{rate:.2f}",
            f"{result['engine_times_faster'][name]:.2f}",
            f"{result['largest_difference'][name]:.1e}",
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
    parser.add_argument("--batch-tokens", type=int, default=2_048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", help="only ways whose name contains one of these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_of(options)
        return
    torch.set_num_threads(options.threads)
    if options.ways:
        options.ways += ["engine", "one by one"]
    console = Console()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "own prompts": measure(options, 0),
        "shared system prompt": measure(options, options.system_words),
        "peak_mib": peak_memory(options),
    }
    show(console, "Prompts of their own", results["own prompts"])
    show(console, "A system prompt shared by all", results["shared system prompt"])
    console.print("peak MiB:", results["peak_mib"])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
