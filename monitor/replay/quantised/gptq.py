"""GPTQ: integers packed along the inputs, scales and zero points by groups of inputs.

W[out, in] = (q - z) * s with q = qweight[in, out], and z, s of the group that ``g_idx[in]`` names.
The first version of the format stores z - 1, ``checkpoint_format: gptq_v2`` stores z.
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

BITS: Final = (2, 4, 8)
VERSIONS: Final = {"gptq": 1, "gptq_v2": 0}
"""By ``checkpoint_format``: what is added to a stored zero point."""


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: gptq``."""
    bits = whole_number(config, "bits", BITS)
    size = whole_number(config, "group_size")
    version = config.get("checkpoint_format") or "gptq"
    if version not in VERSIONS:
        raise refusal(
            f"quantization_config.checkpoint_format is {version!r}; only {list(VERSIONS)} can be read"
        )
    if config.get("pack_dtype", "int32") not in ("int32", None):
        raise refusal(
            f"quantization_config.pack_dtype is {config['pack_dtype']!r}; only int32 can be read"
        )
    if any(not str(name).startswith("-:") for name in config.get("dynamic") or ()):
        raise refusal(
            "quantization_config.dynamic gives modules precisions of their own, which is not read"
        )

    def rule(weight: str, parts: Mapping[str, Stored]) -> Rule:
        return _rule(weight, parts, bits, VERSIONS[version])

    return Format(
        weights=f"int{bits} weights scaled in " + (f"groups of {size}" if size > 0 else "rows"),
        ending=".weight",
        parts={".qweight": "numbers", ".qzeros": "zeros", ".scales": "scales", ".g_idx": "groups"},
        rule=rule,
    )


def _rule(weight: str, parts: Mapping[str, Stored], bits: int, added: int) -> Rule:
    many = 32 // bits
    numbers = part(weight, parts, "numbers", "I32")
    if len(numbers.shape) != 2:
        raise refusal(f"{numbers.name} has {len(numbers.shape)} dimensions; only two can be read")
    inputs, outputs = numbers.shape[0] * many, numbers.shape[1]
    scales = part(weight, parts, "scales", *FLOATS)
    zeros = part(weight, parts, "zeros", "I32")
    groups = part(weight, parts, "groups", "I32", "I64")
    require_shape(scales, (*scales.shape[:1], outputs))
    require_shape(zeros, (scales.shape[0], -(-outputs // many)))
    require_shape(groups, (inputs,))

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        opened = unpacked(held["zeros"], bits)[:, :outputs]
        if added and bool((opened == (1 << bits) - 1).any()):
            # One kernel takes it for 0, the next for 2^bits; and packing it has spoilt its neighbours.
            raise refusal(f"{zeros.name} holds zero points that servers read differently")
        group = held["groups"].long()
        if not 0 <= int(group.min()) <= int(group.max()) < scales.shape[0]:
            raise refusal(f"{groups.name} names groups that are not there", "fetch the model again")
        shift = (opened + added).to(torch.float32)[group]
        values = unpacked(held["numbers"].T.contiguous(), bits).T.to(torch.float32)
        return ((values - shift) * held["scales"].to(torch.float32)[group]).T.contiguous()

    return rule
