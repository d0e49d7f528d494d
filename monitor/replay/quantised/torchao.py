"""torchao, as transformers saves it to safetensors: integers and FP8, scaled in tensors, rows, groups or blocks.

A weight ``NAME.weight`` is stored as ``NAME._weight_qdata``, ``NAME._weight_scale`` …; the file's header says of what kind it
is. W = (q - zero point) * scale. In an ``Int4Tensor`` two signed numbers stand in a byte, the low half first, scales and zero
points are [groups, out], and W = q * scale + zero point. What the library multiplies a module's inputs with belongs to W.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeGuard

import torch

from monitor.replay.quantised.form import FLOATS, Format, Rule, Stored, part, refusal, require_shape

AGAIN: Final = "save the model again with a current torchao and transformers, or give a copy in bfloat16 or float32"
_ACTIVATIONS: Final = re.compile(r"(Int8|Float8)(?:Dynamic|Static)Activation")
_NO_WEIGHTS: Final = frozenset({"FqnToConfig", "ModuleFqnToConfig", "Float8MMConfig"})
"""Configurations that say nothing about a precision themselves."""


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: torchao``."""
    names = sorted(set(_names(config.get("quant_type"))))
    if not names:
        raise refusal("quantization_config.quant_type names no configuration of torchao", AGAIN)
    kinds = {kind.lower() for name in names for kind in _ACTIVATIONS.findall(name)}
    return Format(
        weights="torchao " + " and ".join(names),
        activations=", ".join(f"{kind} activations" for kind in sorted(kinds)),
        ending=".weight",
        parts={
            "._weight_qdata": "numbers",
            "._weight_scale": "scales",
            "._weight_zero_point": "zeros",
            "._weight_act_pre_scale": "inputs",
        },
        ignored=("._weight_act_quant_scale", "._weight_act_quant_zero_point"),
        rule=_rule,
    )


def _names(given: Any) -> Iterator[str]:
    """What torchao calls the precisions in ``given``."""
    if isinstance(given, Mapping):
        name = given.get("_type")
        if isinstance(name, str) and name.endswith("Config") and name not in _NO_WEIGHTS:
            yield name.removesuffix("Config")
        for value in given.values():
            yield from _names(value)


def _rule(weight: str, parts: Mapping[str, Stored]) -> Rule:
    kind, attributes = _said(weight, parts)
    if kind not in KINDS:
        raise refusal(
            f"{weight} is laid out for one kind of hardware ({kind}); only {', '.join(KINDS)} can be read"
        )
    numbers = parts.get("numbers")
    if numbers is not None and len(numbers.shape) != 2:
        raise refusal(f"{numbers.name} has {len(numbers.shape)} dimensions; only two can be read")
    opened, columns = KINDS[kind](weight, parts, attributes)
    if "inputs" not in parts:
        return opened
    inputs = part(weight, parts, "inputs", *FLOATS)
    if inputs.shape not in ((columns,), (1, columns)):
        require_shape(inputs, (columns,))
    return lambda held: opened(held) * held["inputs"].to(torch.float32).reshape(1, -1)


def _said(weight: str, parts: Mapping[str, Stored]) -> tuple[str, Mapping[str, Any]]:
    """Kind and attributes of a weight, by the header of its file."""
    note = next(iter(parts.values())).note
    try:
        read_note: Any = json.loads(note)
        return str(read_note["_type"]), dict(read_note["_data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise refusal(
            f"{weight}: the header of its file does not say how it is stored", AGAIN
        ) from None


def _in_blocks(
    weight: str, parts: Mapping[str, Stored], attributes: Mapping[str, Any]
) -> tuple[Rule, int]:
    """One number for each weight, in int8, and a scale for each block of them."""
    numbers = part(weight, parts, "numbers", "I8")
    scales = part(weight, parts, "scales", *FLOATS)
    _require_blocks(scales, numbers.shape, attributes.get("block_size"))
    if "zeros" in parts:
        require_shape(part(weight, parts, "zeros", "I8", *FLOATS), scales.shape)

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = held["numbers"].to(torch.float32)
        if "zeros" in held:
            values = values - _spread(held["zeros"], numbers.shape)
        return values * _spread(held["scales"], numbers.shape)

    return rule, numbers.shape[1]


def _float8(
    weight: str, parts: Mapping[str, Stored], attributes: Mapping[str, Any]
) -> tuple[Rule, int]:
    numbers = part(weight, parts, "numbers", "F8_E4M3")
    scales = part(weight, parts, "scales", *FLOATS)
    if "zeros" in parts:
        raise refusal(f"{parts['zeros'].name}: FP8 with zero points is not read")
    if scales.shape not in ((), (1,)):
        _require_blocks(scales, numbers.shape, attributes.get("block_size"))

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return held["numbers"].to(torch.float32) * _spread(held["scales"], numbers.shape)

    return rule, numbers.shape[1]


def _int4(
    weight: str, parts: Mapping[str, Stored], attributes: Mapping[str, Any]
) -> tuple[Rule, int]:
    numbers = part(weight, parts, "numbers", "I8", "U8")
    rows, columns = numbers.shape[0], 2 * numbers.shape[1]
    block = attributes.get("block_size")
    size = block[1] if _is_block(block) and block[0] == 1 else 0
    if not size or columns % size:
        raise refusal(f"{numbers.name}: {columns} columns are no groups of {block!r}", AGAIN)
    for role in ("scales", "zeros"):
        require_shape(part(weight, parts, role, *FLOATS), (columns // size, rows))

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        packed = held["numbers"].view(torch.uint8).to(torch.int32)
        values = torch.stack((packed & 0xF, packed >> 4), dim=-1).reshape(rows, columns)
        values = torch.where(values > 7, values - 16, values).to(torch.float32)
        factor, shift = (_spread(held[role].T, values.shape) for role in ("scales", "zeros"))
        return values * factor + shift

    return rule, columns


Kind = Callable[[str, Mapping[str, Stored], Mapping[str, Any]], tuple[Rule, int]]
KINDS: Final[Mapping[str, Kind]] = {
    "Int8Tensor": _in_blocks,
    "IntxUnpackedToInt8Tensor": _in_blocks,
    "Float8Tensor": _float8,
    "Int4Tensor": _int4,
}
"""By what torchao calls them: from a weight's parts and attributes to its rule and its columns."""


def _is_block(given: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(given, list)
        and len(given) == 2
        and all(isinstance(size, int) and size > 0 for size in given)
    )


def _require_blocks(scales: Stored, shape: tuple[int, ...], block: Any) -> None:
    """Refuse scales that are not one for each ``block`` of a weight of ``shape``."""
    if not _is_block(block) or any(size % of for size, of in zip(shape, block, strict=True)):
        raise refusal(f"{scales.name}: {list(shape)} is no grid of blocks of {block!r}", AGAIN)
    require_shape(scales, [size // of for size, of in zip(shape, block, strict=True)])


def _spread(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """One of ``values`` for each number of a weight [m, n]: one for all, or one for each of equal blocks."""
    values = values.to(torch.float32)
    if values.numel() == 1:
        return values.reshape(1, 1)
    high, wide = (size // of for size, of in zip(shape, values.shape, strict=True))
    return values.repeat_interleave(high, dim=0).repeat_interleave(wide, dim=1)
