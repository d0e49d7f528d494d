"""Root-mean-square norms with fewer passes over memory.

Legend: t = tokens, d = width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from monitor.replay.fused.piece import Piece


class Norm(Piece):
    """``x / sqrt(mean(x²) + eps) * scale`` over the last axis [d]."""

    def __init__(self, stock: nn.Module, scale: torch.Tensor, eps: float) -> None:
        super().__init__(stock)
        self.scale = scale
        self.eps = eps

    @property
    def width(self) -> int:
        """Of what it is given."""
        return self.scale.numel()

    def made(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = torch.linalg.vecdot(wide, wide).unsqueeze_(-1)
        factor = squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        normed = wide * factor if wide is x else wide.mul_(factor)
        # Rounded before it is scaled where the scale is as coarse, as the modules do it.
        return normed.to(self.scale.dtype).mul_(self.scale).to(x.dtype)


def norms(stock: nn.Module) -> Iterator[Norm]:
    """What may stand in the place of ``stock``, by its shape: one weight for each number, and an epsilon.

    Some architectures store the scale, others what it has above one; which, only the module itself says.
    """
    eps = [value for name, value in vars(stock).items() if "eps" in name]
    weights = dict(stock.named_parameters())
    if len(eps) == 1 and isinstance(eps[0], float) and weights.keys() == {"weight"}:
        [weight] = weights.values()
        if weight.ndim == 1:
            yield Norm(stock, weight.detach(), eps[0])
            wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            yield Norm(stock, 1.0 + wide, eps[0])
