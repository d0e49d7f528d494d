"""What each of a CPU's faster pieces gives: the engine without it, over the engine.

    python -m benchmarks.pieces --model FOLDER --json benchmarks/results/pieces.json

Prompts of their own, CPU seconds of one thread, the ways in turns, medians of the rounds behind one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch

from benchmarks.workload import directions, workload
from monitor.replay.engine import ReplayEngine
from monitor.replay.fused.fitting import fused
from monitor.replay.loaded import Fused, LoadedModel
from monitor.replay.model import load_model
from monitor.settings import ReplaySettings

SITE: Final = 15
FEATURES: Final = 32
WHOLE: Final = "all"


def copies(settings: ReplaySettings) -> dict[str, LoadedModel]:
    """The copy with all of its pieces, and without each of them."""
    whole = load_model(settings, SITE)
    found = {WHOLE: whole, "packed weights": fused(replace(whole, fused=Fused()), packed_bytes=0)}
    if whole.kernel is not None:
        found["attention by blocks"] = replace(whole, kernel=None)
    for kind in whole.fused.kinds.split():
        rest = [one for one in whole.fused.places if type(one.other).__name__.lower() != kind]
        found[kind] = replace(whole, fused=Fused(places=tuple(rest)))
    return found | {"any of them": replace(whole, kernel=None, fused=Fused())}


def ratios(settings: ReplaySettings, prompts: int, rounds: int) -> dict[str, float]:
    """Of each piece, how many times as fast the engine is with it as without."""
    generator = np.random.default_rng(0)
    ways = copies(settings)
    width = ways[WHOLE].config.hidden_size
    features = directions(FEATURES, width, SITE, generator)
    asked = workload(prompts, 0, generator)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, copy in ways.items():
            engine = ReplayEngine(copy, features, settings)
            start = time.process_time()
            engine.replay(asked)
            seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {name: value / median[WHOLE] for name, value in median.items() if name != WHOLE}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pieces")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    found: dict[str, dict[str, float]] = {}
    for dtype in dtypes:
        settings = ReplaySettings(model=given.model, device="cpu", dtype=dtype, threads=1)
        found[dtype] = ratios(settings, given.prompts, given.rounds)
        print(f"{dtype}:", {piece: round(value, 3) for piece, value in found[dtype].items()})
    if given.json:
        machine = f"1 thread, CPU seconds, torch {torch.__version__}"
        told = {"machine": machine, "prompts": given.prompts, "rounds": given.rounds, **found}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
