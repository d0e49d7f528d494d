"""One architecture: what the replay makes of its tiny checkpoint, against transformers' whole model in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from benchmarks.architectures.speed import speed
from benchmarks.architectures.tiny import save_tiny, tiny_config
from monitor.errors import ModelError
from monitor.replay.architectures import largest_difference, proof_prompts, residuals
from monitor.replay.layers import blocks, model_class, text_stack
from monitor.replay.model import load_model
from monitor.replay.plan import Way
from monitor.settings import ReplaySettings

SITE = 2
"""Of four blocks: the last is cut off."""
LIMIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """How the tiny copy was run, and why not packed; ``difference``: largest of any token's residual stream, relative to its length.

    ``times_as_fast``: as one by one, in CPU seconds. Of a refused one ``way`` is None, and so are both.
    """

    architecture: str
    text: str
    way: Way | None
    reason: str
    padding: float = 0.0
    difference: float | None = None
    times_as_fast: float | None = None


def proved(kind: str, folder: Path, *, timed: bool = False, **changes: Any) -> Proved:
    """Save a tiny checkpoint of model type ``kind`` in ``folder``, load it as a worker does, and compare.

    ``changes`` are made to its text part's configuration. ``timed`` as well against one by one.
    """
    save_tiny(tiny_config(kind, **changes), folder)
    settings = ReplaySettings(model=folder, device="cpu", dtype="float32", max_tokens=LIMIT)
    try:
        loaded = load_model(settings, SITE)
    except ModelError as error:
        return Proved(architecture=kind, text="", way=None, reason=f"refused: {error}")
    prompts = proof_prompts(loaded, LIMIT)
    found = residuals(loaded, prompts, LIMIT)
    return Proved(
        architecture=kind,
        text=loaded.config.model_type,
        way=loaded.packing.way,
        reason=loaded.packing.reason,
        padding=loaded.packing.padding,
        difference=largest_difference(stream(_whole(folder), prompts), found),
        times_as_fast=speed(loaded, limit=LIMIT, prompts=32) if timed else None,
    )


def stream(whole: Any, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The stream behind block `SITE`, as the ``whole`` model of transformers has it, prompt by prompt."""
    block = blocks(text_stack(whole))[SITE]
    rows: list[torch.Tensor] = []

    def read(_module: object, _inputs: object, output: Any) -> None:
        rows.append((output[0] if isinstance(output, tuple) else output)[0].to(torch.float32))

    handle = block.register_forward_hook(read)
    with torch.no_grad():
        for prompt in prompts:
            whole(input_ids=torch.tensor([prompt]), use_cache=False)
    handle.remove()
    assert len(rows) == len(prompts)
    return rows


def _whole(folder: Path) -> Any:
    from transformers import AutoConfig

    kind: Any = model_class(AutoConfig.from_pretrained(folder), full=True)
    options: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "eager"}
    try:
        # The fused kernels of experts know no float64.
        return kind.from_pretrained(folder, experts_implementation="eager", **options).eval()
    except (TypeError, ValueError):
        return kind.from_pretrained(folder, **options).eval()


def merged(folder: Path, adapter: Path) -> float:
    """The same comparison with a LoRA adapter on every linear layer of the attention (of the blocks, where there is none), saved in ``adapter``."""
    from peft import LoraConfig, get_peft_model

    whole = _whole(folder)
    stack = text_stack(whole)
    prefix = next(f"{name}." if name else "" for name, one in whole.named_modules() if one is stack)
    linear = [
        f"{prefix}{name}"
        for name, module in blocks(stack).named_modules(prefix=_blocks_name(stack))
        # peft adapts no output of a Mamba block.
        if isinstance(module, torch.nn.Linear | Conv1D) and not name.endswith("mixer.out_proj")
    ]
    names = [name for name in linear if "attn" in name or "attention" in name] or linear
    adapted = get_peft_model(whole, LoraConfig(r=2, target_modules=names))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                weight.copy_(0.3 * drawn)
    adapted.save_pretrained(str(adapter))
    settings = ReplaySettings(
        model=folder, adapter=adapter, device="cpu", dtype="float32", max_tokens=LIMIT
    )
    loaded = load_model(settings, SITE)
    prompts = proof_prompts(loaded, LIMIT)
    reference = stream(adapted.merge_and_unload(), prompts)
    return largest_difference(reference, residuals(loaded, prompts, LIMIT))


def _blocks_name(stack: torch.nn.Module) -> str:
    listed = blocks(stack)
    return str(next(name for name, one in stack.named_modules() if one is listed))
