"""What an answer of the copy's own costs, beside reading the prompt alone (`replay.answer_share`).

The demo's benign prompts without their answers: read alone by the model up to its deepest site, and
answered with so many tokens by the whole model and then read. Rounds are interleaved, medians reported.

    python -m benchmarks.answers --model FOLDER [--json FILE] [--prompts 12] [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workload import directions
from monitor.demo.traffic import exchanges
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.settings import ReplaySettings
from monitor.values.prompts import Message, Prompt, RecordKey
from monitor.values.scores import Replayed


def prompts_alone(count: int) -> list[Prompt]:
    """The demo's benign prompts, spread over the file, without their answers."""
    given = exchanges("benign")
    return [
        Prompt(
            key=RecordKey(topic="answers", partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=tuple(
                Message(role=one["role"], content=one["content"])
                for one in given[index * len(given) // count]["messages"]
            ),
        )
        for index in range(count)
    ]


def weight_mib(loaded: LoadedModel) -> float:
    module = loaded.answerer if loaded.answerer is not None else loaded.model
    return sum(one.numel() * one.element_size() for one in module.parameters()) / 2**20


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = ReplaySettings(
        model=options.model,
        device="cpu",
        dtype="float32",
        threads=options.threads,
        generate_tokens=options.tokens,
    )
    cut, whole = (load_model(settings, options.site, full=full) for full in (False, True))
    generator = np.random.default_rng(0)
    features = directions(options.features, cut.config.hidden_size, options.site, generator)
    prompts = prompts_alone(options.prompts)
    ways: dict[str, tuple[ReplayEngine, Collection[int]]] = {
        "prompt alone": (ReplayEngine(cut, features, settings), ()),
        "own answer": (ReplayEngine(whole, features, settings), range(len(prompts))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: list[int] = []
    for _ in range(options.rounds):
        for name, (engine, own) in ways.items():
            start = time.perf_counter()
            outcomes = engine.run(engine.prepare(prompts, own))
            seconds[name].append(time.perf_counter() - start)
            if own:
                said = [one.response_tokens for one in outcomes if isinstance(one, Replayed)]
    median = {name: statistics.median(times) / len(prompts) for name, times in seconds.items()}
    return {
        "machine": f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "prompts": len(prompts),
        "tokens_of_a_prompt": statistics.mean(
            o.prompt_tokens
            for o in ways["prompt alone"][0].replay(prompts)
            if isinstance(o, Replayed)
        ),
        "tokens_of_an_answer": statistics.mean(said),
        "seconds": seconds,
        "seconds_a_prompt": median,
        "times_a_prompt_alone": median["own answer"] / median["prompt alone"],
        "weights_mib": {"up to the site": weight_mib(cut), "whole": weight_mib(whole)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--site", type=int, default=18, help="the shipped pack's deepest")
    parser.add_argument("--features", type=int, default=11)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(json.dumps({key: value for key, value in result.items() if key != "seconds"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
