"""The table of costs in docs/replay.md, made from what stands in benchmarks/results and from FLOPs.

    python -m benchmarks.cost [--write docs/replay.md]

A measured line is a run's own figure. A computed line is for another model on the same device: the limit
of that run in matrix products, over the operations of a prompt of as many tokens, times the least and the
largest share of the limit that replays reached (`monitor.replay.cost.SHARES`). Nothing is measured here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig
from transformers.initialization import no_init_weights

from benchmarks import pages
from benchmarks.shape import SHAPES
from monitor.replay.cost import SHARES, flops, weights_passed
from monitor.replay.layers import blocks
from monitor.replay.plan import plan

RESULTS: Final = Path(__file__).parent / "results"
TABLE: Final = "cost"


def _shape(kind: Any, **widths: Any) -> PreTrainedConfig:
    found: PreTrainedConfig = kind(**widths | {"vocab_size": 64, "max_position_embeddings": 8_192})
    return found


MODELS: Final[dict[str, PreTrainedConfig]] = {
    "0.13B": _shape(
        LlamaConfig,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "1.7B": _shape(
        LlamaConfig,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "8B": _shape(LlamaConfig, **SHAPES["8b"]),
    "30B, 3B active": _shape(
        Qwen3MoeConfig,
        hidden_size=2_048,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "32B": _shape(
        LlamaConfig,
        hidden_size=5_120,
        intermediate_size=25_600,
        num_hidden_layers=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "70B": _shape(
        LlamaConfig,
        hidden_size=8_192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
"""Shapes of published models by size; the first is that of SmolLM2-135M. The vocabulary costs nothing."""
RUN: Final = {"0.13B": 16}
"""Blocks that were run where a model was measured; of any other the first half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A measured run: ``rate`` prompts a second of ``tokens`` each on one core or card, of ``model``."""

    device: str
    where: str
    dtype: str
    model: str
    rate: float
    tokens: float
    share: float
    limit: float
    """Operations a second of matrix products alone, on one core or card."""


@dataclass(frozen=True)
class Cut:
    """A model that is read behind a block in its middle, without its weights."""

    name: str

    @property
    def run(self) -> int:
        """Blocks."""
        return RUN.get(self.name, self.of // 2)

    @property
    def of(self) -> int:
        """All blocks of the model."""
        return int(MODELS[self.name].num_hidden_layers)

    @cached_property
    def blocks(self) -> torch.nn.ModuleList:
        config = copy.deepcopy(MODELS[self.name])
        config.num_hidden_layers = self.run
        whole: Any = AutoModel
        with torch.device("meta"), no_init_weights():
            return blocks(whole.from_config(config))

    def flops(self, tokens: int) -> float:
        """Of one prompt of ``tokens``."""
        alone = plan([tuple(range(tokens))], batch_tokens=tokens, min_shared_tokens=None)
        return flops(self.blocks, MODELS[self.name], alone).total

    @property
    def weights(self) -> float:
        return weights_passed(self.blocks, MODELS[self.name])


def runs() -> Iterator[Run]:
    """What benchmarks/results hold of prompts of their own, float32 before bfloat16."""
    core = "core of an AMD EPYC"
    for where, file, key, dtype, cores in (
        ("core, one of two", "engine.json", "own prompts", "float32", 2),
        (core, "engine-cpu.json", "own prompts, float32", "float32", 1),
        (core, "engine-cpu.json", "own prompts, bfloat16", "bfloat16", 1),
    ):
        found = _result(file)[key]
        yield _engine_run(found, "cpu", where, dtype, cores)
    card = "NVIDIA H200"
    small = _result("gpu-smollm.json")["own prompts, float32"]
    yield _engine_run(small, "cuda", card, "float32", 1)
    large = _result("gpu-8b.json")["8b bfloat16, own prompts"]
    way = large["ways"]["variable length, rows of 16384"]
    yield Run(
        device="cuda",
        where=card,
        dtype="bfloat16",
        model="8B",
        rate=way["prompts_per_second"],
        tokens=way["tokens_per_second"] / way["prompts_per_second"],
        share=way["share_of_peak"],
        limit=large["peak_tflops"] * 1e12,
    )


def _engine_run(found: dict[str, Any], device: str, where: str, dtype: str, cores: int) -> Run:
    """The engine of `benchmarks.engine` on SmolLM2-135M, whose share counts the linear layers' products."""
    rate, share = found["prompts_per_second"]["engine"] / cores, found["share_of_matmul_limit"]
    tokens = found["tokens"] / found["prompts"]
    return Run(
        device=device,
        where=where,
        dtype=dtype,
        model="0.13B",
        rate=rate,
        tokens=tokens,
        share=share,
        limit=rate * tokens * 2.0 * Cut("0.13B").weights / share,
    )


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def table() -> list[str]:
    """The lines of the page."""
    lines = [
        "| per | dtype | model | blocks run | weights that a token passes | tokens a prompt | prompts a second | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs():
        lines.append(_line(run, run.model, _two(run.rate), "**measured**"))
        # A small model leaves a GPU waiting, and of two unknown cores nothing is known.
        larger = list(MODELS)[list(MODELS).index(run.model) + 1 :]
        if (run.device, run.dtype) == ("cuda", "float32") or "of two" in run.where:
            continue
        low, high = SHARES[run.device, run.dtype]
        for model in larger:
            most = run.limit / Cut(model).flops(round(run.tokens))
            said = f"{_two(low * most)} to {_two(high * most)}"
            lines.append(_line(run, model, said, "computed"))
    return lines


def _line(run: Run, model: str, rate: str, how: str) -> str:
    cut = Cut(model)
    said = [
        *(
            run.where,
            run.dtype,
            model,
            f"{cut.run} of {cut.of}",
            f"{_two(cut.weights / 1e9)} billion",
        ),
        *(f"{run.tokens:.0f}", rate, how),
    ]
    return f"| {' | '.join(said)} |"


def _two(value: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"


def main(arguments: Sequence[str] | None = None) -> int:
    return pages.run("benchmarks.cost", lambda: {TABLE: "\n".join(table())}, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
