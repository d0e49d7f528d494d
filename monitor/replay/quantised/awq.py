"""AWQ, as AutoAWQ writes it for its matrix kernel: four bits, packed along the outputs.

W[out, in] = (q - z) * s, with z and s for groups of inputs. Eight numbers of a word stand in the order
0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from monitor.replay.quantised.form import (
    FLOATS,
    Format,
    Rule,
    Stored,
    part,
    refusal,
    require_shape,
    unpacked,
    whole_number,
)

ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: awq``."""
    bits = whole_number(config, "bits", (4,))
    size = whole_number(config, "group_size")
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    if version != "gemm":
        raise refusal(f"quantization_config.version is {version!r}; only gemm can be read")
    if not config.get("zero_point", True):
        raise refusal("quantization_config.zero_point is false, which is not read")
    return Format(
        weights=f"int{bits} weights scaled in " + (f"groups of {size}" if size > 0 else "rows"),
        ending=".weight",
        parts={".qweight": "numbers", ".qzeros": "zeros", ".scales": "scales"},
        rule=lambda weight, parts: _rule(weight, parts, size),
    )


def _rule(weight: str, parts: Mapping[str, Stored], size: int) -> Rule:
    numbers = part(weight, parts, "numbers", "I32")
    scales = part(weight, parts, "scales", *FLOATS)
    zeros = part(weight, parts, "zeros", "I32")
    if len(numbers.shape) != 2:
        raise refusal(f"{numbers.name} has {len(numbers.shape)} dimensions; only two can be read")
    inputs, words = numbers.shape
    size = size if size > 0 else inputs
    if inputs % size:
        raise refusal(f"{numbers.name}: {inputs} inputs are no groups of {size}")
    require_shape(scales, (inputs // size, words * len(ORDER)))
    require_shape(zeros, (inputs // size, words))

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = unpacked(held["numbers"], 4, ORDER).to(torch.float32)
        shift = unpacked(held["zeros"], 4, ORDER).to(torch.float32).repeat_interleave(size, dim=0)
        factor = held["scales"].to(torch.float32).repeat_interleave(size, dim=0)
        return ((values - shift) * factor).T.contiguous()

    return rule
