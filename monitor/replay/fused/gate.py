"""Gated feed-forward layers whose activation and gate have no pass of their own.

Legend: t = tokens, d = width of the model, f = of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

from monitor.replay.fused.layer import Layer, Then, activated, fits, product, product_times
from monitor.replay.fused.piece import Piece


class Gate(Piece):
    """``down(then(gate(x)) * up(x))``."""

    def __init__(
        self, stock: nn.Module, gate: nn.Linear, up: nn.Linear, down: nn.Linear, then: Then
    ) -> None:
        super().__init__(stock)
        self.layers = Layer(gate), Layer(up), Layer(down)
        self.then: Then = then

    @property
    def width(self) -> int:
        """Of what it is given."""
        return self.layers[0].linear.in_features

    def made(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = self.layers
        return product(product_times(x, up, product(x, gate, self.then)), down)


def gates(stock: nn.Module) -> Iterator[Gate]:
    """What may stand in the place of ``stock``, by its shape: two layers out, one back, and an activation."""
    parts = list(stock.children())
    linear = [part for part in parts if isinstance(part, nn.Linear) and fits(part)]
    others = [part for part in parts if part not in linear]
    if len(linear) != 3 or len(others) != 1 or list(others[0].parameters()):
        return
    first, second, down = linear
    out = (first.in_features, first.out_features)
    back = (down.out_features, down.in_features)
    then = known_activation(others[0])
    if out == back == (second.in_features, second.out_features) and then is not None:
        yield Gate(stock, first, second, down, then)
        yield Gate(stock, second, first, down, then)


def known_activation(stock: nn.Module) -> Then | None:
    """The name of the function that ``stock`` computes; None for one that is not known here."""
    points = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64)
    try:
        values = stock(points.clone())
    except Exception:
        return None  # it takes something else than numbers
    for then in get_args(Then):
        if torch.allclose(activated(points.clone(), then), values, rtol=1e-6, atol=1e-9):
            known: Then = then
            return known
    return None
