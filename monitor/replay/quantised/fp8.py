"""Fine-grained FP8, as DeepSeek and Qwen publish it: E4M3 weights, one scale for each block of them.

W = weight * scale, whatever the scale's name says ("weight_scale_inv"). Without blocks there is one scale for the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from monitor.replay.quantised.form import (
    Format,
    Rule,
    Stored,
    part,
    refusal,
    require_shape,
    scaled_by_blocks,
)


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: fp8``."""
    block = config.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(n, int) and n > 0 for n in block)
    ):
        raise refusal(f"quantization_config.weight_block_size is {block!r}, and no pair of sizes")
    kind = str(config.get("fmt", "e4m3"))
    if kind != "e4m3":
        raise refusal(f"quantization_config.fmt is {kind!r}; only e4m3 can be read")

    def rule(weight: str, parts: Mapping[str, Stored]) -> Rule:
        return _rule(weight, parts, block)

    within = f"blocks of {block[0]} x {block[1]}" if block else "whole tensors"
    return Format(
        weights=f"fp8 weights scaled in {within}",
        activations="fp8 activations",
        ending="",
        parts={"_scale_inv": "scale"},
        ignored=("activation_scale", ".input_scale"),
        rule=rule,
    )


def _rule(weight: str, parts: Mapping[str, Stored], block: list[int] | None) -> Rule:
    stored = part(weight, parts, "weight", "F8_E4M3")
    scale = part(weight, parts, "scale", "F32", "BF16", "F16", "F8_E8M0")
    if block is None:
        if any(size != 1 for size in scale.shape):
            require_shape(scale, ())

        def whole(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return held["weight"].to(torch.float32) * held["scale"].to(torch.float32).reshape(())

        return whole
    rows, columns = block
    if len(stored.shape) < 2:
        raise refusal(f"{stored.name} has {len(stored.shape)} dimensions, and blocks need two")
    *before, height, width = stored.shape
    require_shape(scale, (*before, -(-height // rows), -(-width // columns)))
    return lambda held: scaled_by_blocks(held["weight"], held["scale"], rows, columns)
