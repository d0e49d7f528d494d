"""What a twin removes and what it costs, beside the regression on the prompt: figures of docs/drift.md.

The demo's benign questions. The copy answers each twice at temperature 1, by two seeds: once as the server,
once as the twin, so that the served model is the copy. The shipped pack reads both. Of every feature that reads
answers: the variance of its score, of the paired difference, and of what the regression on the prompt-side
features leaves (cross-fitted over questions). Then users change topic: the questions about code of the demo,
answered by the copy as well. Cost: reading a prompt with its logged answer up to the pack's deepest site, against
the same with a twin. Rounds are interleaved, medians reported.

    python -m benchmarks.twin --model FOLDER [--json FILE] [--prompts 60] [--others 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monitor.demo.traffic import exchanges
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.replay.twin import SLACK, Draw, answers_of
from monitor.score.pack import Pack, load_pack
from monitor.score.scorer import Scorer
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.prompts import Message, Prompt, RecordKey, Sampling
from monitor.values.ridge import FOLDS, cross_fitted
from monitor.values.scores import Replayed
from monitor.values.surprise import NotWeighed
from monitor.values.twin import Pair, TwinAsked

PACK = Path(__file__).parents[1] / "monitor/packs/smollm2-135m-instruct"
SERVED_SEED, TWIN_SEED = 1_000_000, 2_000_000


def questions(name: str, count: int) -> list[Prompt]:
    """Questions of one of the demo's files, spread over it, without their logged answers."""
    given = exchanges(name)
    chosen = [given[index * len(given) // count] for index in range(count)]
    return [
        Prompt(
            key=RecordKey(topic=name, partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=tuple(Message(role=m["role"], content=m["content"]) for m in one["messages"]),
        )
        for index, one in enumerate(chosen)
    ]


def answered(engine: ReplayEngine, prompts: Sequence[Prompt], law: Sampling) -> list[Prompt]:
    """The prompts with answers that the copy draws as their server."""
    prepared = engine.prepare(prompts)
    assert law.max_tokens is not None
    draws = [
        Draw(prepared.tokens[index].ids, law, law.max_tokens, SERVED_SEED + index)
        for index in range(len(prompts))
    ]
    done = []
    for prompt, ids in zip(prompts, answers_of(engine.loaded, draws), strict=True):
        assert not isinstance(ids, NotWeighed)
        text = engine.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        done.append(replace(prompt, response=text, sampling=law))
    return done


def paired(
    engine: ReplayEngine, pack: Pack, prompts: Sequence[Prompt], law: Sampling, tokens: int
) -> tuple[Doubles, Doubles]:
    """Scores [n, 2, k] of both answers, the served one first, and those of the prompt side [n, c]."""
    twins = {
        index: TwinAsked(law=law, tokens=tokens, seed=TWIN_SEED + index)
        for index in range(len(prompts))
    }
    scorer = Scorer(pack)
    scores, asked = [], []
    of_prompt = [feature.of_prompt for feature in pack.features]
    for one in engine.run(engine.prepare(prompts, twins=twins)):
        if isinstance(one, Replayed) and isinstance(one.twin, Pair):
            both = scorer.score(one.twin.readings, one.twin.pooled_tokens)
            if not np.isnan(both).any():
                scores.append(both)
                asked.append(both[0, of_prompt])
    return np.array(scores, dtype=np.float64), np.array(asked, dtype=np.float64)


def removed(scores: Doubles, asked: Doubles, names: Sequence[str]) -> dict[str, Any]:
    """By feature, what the twin and the regression leave of the variance of a score."""
    folds = np.arange(len(scores)) % FOLDS
    found = {}
    for column, name in enumerate(names):
        served, twin = scores[:, 0, column], scores[:, 1, column]
        variance = float((served.var(ddof=1) + twin.var(ddof=1)) / 2)
        both = np.concatenate([served, twin])
        fit = cross_fitted(np.concatenate([asked, asked]), both, np.concatenate([folds, folds]))
        found[name] = {
            "variance": variance,
            "of_the_question": float(np.cov(served, twin)[0, 1]) / variance,
            "left_by_the_twin": float((served - twin).var(ddof=1)) / variance,
            "left_by_the_prompt": 1.0 - fit.explained,
            "mean_difference": float((served - twin).mean()),
        }
    return found


def topic_change(
    before: tuple[Doubles, Doubles], after: tuple[Doubles, Doubles], names: Sequence[str]
) -> dict[str, Any]:
    """By feature, how far the mean moved in deviations of the score before: raw, given the prompt, paired."""
    (scores, asked), (later, asked_later) = before, after
    found = {}
    for column, name in enumerate(names):
        served, deviation = scores[:, 0, column], scores[:, 0, column].std(ddof=1)
        design = np.column_stack([np.ones(len(asked)), asked])
        weights = np.linalg.lstsq(design, served, rcond=None)[0]
        left = later[:, 0, column] - np.column_stack([np.ones(len(later)), asked_later]) @ weights
        apart = (later[:, 0] - later[:, 1])[:, column]
        found[name] = {
            "raw": float((later[:, 0, column].mean() - served.mean()) / deviation),
            "given_the_prompt": float(left.mean() / deviation),
            "paired": float(apart.mean() / deviation),
            "paired_error": float(apart.std(ddof=1) / len(apart) ** 0.5 / deviation),
        }
    return found


def cost(
    engines: Mapping[str, ReplayEngine],
    prompts: Sequence[Prompt],
    law: Sampling,
    tokens: int,
    rounds: int,
) -> dict[str, Any]:
    twins = {index: TwinAsked(law=law, tokens=tokens, seed=index) for index in range(len(prompts))}
    seconds: dict[str, list[float]] = {"cut": [], "whole": []}
    for _ in range(rounds):
        for name, times in seconds.items():
            start = time.perf_counter()
            engine = engines[name]
            engine.run(engine.prepare(prompts, twins=twins if name == "whole" else {}))
            times.append(time.perf_counter() - start)
    each = {name: statistics.median(times) / len(prompts) for name, times in seconds.items()}
    return {
        "prompts_at_once": len(prompts),
        "seconds_read": each["cut"],
        "seconds_with_twin": each["whole"],
        "times_reading": each["whole"] / each["cut"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = ReplaySettings(
        model=options.model, device="cpu", dtype="float32", threads=options.threads
    )
    pack = load_pack(PACK)
    engines = {
        name: ReplayEngine(
            load_model(settings, pack.deepest_site, full=full), pack.features, settings
        )
        for name, full in (("cut", False), ("whole", True))
    }
    whole = engines["whole"]
    law = Sampling(temperature=1.0, max_tokens=options.tokens + SLACK)
    columns = [i for i, feature in enumerate(pack.features) if not feature.of_prompt]
    names = [pack.features[column].name for column in columns]
    served = {
        name: answered(whole, questions(name, count), law)
        for name, count in (("benign", options.prompts), ("code", options.others))
    }
    read = {}
    for name, prompts in served.items():
        scores, asked = paired(whole, pack, prompts, law, options.tokens)
        read[name] = scores[:, :, columns], asked
    return {
        "machine": f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "seeds": [SERVED_SEED, TWIN_SEED],
        "tokens": options.tokens,
        "pairs": {name: len(scores) for name, (scores, _) in read.items()},
        "removed": removed(*read["benign"], names),
        "topic_change": topic_change(read["benign"], read["code"], names),
        "cost": [
            cost(engines, served["benign"][:at_once], law, options.tokens, options.rounds)
            for at_once in (1, 8)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    text = json.dumps(found, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
