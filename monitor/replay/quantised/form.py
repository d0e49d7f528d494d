"""What a quantised format says about its tensors, and the values that several formats store alike.

Legend: a *weight* is what the model has, its *parts* are the tensors that a checkpoint stores for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from monitor.errors import ModelError

Rule = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""From the parts of one weight, by role, to the weight in float32."""
HINT: Final = "give a copy of the model in bfloat16 or float32, or in a precision of docs/replay.md"
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
FP4: Final = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
    -0.0,
    -0.5,
    -1.0,
    -1.5,
    -2.0,
    -3.0,
    -4.0,
    -6.0,
)
"""The sixteen values of E2M1, by their bits (OCP Microscaling Formats, table 6)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, not read: its name, type (as safetensors spells it) and shape.

    ``note`` is what the headers of the files say of its weight; empty where they say nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a quantiser stores the weights of one checkpoint.

    ``weights`` and ``activations`` name the served precision, for people and the lineage; activations
    that are not quantised have none. ``parts`` gives the role of a tensor by the end of its name, and
    ``ending`` stands there in the name of the weight; a tensor that has the weight's own name is its
    part ``weight``. Where other tensors of a model may end like parts, ``lead`` is the end of the one that
    every quantised weight has. Tensors that end with one of ``ignored`` belong to activations. ``rule`` gets the
    parts of a weight and raises `ModelError` for those that it cannot read.
    """

    weights: str
    activations: str = ""
    ending: str
    parts: Mapping[str, str]
    lead: str = ""
    ignored: tuple[str, ...] = ()
    rule: Callable[[str, Mapping[str, Stored]], Rule]

    @property
    def served(self) -> str:
        """The precision that the model is served in."""
        return self.weights + (f", {self.activations}" if self.activations else "")


def refusal(what: str, hint: str = HINT) -> ModelError:
    return ModelError(what, hint=hint)


def part(weight: str, parts: Mapping[str, Stored], role: str, *dtypes: str) -> Stored:
    """The part of ``role``, stored in one of ``dtypes``."""
    found = parts.get(role)
    if found is None:
        raise refusal(f"{weight}: the checkpoint lacks its part {role!r}", "fetch the model again")
    if found.dtype not in dtypes:
        raise refusal(
            f"{found.name} is stored in {found.dtype}; only {', '.join(dtypes)} can be read"
        )
    return found


def require_shape(found: Stored, expected: Sequence[int]) -> None:
    if found.shape != tuple(expected):
        raise refusal(
            f"{found.name} has the shape {list(found.shape)}, and {list(expected)} was expected",
            "fetch the model again",
        )


def whole_number(config: Mapping[str, Any], name: str, allowed: Sequence[int] | None = None) -> int:
    """The field ``name`` of a quantisation's configuration; ``allowed`` are the values that can be read."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise refusal(f"quantization_config.{name} is {value!r}, and no whole number")
    if allowed is not None and value not in allowed:
        raise refusal(f"quantization_config.{name} is {value}; only {list(allowed)} can be read")
    return value


def unpacked(words: torch.Tensor, bits: int, order: Sequence[int] | None = None) -> torch.Tensor:
    """Unsigned numbers of ``bits`` out of int32 ``words`` [..., n], lowest bits first: [..., n * 32 / bits].

    ``order[p]`` is the place among its word's numbers of the one that stands at bit ``p * bits``.
    """
    many = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    if order is not None:
        shifts = shifts[torch.tensor(order).argsort()]
    numbers = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return numbers.reshape(*words.shape[:-1], words.shape[-1] * many)


def fp4_values(packed: torch.Tensor) -> torch.Tensor:
    """E2M1 values of bytes [..., n], the low half of each byte first: float32 [..., 2 n]."""
    table = torch.tensor(FP4)
    pairs = torch.stack((table[(packed & 0xF).int()], table[(packed >> 4).int()]), dim=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def scaled_by_blocks(
    weight: torch.Tensor, scales: torch.Tensor, rows: int, columns: int
) -> torch.Tensor:
    """``weight`` [..., m, n] in float32 times one scale for each block; the last blocks may be cut short."""
    result = weight.to(torch.float32)
    wide = scales.to(torch.float32).repeat_interleave(columns, dim=-1)[..., : weight.shape[-1]]
    for index in range(scales.shape[-2]):
        result[..., index * rows : (index + 1) * rows, :] *= wide[..., index : index + 1, :]
    return result


def scaled_by_groups(
    numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """``(numbers - zeros) * scales``: numbers [m, n], scales and zeros [m, g] for n / g columns each."""
    grouped = numbers.to(torch.float32).reshape(*scales.shape, -1)
    if zeros is not None:
        grouped = grouped - zeros.to(torch.float32).unsqueeze(-1)
    return (grouped * scales.to(torch.float32).unsqueeze(-1)).reshape(numbers.shape)
