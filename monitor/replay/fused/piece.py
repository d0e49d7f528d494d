"""What stands in the place of a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from monitor.replay.fused.layer import Layer


class Piece(nn.Module):
    """In the place of ``stock``, which is asked for what this does not know.

    Parents look at ``weight.dtype`` and the like, and some hand more than one tensor over.
    """

    layers: tuple[Layer, ...] = ()
    """Those that it multiplies with."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("stock"), name)

    def forward(self, *given: Any, **named: Any) -> Any:
        """``made`` of one tensor; what the module makes of anything else."""
        if len(given) == 1 and not named:
            return self.made(given[0])
        return self.stock(*given, **named)

    def made(self, x: torch.Tensor) -> torch.Tensor:
        """What ``stock`` makes of ``x``."""
        raise NotImplementedError
