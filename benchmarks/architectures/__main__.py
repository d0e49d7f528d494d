"""The support table of docs/replay.md, made anew: each architecture from a tiny checkpoint with random weights.

    python -m benchmarks.architectures [--only KIND …] [--results FILE] [--write docs/replay.md]

About two seconds an architecture. What was found is kept in ``--results``, a line each, and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from benchmarks.architectures.prove import Proved, merged, proved
from benchmarks.pages import placed

DECODERS = (
    *("apertus", "arcee", "aria_text", "bamba", "bitnet", "bloom", "codegen", "cohere", "cohere2"),
    *("cohere2_moe", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1"),
    *("ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba"),
    *("flex_olmo", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "glm4"),
    *("glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite"),
    *(
        "granite_swa",
        "granitemoe",
        "granitemoehybrid",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
    ),
    *(
        "internlm3",
        "jamba",
        "jetmoe",
        "kimi_linear",
        "lfm2",
        "lfm3",
        "llama",
        "llama4_text",
        "mamba",
    ),
    *("mamba2", "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "ministral"),
    *("ministral3", "mistral", "mixtral", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2"),
    *(
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
    ),
    *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "rwkv", "seed_oss", "smollm3"),
    *("solar_open", "stablelm", "starcoder2", "vaultgemma", "youtu"),
)
WRAPPERS = (
    *(
        "aya_vision",
        "cohere2_vision",
        "exaone4_5",
        "gemma3",
        "gemma4",
        "glm46v",
        "glm4v",
    ),
    *("glm4v_moe", "idefics3", "internvl", "kimi_k25", "lfm2_vl", "llama4"),
    *("llava", "llava_next", "llava_onevision", "minimax_m3_vl", "mistral3", "mllama", "ovis2"),
    *("paligemma", "qwen2_5_vl", "qwen2_audio", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl"),
    *("qwen3_vl_moe", "smolvlm", "voxtral"),
)
TABLE: Final = "support"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures")
    parser.add_argument("--only", nargs="*", default=[*DECODERS, *WRAPPERS])
    parser.add_argument("--results", type=Path, default=Path(".cache/architectures.jsonl"))
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    given = parser.parse_args(arguments)
    # The CPU seconds of threads that wait for each other would be counted, too.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    known = _known(given.results)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    for kind in given.only:
        if kind not in known:
            known[kind] = _row(kind)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[kind]) + "\n")
            sys.stderr.write(f"{kind}: {known[kind]['way']} {known[kind]['reason']}\n")
    table = "\n".join(_table([known[kind] for kind in given.only]))
    sys.stdout.write(table + "\n")
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(placed(page, {TABLE: table}), encoding="utf-8")
    return 0


def _known(results: Path) -> dict[str, Any]:
    if not results.is_file():
        return {}
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {row["architecture"]: row for row in rows}


def _row(kind: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = proved(kind, Path(folder) / "model", timed=True)
        except Exception as error:
            # Of transformers: it cannot save, load or run its own tiny model.
            found = Proved(
                architecture=kind,
                text="",
                way=None,
                reason=f"not tried: {type(error).__name__}: {error}",
            )
        adapter: float | str | None = None
        if found.difference is not None:
            try:
                adapter = merged(Path(folder) / "model", Path(folder) / "adapter")
            except Exception as error:
                adapter = f"{type(error).__name__}: {error}"
    return asdict(found) | {"adapter": adapter, "wrapper": kind in WRAPPERS}


WAYS: dict[str, str] = {"packed": "packed", "batched": "in batches", "alone": "one by one"}


def _table(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    yield "| architecture | prompts | × | shared prefixes | largest difference | adapter |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        name, reason = row["architecture"], row["reason"]
        if row["wrapper"] and row["text"]:
            name += f" (reads {row['text']})"
        if row["way"] is None:
            told = reason.partition("): ")[2] or reason.partition(": ")[2]
            yield f"| {name} | {reason.partition(':')[0]}: {_short(told)} | | | | |"
            continue
        way = WAYS[row["way"]]
        if row["way"] == "batched" and not row["padding"]:
            way += " of equal length"
        if reason:
            way += f": {_short(reason)}"
        shared = "yes" if row["way"] == "packed" else "no"
        times = f"{row['times_as_fast']:.1f}" if row["times_as_fast"] else ""
        difference = f"{row['difference']:.0e}"
        yield f"| {name} | {way} | {times} | {shared} | {difference} | {_adapter(row['adapter'])} |"


def _adapter(found: float | str | None) -> str:
    if isinstance(found, float):
        return f"{found:.0e}"
    return f"refused: {_short(str(found))}" if found else ""


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= 90 else line[:89] + "…"


if __name__ == "__main__":
    raise SystemExit(main())
