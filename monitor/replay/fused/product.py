"""A linear layer whose product is oneDNN's."""

from __future__ import annotations

import torch
from torch import nn

from monitor.replay.fused.layer import Layer, product
from monitor.replay.fused.piece import Piece


class Product(Piece):
    """In the place of a linear layer, whose weights it shares."""

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__(stock)
        self.layers = (Layer(stock),)

    @property
    def width(self) -> int:
        """Of what it is given."""
        return self.layers[0].linear.in_features

    def made(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.layers[0])
