"""HQQ: integers packed along the rows of the grouped weight, each module with a description of its own beside them.

W = (q - zero) * scale over groups along ``axis``: the weight as rows of ``group_size`` numbers (axis 1), or as as many columns
(axis 0). A byte holds numbers that stand far apart, the first of them in its highest bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from monitor.replay.quantised.form import FLOATS, HINT, Format, Rule, Stored, part, refusal

PACKINGS: Final = {
    "8bit_u8": (8, 1),
    "4bit_u8": (4, 2),
    "3bit_32": (3, 10),
    "2bit_u8": (2, 4),
    "1bit_u8": (1, 8),
}
"""By what HQQ calls them: bits of a number, and numbers in a byte or word."""
_LEAD: Final = ".W_q"
_SAID: Final = ("packing", "axis", "shape", "group_size")
_PARTS: Final = {
    _LEAD: "numbers",
    ".zero": "zeros",
    ".scale": "scales",
    ".zero_scale": "zeros and scales",
    ".quant_scale": "quant_scale",
    ".quant_zero": "quant_zero",
    **{f".{name}": name for name in _SAID},
}
_MEANS_NOTHING: Final = (
    *("nbits", "unpack_view_dtype", "view_as_float", "compute_dtype", "offload_meta"),
    *("encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
AGAIN: Final = "fetch the model again"


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: hqq``."""
    given = config.get("quant_config")
    if not isinstance(given, Mapping) or not given:
        raise refusal("quantization_config.quant_config says nothing about the weights", HINT)
    kinds = {_precision(one) for one in _settings(given)} - {""}
    if not kinds:
        raise refusal("quantization_config.quant_config gives no nbits", HINT)
    return Format(
        weights=" and ".join(sorted(kinds)),
        ending=".weight",
        lead=_LEAD,
        parts=_PARTS | {f".{name}": name for name in _MEANS_NOTHING},
        rule=_rule,
    )


def _settings(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of all modules, or those of each kind of module."""
    if "weight_quant_params" in given:
        return [given]
    return [one for one in given.values() if isinstance(one, Mapping)]


def _precision(given: Mapping[str, Any]) -> str:
    weights = given.get("weight_quant_params")
    if not isinstance(weights, Mapping) or "nbits" not in weights:
        return ""
    size = weights.get("group_size")
    return f"hqq int{weights['nbits']} weights scaled in " + (
        f"groups of {size}" if size else "rows"
    )


def _rule(weight: str, parts: Mapping[str, Stored]) -> Rule:
    numbers = part(weight, parts, "numbers", "U8", "I32", *FLOATS)
    for name in _SAID:
        part(weight, parts, name, "U8", "I32", "I64")
    together = "zeros and scales" in parts
    for role in ("zeros and scales",) if together else ("zeros", "scales"):
        part(weight, parts, role, *FLOATS)

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if any(int(held[name]) for name in ("quant_scale", "quant_zero") if name in held):
            raise refusal(f"{weight}: its scales or zero points are quantised, which is not read")
        values = _grouped(numbers.name, held).to(torch.float32)
        zeros, scales = held["zeros and scales"] if together else (held["zeros"], held["scales"])
        expected = (values.shape[0], 1) if int(held["axis"]) == 1 else (1, values.shape[1])
        for found in (zeros, scales):
            if found.numel() != 1 and tuple(found.shape) != expected:
                raise refusal(f"{weight}: its scales or zero points fit no groups", AGAIN)
        opened = (values - zeros.to(torch.float32)) * scales.to(torch.float32)
        return opened.reshape([int(size) for size in held["shape"]])

    return rule


def _grouped(name: str, held: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The numbers as HQQ groups them: [groups, size] on axis 1, [size, groups] on axis 0."""
    packing = "".join(map(chr, held["packing"].tolist()))
    if packing not in PACKINGS:
        raise refusal(f"{name} is packed as {packing!r}; only {', '.join(PACKINGS)} can be read")
    bits, many = PACKINGS[packing]
    words = held["numbers"].contiguous()
    if words.is_floating_point():
        words = words.view(torch.int32 if bits == 3 else torch.uint8)
    size, total = int(held["group_size"]), math.prod(held["shape"].tolist())
    groups = (total // size, size) if int(held["axis"]) == 1 else (size, total // size)
    if size < 1 or total % size or tuple(words.shape) != (-(-groups[0] // many), groups[1]):
        raise refusal(
            f"{name} does not hold {total} numbers of {bits} bits in groups of {size}", AGAIN
        )
    places = [(words >> (bits * (many - 1 - place))) & ((1 << bits) - 1) for place in range(many)]
    return torch.cat(places)[: groups[0]]
