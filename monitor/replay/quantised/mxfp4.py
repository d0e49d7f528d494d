"""MXFP4, as gpt-oss is published: the experts in E2M1, with a power of two for 32 of them.

Blocks are [experts, out, g, 16] bytes, scales [experts, out, g] exponents over 127; the model has the
weight as [experts, in, out], in = 32 g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from monitor.replay.quantised.form import (
    Format,
    Rule,
    Stored,
    fp4_values,
    part,
    refusal,
    require_shape,
)

ARCHITECTURES: Final = ("gpt_oss",)
"""Those whose experts are known to lie as above."""
BYTES: Final = 16
BIAS: Final = 127


def read(_config: Mapping[str, Any], architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: mxfp4``."""
    if architecture not in ARCHITECTURES:
        raise refusal(f"mxfp4 of {architecture} is not read, only of {', '.join(ARCHITECTURES)}")
    return Format(
        weights=f"mxfp4 experts scaled in groups of {2 * BYTES}",
        ending="",
        parts={"_blocks": "blocks", "_scales": "scales"},
        rule=_rule,
    )


def _rule(weight: str, parts: Mapping[str, Stored]) -> Rule:
    blocks = part(weight, parts, "blocks", "U8")
    scales = part(weight, parts, "scales", "U8")
    if len(blocks.shape) != 4 or blocks.shape[3] != BYTES:
        raise refusal(
            f"{blocks.name} has the shape {list(blocks.shape)}, and no blocks of {BYTES} bytes"
        )
    require_shape(scales, blocks.shape[:3])
    return _dequantised


def _dequantised(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # Expert by expert: the open values of all of them would stand in memory twice.
    return torch.stack(
        [
            torch.ldexp(fp4_values(blocks), scales.int().unsqueeze(-1) - BIAS).flatten(1).T
            for blocks, scales in zip(held["blocks"], held["scales"], strict=True)
        ]
    )
