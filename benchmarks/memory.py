"""The memory table of docs/replay.md, made anew: what a copy of a known model takes, counted without its weights.

    python -m benchmarks.memory [--write docs/replay.md]

The sizes are those of the models' published configurations; the deepest site is the middle of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from transformers import AutoConfig, PreTrainedConfig

from benchmarks import pages
from monitor.replay.memory import GIB, planned

TABLE: Final = "memory"
_LLAMA: Final = {"num_key_value_heads": 8, "vocab_size": 128_256}
_GPT_OSS: Final = {"hidden_size": 2_880, "intermediate_size": 2_880, "vocab_size": 201_088}
MODELS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "Llama 3.1 8B": (
        "llama",
        _LLAMA | {"hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32},
    ),
    "gpt-oss 20B": ("gpt_oss", _GPT_OSS | {"num_hidden_layers": 24, "num_local_experts": 32}),
    "Gemma 3 27B": (
        "gemma3_text",
        {
            "hidden_size": 5_376,
            "intermediate_size": 21_504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "vocab_size": 262_208,
        },
    ),
    "Qwen3 32B": (
        "qwen3",
        {
            "hidden_size": 5_120,
            "intermediate_size": 25_600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        },
    ),
    "Mixtral 8x7B": ("mixtral", {"num_hidden_layers": 32, "num_local_experts": 8}),
    "Llama 3.3 70B": (
        "llama",
        {
            **_LLAMA,
            "hidden_size": 8_192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
        },
    ),
    "gpt-oss 120B": ("gpt_oss", _GPT_OSS | {"num_hidden_layers": 36, "num_local_experts": 128}),
    "DeepSeek V3 671B": ("deepseek_v3", {}),
}
"""Architecture, and what its configuration says that the library's default does not."""


def config_of(name: str) -> PreTrainedConfig:
    kind, fields = MODELS[name]
    found: PreTrainedConfig = AutoConfig.for_model(kind, **fields)
    return found


def table() -> Iterable[str]:
    yield "| model | blocks | deepest site | bfloat16 | float32 | a block, bfloat16 | whole, bfloat16 |"
    yield "|---|---|---|---|---|---|---|"
    for name in MODELS:
        config = config_of(name)
        layers = config.num_hidden_layers
        site = layers // 2
        half = planned(config, site, torch.bfloat16)
        whole = planned(config, layers - 1, torch.bfloat16, full=True)
        cells = [half.bytes, 2 * half.bytes, half.blocks[-1], whole.bytes]
        told = " | ".join(_gib(one / GIB) for one in cells)
        yield f"| {name} | {layers} | {site} | {told} |"


def _gib(size: float) -> str:
    return f"{size:,.0f} GiB" if size >= 100 else f"{size:.3g} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    return pages.run("benchmarks.memory", lambda: {TABLE: "\n".join(table())}, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
