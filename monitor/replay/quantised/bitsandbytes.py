"""bitsandbytes: int8 with a scale for each row, and four bits (NF4, FP4) in blocks of the flattened weight.

Int8: W = q * SCB / 127. Four bits: W = table[q] * absmax of its block, two numbers in a byte, the high half first. Where
the scales are quantised as well, absmax = nested table[q] * nested absmax of its block + offset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from monitor.replay.quantised.form import Format, Rule, Stored, part, refusal, require_shape

KINDS: Final = ("nf4", "fp4")
STORAGES: Final = ("U8", "I8", "BF16", "F16", "F32")
"""Types in which the bytes of four-bit numbers are kept; the type means nothing."""
ROWS: Final = 0
"""The only layout of int8 weights that is still written; the others were those of old GPU kernels."""
_STATE: Final = ".weight.quant_state.bitsandbytes__"
_FOUR_BITS: Final = {
    ".weight.absmax": "scales",
    ".weight.quant_map": "table",
    ".weight.nested_absmax": "nested scales",
    ".weight.nested_quant_map": "nested table",
    **{_STATE + kind: "state" for kind in KINDS},
}
AGAIN: Final = "fetch the model again"


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: bitsandbytes``."""
    four, eight = (bool(config.get(name)) for name in ("load_in_4bit", "load_in_8bit"))
    if four == eight:
        raise refusal(
            f"quantization_config.load_in_4bit is {four}, and load_in_8bit as well: one of them must be true"
        )
    if eight:
        return Format(
            weights="int8 weights scaled in rows",
            activations="int8 activations but for outliers",
            ending=".weight",
            parts={".SCB": "scales", ".weight_format": "layout"},
            rule=_int8,
        )
    kind = config.get("bnb_4bit_quant_type")
    if kind not in KINDS:
        raise refusal(
            f"quantization_config.bnb_4bit_quant_type is {kind!r}; only {', '.join(KINDS)} can be read"
        )
    nested = ", scales in eight bits" if config.get("bnb_4bit_use_double_quant") else ""
    return Format(
        weights=f"{kind} weights scaled in blocks{nested}",
        ending=".weight",
        parts=_FOUR_BITS,
        rule=lambda weight, parts: _four_bits(weight, parts, str(kind)),
    )


def _int8(weight: str, parts: Mapping[str, Stored]) -> Rule:
    numbers = part(weight, parts, "weight", "I8")
    scales = part(weight, parts, "scales", "F32", "F16", "BF16")
    if len(numbers.shape) != 2:
        raise refusal(f"{numbers.name} has {len(numbers.shape)} dimensions; only two can be read")
    require_shape(scales, numbers.shape[:1])

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if "layout" in held and int(held["layout"]) != ROWS:
            raise refusal(f"{weight} is laid out for one kind of GPU, which is not read")
        factor = held["scales"].to(torch.float32) / 127
        return held["weight"].to(torch.float32) * factor.unsqueeze(1)

    return rule


@dataclass(frozen=True, slots=True)
class _State:
    """What a weight's own description says of it."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    offset: float


def _four_bits(weight: str, parts: Mapping[str, Stored], kind: str) -> Rule:
    part(weight, parts, "weight", *STORAGES)
    state_part = part(weight, parts, "state", "U8")
    require_shape(part(weight, parts, "table", "F32"), (16,))
    nested = "nested scales" in parts
    part(weight, parts, "scales", "U8" if nested else "F32")
    if nested:
        part(weight, parts, "nested scales", "F32")
        require_shape(part(weight, parts, "nested table", "F32"), (256,))
    if not state_part.name.endswith(kind):
        raise refusal(
            f"{state_part.name} says another kind than config.json, which says {kind}", AGAIN
        )

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        state = _state(state_part.name, held["state"], nested=nested)
        scales = held["scales"]
        if nested:
            scales = _scaled(
                held["nested table"][scales.int()],
                held["nested scales"],
                state.nested_block,
                weight,
            )
            scales = scales + state.offset
        packed = held["weight"].contiguous().view(torch.uint8).reshape(-1)
        size = math.prod(state.shape)
        if packed.numel() != -(-size // 2):
            raise refusal(f"{weight} does not hold {size} numbers of four bits", AGAIN)
        table = held["table"]
        halves = (table[(packed >> 4).int()], table[(packed & 0xF).int()])
        values = torch.stack(halves, dim=-1).reshape(-1)[:size]
        return _scaled(values, scales, state.block, weight).reshape(state.shape)

    return rule


def _scaled(values: torch.Tensor, scales: torch.Tensor, block: int, weight: str) -> torch.Tensor:
    """Flat ``values`` times one scale for each ``block`` of them; the last one may be cut short."""
    if scales.numel() != -(-values.numel() // block):
        raise refusal(
            f"{weight} has {scales.numel()} scales for {values.numel()} numbers in blocks of {block}",
            AGAIN,
        )
    return values * scales.reshape(-1).repeat_interleave(block)[: values.numel()]


def _state(name: str, held: torch.Tensor, *, nested: bool) -> _State:
    try:
        given: dict[str, Any] = json.loads(bytes(held.tolist()))
        state = _State(
            shape=tuple(int(size) for size in given["shape"]),
            block=int(given["blocksize"]),
            nested_block=int(given["nested_blocksize"]) if nested else 1,
            offset=float(given["nested_offset"]) if nested else 0.0,
        )
        if min(state.block, state.nested_block, *state.shape) < 1:
            raise ValueError("a size below one")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise refusal(f"{name} cannot be read: {type(error).__name__}", AGAIN) from None
    return state
