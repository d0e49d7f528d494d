"""What shared prefixes save: kept from chunk to chunk, and by length, in CPU seconds of one thread.

    python -m benchmarks.prefixes --model FOLDER [--dtype float32 bfloat16] [--rounds 3] [--json FILE]

**Chunks**: chats below one system prompt, read in chunks by an engine that keeps prefixes and by one that keeps none, in
turns; the system prompt is known from an earlier chunk that is not counted. **Lengths**: rows of random tokens with a
beginning in common, run apart, with the beginning run once, and with its keys and values at hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.workload import directions, workload
from monitor.replay.engine import ReplayEngine
from monitor.replay.forward import Forward
from monitor.replay.loaded import LoadedModel
from monitor.replay.model import load_model
from monitor.replay.plan import Plan, plan
from monitor.settings import ReplaySettings
from monitor.values.scores import Replayed

SITE: Final = 15
OWN_TOKENS: Final = 60
LENGTHS: Final = (8, 16, 32, 64, 128)
PROMPTS: Final = (2, 8)


def turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each way, the ways one after the other, behind a round that is not counted."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if index:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def of_chunks(loaded: LoadedModel, settings: ReplaySettings, given: Any, size: int) -> Any:
    """``given.chats`` below one system prompt in chunks of ``size``."""
    generator = np.random.default_rng(given.seed)
    prompts = workload(given.chats + size, given.system_words, generator)
    features = directions(32, loaded.config.hidden_size, SITE, generator)
    chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    engines = {
        "kept": ReplayEngine(loaded, features, settings),
        "once a chunk": ReplayEngine(
            loaded, features, settings.model_copy(update={"prefix_cache_mb": 0})
        ),
    }
    read: dict[str, np.ndarray] = {}

    def run(name: str) -> None:
        found = [one for chunk in chunks[1:] for one in engines[name].replay(chunk)]
        read[name] = np.stack([one.readings for one in found if isinstance(one, Replayed)])

    for engine in engines.values():
        engine.replay(chunks[0])
    before = {name: engine.statistics.tokens_run for name, engine in engines.items()}
    seconds = turns({name: partial(run, name) for name in engines}, given.rounds)
    return {
        "chunk": size,
        "chats": given.chats,
        "system_words": given.system_words,
        "seconds": seconds,
        "times_as_fast": seconds["once a chunk"] / seconds["kept"],
        "tokens_run": {
            name: (engine.statistics.tokens_run - before[name]) // (given.rounds + 1)
            for name, engine in engines.items()
        },
        "largest_difference": float(np.abs(read["kept"] - read["once a chunk"]).max()),
        "reading_deviation": float(read["kept"].std(axis=0).mean()),
    }


def of_length(loaded: LoadedModel, given: Any, length: int, prompts: int) -> Any:
    """``prompts`` rows that begin with the same ``length`` tokens and go on with as many of their own each."""
    generator = np.random.default_rng(given.seed)
    drawn = generator.integers(1_000, loaded.config.vocab_size, length + prompts * OWN_TOKENS)
    common, own = tuple(drawn[:length].tolist()), drawn[length:].reshape(prompts, OWN_TOKENS)
    rows = [(*common, *line.tolist()) for line in own]
    apart = plan(rows, batch_tokens=2_048, min_shared_tokens=None)
    shared = plan(rows, batch_tokens=2_048, min_shared_tokens=length)
    first = forward(loaded, shared)
    first.run()
    kept = dict(first.kept)

    def with_kept() -> None:
        one = forward(loaded, shared)
        one.kept |= kept
        one.run()

    seconds = turns(
        {
            "apart": lambda: forward(loaded, apart).run(),
            "once": lambda: forward(loaded, shared).run(),
            "kept": with_kept,
        },
        given.rounds,
    )
    return {
        "length": length,
        "prompts": prompts,
        "seconds": seconds,
        "once_times_as_fast": seconds["apart"] / seconds["once"],
        "kept_times_as_fast": seconds["apart"] / seconds["kept"],
    }


def measured(loaded: LoadedModel, settings: ReplaySettings, given: Any) -> Iterator[Any]:
    """Line by line."""
    for size in given.chunks:
        yield of_chunks(loaded, settings, given, size)
    for prompts in PROMPTS:
        for length in LENGTHS:
            yield of_length(loaded, given, length, prompts)


def forward(loaded: LoadedModel, work: Plan) -> Forward:
    """Of ``work``, read by nobody."""
    return Forward(
        loaded,
        work,
        (SITE,),
        lambda _members, _total: lambda _site, _residual: None,
        lambda _members: None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefixes")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 16], help="chats of a chunk")
    parser.add_argument("--system-words", type=int, default=195)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    results: dict[str, Any] = {"torch": torch.__version__, "threads": 1}
    for dtype in given.dtype:
        settings = ReplaySettings(model=given.model, device="cpu", dtype=dtype, threads=1)
        loaded = load_model(settings, SITE)
        results[dtype] = lines = []
        for line in measured(loaded, settings, given):
            lines.append(line)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            if given.json:
                given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
