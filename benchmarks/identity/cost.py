"""What weighing an answer costs (`identity.share`), and what it gives: figures of docs/drift.md.

The demo's benign prompts. The copy answers them at temperature 1; these answers are weighed as the tokens
that they were and as the text that a log would hold of them, and so are the answers that the demo logs,
which another author wrote. Cost: reading a prompt with its answer up to the pack's deepest site, against
weighing the answer as well, and against likening it to one alternative besides: an adapter of rank 8 on every linear
layer, of random values, for neither cost nor memory depends on them. Rounds are interleaved, medians reported. What the
adapter's own answers say for it is measured too.

    python -m benchmarks.identity cost --model FOLDER [--json FILE] [--prompts 48] [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.workload import directions
from monitor.demo.traffic import exchanges
from monitor.drift.alternatives import likeness_of
from monitor.drift.identity import SHARES, wagers
from monitor.replay.adapter import beside
from monitor.replay.alternatives import Adapted, Alternative, compared
from monitor.replay.answer import decoded, left_padded, stock_attention
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import LoadedModel, load_model
from monitor.replay.regions import Tokens
from monitor.replay.surprise import end_tokens, surprises
from monitor.research.answers.generate import token_rows
from monitor.settings import IdentitySettings, ReplaySettings
from monitor.values.likeness import SHARES as ALTERNATIVE_SHARES
from monitor.values.prompts import Message, Prompt, RecordKey, Sampling
from monitor.values.scores import Replayed
from monitor.values.surprise import Surprise

LAW = Sampling(temperature=1.0)
TOLERANCE = IdentitySettings().tolerance


def logged(count: int) -> list[Prompt]:
    """The demo's benign prompts with their logged answers, spread over the file."""
    given = exchanges("benign")
    return [
        Prompt(
            key=RecordKey(topic="identity", partition=0, offset=index),
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            messages=tuple(
                Message(role=one["role"], content=one["content"])
                for one in given[index * len(given) // count]["messages"]
            ),
            response=given[index * len(given) // count]["response"],
        )
        for index in range(count)
    ]


def spoken(loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int, batch: int) -> list[Tokens]:
    """The rows of ``prompts`` with answers that the copy draws at temperature 1, end tokens left out."""
    asked = token_rows(loaded, [replace(one, response=None) for one in prompts], room=tokens)
    ends = end_tokens(loaded)
    found = []
    torch.manual_seed(0)
    with stock_attention(loaded) as whole, torch.inference_mode():
        for start in range(0, len(asked), batch):
            rows = asked[start : start + batch]
            ids, mask = left_padded([row.ids for row in rows], loaded)
            output = decoded(whole, ids, mask, loaded, tokens, 1.0)[:, ids.shape[1] :].tolist()
            for row, drawn in zip(rows, output, strict=True):
                stop = next((place for place, id_ in enumerate(drawn) if id_ in ends), tokens)
                said = drawn[:stop]
                found.append(
                    replace(
                        row,
                        ids=(*row.ids, *said),
                        response_tokens=len(said),
                        readable=np.ones(len(row.ids) + len(said), dtype=np.bool_),
                    )
                )
    return found


def gained(loaded: LoadedModel, rows: Sequence[Tokens]) -> Mapping[str, float]:
    """What the weighing says of the answers, without and with the default tolerance."""
    found = [one for one in surprises(loaded, rows, [LAW] * len(rows)) if isinstance(one, Surprise)]
    z = [one.z for one in found]
    bets = np.exp([one.log_bets for one in found]).mean(axis=0)
    kept = np.array([wagers(one, TOLERANCE) for one in found])
    return {
        "answers": len(found),
        "tokens": sum(one.tokens for one in found),
        "z_mean": float(np.mean(z)),
        "z_sd": float(np.std(z)),
        "surprise_a_token": sum(o.excess for o in found) / sum(o.tokens for o in found),
        "variance_a_token": sum(o.variance for o in found) / sum(o.tokens for o in found),
        **{f"mean_bet_{place}": float(bet) for place, bet in enumerate(bets)},
        **{
            f"gain_at_share_{share:g}": float(gain)
            for share, gain in zip(SHARES, kept.mean(axis=0), strict=True)
        },
    }


def cost(
    settings: ReplaySettings,
    loaded: Mapping[str, LoadedModel],
    prompts: Sequence[Prompt],
    rounds: int,
    alternative: Alternative,
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    width = loaded["cut"].config.hidden_size
    features = directions(11, width, 18, generator)
    engines = {
        "read": ReplayEngine(loaded["cut"], features, settings),
        "read and weighed": ReplayEngine(loaded["whole"], features, settings),
        "read, weighed and likened": ReplayEngine(
            loaded["whole"], features, settings, (), (alternative,)
        ),
    }
    all_of_them = dict.fromkeys(range(len(prompts)), LAW)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, times in seconds.items():
            engine = engines[name]
            start = time.perf_counter()
            outcomes = engine.run(
                engine.prepare(prompts, (), {} if name == "read" else all_of_them)
            )
            times.append(time.perf_counter() - start)
    median = {name: statistics.median(times) / len(prompts) for name, times in seconds.items()}
    return {
        "tokens_of_a_prompt": statistics.mean(
            o.prompt_tokens for o in outcomes if isinstance(o, Replayed)
        ),
        "tokens_of_an_answer": statistics.mean(
            o.response_tokens for o in outcomes if isinstance(o, Replayed)
        ),
        "seconds_a_prompt": median,
        "times_reading": median["read and weighed"] / median["read"],
        "times_reading_likened": median["read, weighed and likened"] / median["read"],
        "mib_of_the_alternative": alternative.bytes / 2**20,
    }


def adapted(loaded: LoadedModel, folder: Path) -> Adapted:
    """An adapter of rank 8 on all linear layers of the blocks, with random values, beside ``loaded``."""
    import peft

    model = AutoModelForCausalLM.from_pretrained(loaded.config._name_or_path)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    with_adapter = peft.get_peft_model(model, config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in with_adapter.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.04 * torch.randn(weight.shape, generator=random))
    with_adapter.save_pretrained(str(folder))
    assert loaded.answerer is not None
    return Adapted("random", beside(loaded.answerer, folder, "benchmark"))


def likened(
    loaded: LoadedModel, alternative: Alternative, rows: Sequence[Tokens]
) -> Mapping[str, float]:
    """What the answers say for the alternative, nats an answer."""
    found = compared(loaded, rows, [LAW] * len(rows), [alternative])
    each = [one.likened[alternative.name] for one in found if isinstance(one, Surprise)]
    wagers = np.array([likeness_of(one, TOLERANCE).wagers for one in each]).mean(axis=0)
    return {
        "answers": len(each),
        "log_likelihood_gain": float(np.mean([one.gain for one in each])),
        **{
            f"gain_at_share_{share:g}": float(gain)
            for share, gain in zip(ALTERNATIVE_SHARES, wagers, strict=True)
        },
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = ReplaySettings(
        model=options.model, device="cpu", dtype="float32", threads=options.threads
    )
    loaded = {
        name: load_model(settings, 18, full=full)
        for name, full in (("cut", False), ("whole", True))
    }
    whole = loaded["whole"]
    prompts = logged(options.prompts)
    own = spoken(whole, prompts, options.tokens, options.batch)
    answered = [
        (prompt, row) for prompt, row in zip(prompts, own, strict=True) if row.response_tokens
    ]
    own = [row for _, row in answered]
    texts = [whole.tokenizer.decode(row.ids[row.prompt_tokens :]) for row in own]
    retold = token_rows(
        whole,
        [replace(p, response=text) for (p, _), text in zip(answered, texts, strict=True)],
    )
    same = [a.ids == b.ids for a, b in zip(own, retold, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        alternative = adapted(whole, Path(folder))
    with alternative.speaking(whole):
        theirs = spoken(whole, prompts, options.tokens, options.batch)
    return {
        "machine": f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}",
        "prompts": len(prompts),
        "cost": cost(settings, loaded, prompts[: options.timed], options.rounds, alternative),
        "the alternative, for itself": likened(
            whole, alternative, [row for row in theirs if row.response_tokens]
        ),
        "the copy, for the alternative": likened(whole, alternative, own),
        "the copy, its tokens": gained(whole, own),
        "the copy, its text": gained(whole, retold),
        "same_tokens": float(np.mean(same)),
        "another author": gained(whole, token_rows(whole, prompts)),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--timed", type=int, default=16, help="prompts of the cost's rounds")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer of the copy")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
