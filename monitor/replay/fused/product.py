"""A linear layer by oneDNN's own kernel, without the copies and the slower library on the way to it.

Legend: t = tokens, d_in, d_out = widths.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from monitor.replay.fused.piece import Piece

Then = Literal["none", "swish", "gelu", "gelu_tanh", "relu"]
"""What is made of each number of a product while it is still in the registers."""


def fits(linear: nn.Module) -> bool:
    """Whether it is a linear layer as torch has it: an adapter's or a quantiser's is a class of its own."""
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


def product(x: torch.Tensor, linear: nn.Linear, then: Then = "none") -> torch.Tensor:
    """``then(x Wᵀ + b)`` [..., t, d_out] of ``x`` [..., t, d_in], nobody else's memory."""
    if _by_onednn(x):
        name, algorithm = ("gelu", "tanh") if then == "gelu_tanh" else (then, "")
        if then == "gelu":
            algorithm = "none"
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, linear.weight, linear.bias, name, [], algorithm
        )
        return result
    return activated(functional.linear(x, linear.weight, linear.bias), then)


def product_times(x: torch.Tensor, linear: nn.Linear, factor: torch.Tensor) -> torch.Tensor:
    """``(x Wᵀ + b) * factor`` [..., t, d_out]; ``factor`` may be overwritten."""
    if _by_onednn(x):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, factor, linear.weight, linear.bias, "mul"
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


def _by_onednn(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class Product(Piece):
    """In the place of a linear layer, whose weights it shares."""

    stock: nn.Linear

    @property
    def width(self) -> int:
        """Of what it is given."""
        return self.stock.in_features

    def made(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.stock)
