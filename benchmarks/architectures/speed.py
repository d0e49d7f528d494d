"""How many times as fast as one by one a copy reads: CPU seconds, in the same run.

    python -m benchmarks.architectures.speed KIND … [--width 64] [--prompts 64] [--rounds 3] [--shared 200]

Random weights in four blocks, of which the first three are read. The lengths are those of the chats of
`benchmarks.engine`, halved: median 60 tokens, a twentieth above 300. ``--shared`` tokens stand before each prompt, the same ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.architectures.tiny import save_tiny, tiny_config
from benchmarks.workload import lengths
from monitor.replay.forward import Forward
from monitor.replay.loaded import LoadedModel, Packing
from monitor.replay.model import CPU_BATCH_TOKENS, load_model
from monitor.replay.plan import plan
from monitor.settings import ReplaySettings

SITE = 2
ENOUGH = 2.0
"""Seconds behind which no further round is begun."""


def speed(
    loaded: LoadedModel, *, limit: int, prompts: int = 64, rounds: int = 3, shared: int = 0
) -> float:
    """Seconds one by one over seconds as ``loaded`` is run, the least of ``rounds`` taken in turns.

    CPU seconds of the process: others may use the machine. No round is begun after `ENOUGH` of them. Prompts
    have at most ``limit`` tokens, ``shared`` of which are the same.
    """
    drawn = np.random.default_rng(0)
    sizes = np.clip(lengths(prompts, drawn) // 2, 4, limit - shared)
    vocabulary = loaded.config.vocab_size
    first = tuple(drawn.integers(vocabulary, size=shared).tolist())
    rows = [(*first, *drawn.integers(vocabulary, size=size).tolist()) for size in sizes]
    alone = replace(loaded, packing=Packing(ground="excluded"))
    stock = loaded.attention.removeprefix("packed-")
    if stock == "sdpa" and not loaded.model._supports_sdpa:
        stock = "eager"  # Gemma 2: alone it is run so, packed it needs none of them
    packed = loaded.model.config._attn_implementation
    best = {"alone": float("inf"), "together": float("inf")}
    begun = time.process_time()
    for _ in range(rounds):
        if time.process_time() - begun > ENOUGH:
            break
        for name, copy, attention in (("alone", alone, stock), ("together", loaded, packed)):
            if loaded.packed:
                loaded.model.set_attn_implementation(attention)
            start = time.process_time()
            _run(copy, rows, shared)
            best[name] = min(best[name], time.process_time() - start)
    return best["alone"] / best["together"]


def _run(loaded: LoadedModel, rows: Sequence[tuple[int, ...]], shared: int) -> None:
    work = plan(
        rows,
        batch_tokens=CPU_BATCH_TOKENS,
        min_shared_tokens=shared if shared and loaded.packed else None,
        way=loaded.packing.way,
        padding=loaded.packing.padding,
    )
    Forward(
        loaded,
        work,
        (len(loaded.blocks) - 1,),
        lambda _members, _total: lambda _site, _residual: None,
        lambda _members: None,
    ).run()


def wide(kind: str, width: int) -> dict[str, Any]:
    """Changes to the tiny configuration of ``kind`` that make it ``width`` numbers wide, with heads of 64."""
    heads = max(1, width // 64)
    changes = {
        "hidden_size": width,
        "n_embd": width,
        "intermediate_size": 3 * width,
        "num_attention_heads": heads,
        "n_head": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": 64,
        "mamba_d_ssm": 2 * width,
        "mamba_n_heads": 2 * heads,
        "mamba_num_heads": 2 * heads,
        "num_heads": 2 * heads,
        "mamba_head_dim": 64,
        "mamba_d_head": 64,
        "rotary_dim": 32,
        "max_position_embeddings": 1_024,
        "n_positions": 1_024,
    }
    config = tiny_config(kind)
    known = config.to_dict()
    if "num_attention_heads" in known:
        # In Mamba 2 these are the heads of the state.
        changes.pop("num_heads")
    return {
        name: value
        for name, value in changes.items()
        if name in known and name not in config.attribute_map
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures.speed")
    parser.add_argument("kind", nargs="+")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", type=int, default=0)
    given = parser.parse_args(arguments)
    # The CPU seconds of threads that wait for each other would be counted, too.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    for kind in given.kind:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny(tiny_config(kind, **wide(kind, given.width)), Path(folder))
            settings = ReplaySettings(
                model=Path(folder), device="cpu", dtype="float32", max_tokens=1_000
            )
            loaded = load_model(settings, SITE)
        found = speed(
            loaded, limit=1_000, prompts=given.prompts, rounds=given.rounds, shared=given.shared
        )
        sys.stdout.write(f"{kind}\t{loaded.packing.way}\t{found:.2f}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
