"""A linear layer by oneDNN's own kernel, without the copies and the slower library on the way to it.

Legend: t = tokens, d_in, d_out = widths.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import nn
from torch.nn import functional

ROW: Final = 2_048
"""Tokens of the rows that packed weights are laid out for; with others they multiply as well."""
Then = Literal["none", "swish", "gelu", "gelu_tanh", "relu"]
"""What is made of each number of a product while it is still in the registers."""


def fits(linear: nn.Module) -> bool:
    """Whether it is a linear layer as torch has it: an adapter's or a quantiser's is a class of its own."""
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


class Layer:
    """A linear layer, and its weights once more in the order in which oneDNN multiplies, where they are `packed`.

    Without, every product of a row puts them in that order first: 4 to 8 % of its time. What comes out is the same.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self._packed: torch.Tensor | None = None
        self._packed_from: tuple[int, int] | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The packed one, unless somebody has written to the layer's own since, or moved it."""
        if self._packed is not None and self._packed_from == _state(self.linear.weight):
            return self._packed
        return self.linear.weight

    def packed(self, room: int) -> int:
        """Pack it if that takes no more than ``room`` bytes, and say how many it takes: 0 if it was not done."""
        weight = self.linear.weight
        state = _state(weight)
        if weight.nbytes > room or state is None or not by_onednn(weight):
            return 0
        with torch.inference_mode():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROW)
        self._packed_from = state
        return weight.nbytes


def _state(weight: torch.Tensor) -> tuple[int, int] | None:
    """Changes when ``weight`` is written to; None where torch does not count that."""
    return None if weight.is_inference() else (weight.data_ptr(), weight._version)


def product(x: torch.Tensor, layer: Layer, then: Then = "none") -> torch.Tensor:
    """``then(x Wᵀ + b)`` [..., t, d_out] of ``x`` [..., t, d_in], nobody else's memory."""
    linear = layer.linear
    if by_onednn(x):
        name, algorithm = ("gelu", "tanh") if then == "gelu_tanh" else (then, "")
        if then == "gelu":
            algorithm = "none"
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, layer.weight, linear.bias, name, [], algorithm
        )
        return result
    return activated(functional.linear(x, linear.weight, linear.bias), then)


def product_times(x: torch.Tensor, layer: Layer, factor: torch.Tensor) -> torch.Tensor:
    """``(x Wᵀ + b) * factor`` [..., t, d_out]; ``factor`` may be overwritten."""
    linear = layer.linear
    if by_onednn(x):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, factor, layer.weight, linear.bias, "mul"
        )
        return result
    return factor.mul_(functional.linear(x, linear.weight, linear.bias))


def activated(x: torch.Tensor, then: Then) -> torch.Tensor:
    """``then(x)``, in the memory of ``x`` where torch has it so."""
    if then == "swish":
        return functional.silu(x, inplace=True)
    if then == "relu":
        return functional.relu_(x)
    if then == "none":
        return x
    return functional.gelu(x, approximate="tanh" if then == "gelu_tanh" else "none")


def by_onednn(x: torch.Tensor) -> bool:
    """Whether oneDNN multiplies numbers like ``x``."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )
