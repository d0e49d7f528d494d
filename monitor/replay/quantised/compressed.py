"""compressed-tensors, as llm-compressor writes it: FP8, W8A8, W4A16 and NVFP4, by groups of modules.

W = (weight - zero point) * scale. Packed integers of b bits are stored with 2^(b-1) added, eight of
four bits in an int32, lowest bits first; zero points are packed alike, along the rows. In NVFP4 a
scale is itself stored as a product with the weight's ``weight_global_scale``, which divides it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from monitor.replay.quantised.form import (
    FLOATS,
    Format,
    Rule,
    Stored,
    fp4_values,
    part,
    refusal,
    require_shape,
    scaled_by_blocks,
    scaled_by_groups,
    unpacked,
    whole_number,
)

FORMATS: Final = (
    *("float-quantized", "int-quantized", "naive-quantized", "pack-quantized"),
    *("nvfp4-pack-quantized", "mixed-precision"),
)
PACKED_BITS: Final = (2, 4, 8)
"""Numbers of bits that do not straddle two words; for others the library's own layout has changed."""
STRATEGIES: Final = ("tensor", "channel", "group", "tensor_group", "block")
NVFP4_GROUP: Final = 16
_PARTS: Final = {
    ".weight_packed": "packed",
    ".weight_scale": "scale",
    ".weight_zero_point": "zeros",
    ".weight_shape": "shape",
    ".weight_global_scale": "global",
}
_ACTIVATIONS: Final = (
    *(".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale"),
    *(".output_zero_point", ".q_scale", ".k_scale", ".v_scale"),
    *(".q_zero_point", ".k_zero_point", ".v_zero_point"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Modules whose weights are stored alike."""

    targets: Sequence[str]
    bits: int
    floats: bool
    strategy: str
    size: int
    block: tuple[int, int]
    symmetric: bool

    @property
    def name(self) -> str:
        kind = ("fp" if self.floats else "int") + str(self.bits)
        within = {
            "tensor": "whole tensors",
            "channel": "rows",
            "block": "blocks of {} x {}".format(*self.block),
        }.get(self.strategy, f"groups of {self.size}")
        return f"{kind} weights scaled in {within}"


def read(config: Mapping[str, Any], _architecture: str) -> Format:
    """The format of a checkpoint with ``quant_method: compressed-tensors``."""
    given = config.get("config_groups")
    if not isinstance(given, Mapping) or not given:
        raise refusal("quantization_config.config_groups says nothing about the weights")
    _refuse(config)
    groups = []
    for name, group in given.items():
        _known_format(group.get("format"), f"config_groups.{name}.format")
        groups.append(_group(str(name), group))
    kinds = sorted(
        {_activations(group.get("input_activations")) for group in given.values()} - {""}
    )
    if config.get("kv_cache_scheme"):
        kinds.append("quantised keys and values")
    return Format(
        weights=" and ".join(dict.fromkeys(group.name for group in groups)),
        activations=", ".join(kinds),
        ending=".weight",
        parts=_PARTS,
        ignored=_ACTIVATIONS,
        rule=lambda weight, parts: _rule(weight, parts, groups),
    )


def _refuse(config: Mapping[str, Any]) -> None:
    """What changes the weights beside their quantisation."""
    _known_format(config.get("format"), "format")
    sparse = config.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense":
        raise refusal(f"the weights are stored sparsely ({sparse['format']}), which is not read")
    if (config.get("transform_config") or {}).get("config_groups"):
        raise refusal("the weights are rotated (transform_config), which is not read")


def _known_format(found: object, field: str) -> None:
    if found is not None and found not in FORMATS:
        raise refusal(
            f"quantization_config.{field} is {found!r}; only {', '.join(FORMATS)} can be read"
        )


def _group(name: str, given: Mapping[str, Any]) -> _Group:
    weights = given.get("weights")
    targets = given.get("targets")
    if not isinstance(weights, Mapping) or not isinstance(targets, list):
        raise refusal(f"quantization_config.config_groups.{name} names no weights or no targets")
    strategy = weights.get("strategy") or (
        "group" if (weights.get("group_size") or -1) > 0 else "tensor"
    )
    if strategy not in STRATEGIES:
        raise refusal(
            f"quantization_config.config_groups.{name}: weights are scaled by {strategy!r}"
        )
    size = whole_number(weights, "group_size") if "group" in strategy else 0
    block = tuple(weights.get("block_structure") or (0, 0))
    if strategy == "block" and (
        len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block)
    ):
        raise refusal(f"quantization_config.config_groups.{name}: block_structure is {block!r}")
    return _Group(
        targets=targets,
        bits=whole_number(weights, "num_bits"),
        floats=weights.get("type", "int") == "float",
        strategy=strategy,
        size=size,
        block=(block[0], block[1]),
        symmetric=bool(weights.get("symmetric", True)),
    )


def _activations(given: Mapping[str, Any] | None) -> str:
    if not given:
        return ""
    return f"{'fp' if given.get('type', 'int') == 'float' else 'int'}{given.get('num_bits', 8)} activations"


def _of(weight: str, groups: Sequence[_Group]) -> _Group:
    """The group of a weight's module: by its name or a pattern, else by the kind of module."""
    module = weight.removesuffix(".weight")
    named = [group for group in groups if any(_matches(target, module) for target in group.targets)]
    found = named or [group for group in groups if "Linear" in group.targets]
    if len({(g.bits, g.floats, g.strategy, g.size, g.block, g.symmetric) for g in found}) != 1:
        raise refusal(f"{weight} belongs to {len(found)} groups of quantization_config, not to one")
    return found[0]


def _matches(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target == module


def _rule(weight: str, parts: Mapping[str, Stored], groups: Sequence[_Group]) -> Rule:
    group = _of(weight, groups)
    if "packed" not in parts:
        return _plain(weight, parts, group)
    if "global" in parts or group.floats:
        return _nvfp4(weight, parts, group)
    return _packed(weight, parts, group)


def _scale_shape(group: _Group, scale: Stored, rows: int, columns: int) -> None:
    """Refuse a scale that is none of the strategy for a weight [rows, columns]."""
    if group.strategy == "tensor":
        if any(size != 1 for size in scale.shape):
            require_shape(scale, (1,))
    elif group.strategy == "channel":
        require_shape(scale, (rows, 1))
    elif group.strategy == "block":
        high, wide = group.block
        require_shape(scale, (-(-rows // high), -(-columns // wide)))
    else:
        if group.size < 1 or columns % group.size:
            raise refusal(f"{scale.name}: {columns} columns are no groups of {group.size}")
        require_shape(scale, (rows, columns // group.size))


def _scaled(
    group: _Group, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    if group.strategy == "block":
        return scaled_by_blocks(numbers, scales, *group.block)
    if group.strategy == "tensor":
        scales = scales.reshape(1, 1).expand(numbers.shape[0], 1)
        zeros = None if zeros is None else zeros.reshape(1, 1).expand(numbers.shape[0], 1)
    return scaled_by_groups(numbers, scales, zeros)


def _plain(weight: str, parts: Mapping[str, Stored], group: _Group) -> Rule:
    """One number of eight bits for each weight."""
    stored = part(weight, parts, "weight", "F8_E4M3" if group.floats else "I8")
    scale = part(weight, parts, "scale", *FLOATS)
    if len(stored.shape) != 2:
        raise refusal(f"{stored.name} has {len(stored.shape)} dimensions; only two can be read")
    _scale_shape(group, scale, *stored.shape)
    if group.symmetric:
        return lambda held: _scaled(group, held["weight"], held["scale"], None)
    zeros = part(weight, parts, "zeros", "I8")
    require_shape(zeros, scale.shape)
    if group.strategy == "block":
        raise refusal(f"{weight}: blocks with zero points are not read")
    return lambda held: _scaled(group, held["weight"], held["scale"], held["zeros"])


def _packed(weight: str, parts: Mapping[str, Stored], group: _Group) -> Rule:
    """Integers in int32 words; the weight's shape is a tensor beside them."""
    bits = group.bits
    if bits not in PACKED_BITS or group.strategy == "block":
        raise refusal(f"{weight}: packed integers of {bits} bits by {group.strategy} are not read")
    packed = part(weight, parts, "packed", "I32")
    scale = part(weight, parts, "scale", *FLOATS)
    require_shape(part(weight, parts, "shape", "I64", "I32"), (2,))
    if len(packed.shape) != 2:
        raise refusal(f"{packed.name} has {len(packed.shape)} dimensions; only two can be read")
    if not group.symmetric and group.strategy != "tensor":
        part(weight, parts, "zeros", "I32")
    elif not group.symmetric:
        raise refusal(f"{weight}: one zero point for a whole tensor is not read")
    offset = 1 << (bits - 1)

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        rows, columns = (int(size) for size in held["shape"].tolist())
        if packed.shape != (rows, -(-columns * bits // 32)):
            raise refusal(f"{packed.name} does not hold {rows} x {columns} numbers of {bits} bits")
        _scale_shape(group, scale, rows, columns)
        numbers = unpacked(held["packed"], bits)[:, :columns] - offset
        zeros = None
        if not group.symmetric:
            zeros = unpacked(held["zeros"].T.contiguous(), bits).T[:rows] - offset
        return _scaled(group, numbers, held["scale"], zeros)

    return rule


def _nvfp4(weight: str, parts: Mapping[str, Stored], group: _Group) -> Rule:
    """Two E2M1 values in a byte; a scale for sixteen of them, over one for the weight."""
    if not group.floats or group.bits != 4 or group.size != NVFP4_GROUP or not group.symmetric:
        raise refusal(
            f"{weight}: packed floats of {group.bits} bits in groups of {group.size} are not read"
        )
    packed = part(weight, parts, "packed", "U8")
    scale = part(weight, parts, "scale", "F8_E4M3")
    whole = part(weight, parts, "global", "F32")
    if len(packed.shape) != 2 or any(size != 1 for size in whole.shape):
        raise refusal(f"{weight}: its parts have the shapes {packed.shape} and {whole.shape}")
    rows, half = packed.shape
    _scale_shape(group, scale, rows, 2 * half)

    def rule(held: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scales = held["scale"].to(torch.float32) / held["global"].reshape(())
        return scaled_by_groups(fp4_values(held["packed"]), scales, None)

    return rule
