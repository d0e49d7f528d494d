"""Attention around `packed_attention`: projections, head norms and rotation without needless copies.

Legend: t = tokens, h = query heads, g = key/value heads, e = head width, r = numbers of a head that are rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from monitor.replay.attention import is_packed, packed_attention
from monitor.replay.fused.layer import Layer, fits, product
from monitor.replay.fused.piece import Piece

LAYERS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """How an attention module was seen to call its attention: its width of heads, and options of its own."""

    width: int
    options: dict[str, Any]


class Heads(Piece):
    """In the place of an attention module with rotary positions, whose layers it shares.

    A pass that is no packed row is left to the module itself.
    """

    def __init__(
        self, stock: nn.Module, observed: Observed, query_norm: nn.Module, key_norm: nn.Module
    ) -> None:
        super().__init__(stock)
        self.observed = observed
        self.query_norm, self.key_norm = query_norm, key_norm
        self.layers = tuple(Layer(getattr(stock, name)) for name in LAYERS)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: object = None,
        **given: Any,
    ) -> tuple[torch.Tensor, None]:
        stock: Any = self.stock
        if not is_packed() or past_key_values is not None or position_embeddings is None:
            left: tuple[torch.Tensor, None] = stock(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **given,
            )
            return left
        shape = (*hidden_states.shape[:-1], -1, self.observed.width)
        *into, back = self.layers
        query, key, value = (product(hidden_states, layer).view(shape) for layer in into)
        cos, sin = (one.unsqueeze(-2) for one in position_embeddings)
        query = rotated(self.query_norm(query), cos, sin)
        key = rotated(self.key_norm(key), cos, sin)
        result, weights = packed_attention(
            stock,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            **(given | self.observed.options),
        )
        return product(result.flatten(-2), back), weights


def attends(stock: nn.Module) -> bool:
    """Whether ``stock`` has the four layers of an attention module, as torch has them."""
    parts = dict(stock.named_children())
    return all(name in parts and fits(parts[name]) for name in LAYERS)


def heads(stock: nn.Module, observed: Observed, replaced: Mapping[nn.Module, nn.Module]) -> Heads:
    """What may stand in the place of ``stock``, which attends: with a norm of heads or none.

    ``replaced`` are the pieces that stand in the places of its parts.
    """
    parts = dict(stock.named_children())
    norms = [
        parts.get(f"{end}_norm", parts.get(f"{end}_layernorm", nn.Identity())) for end in ("q", "k")
    ]
    return Heads(stock, observed, *(replaced.get(norm, norm) for norm in norms))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``x`` [t, h, e], its first r numbers turned: the i-th and the (i + r/2)-th are a pair; cos, sin [t, 1, r]."""
    width, half = cos.shape[-1], cos.shape[-1] // 2
    turning = x[..., :width]
    first, second = turning[..., :half], turning[..., half:]
    result = torch.empty_like(x)
    torch.mul(turning, cos, out=result[..., :width])
    result[..., :half].addcmul_(second, sin[..., :half], value=-1)
    result[..., half:width].addcmul_(first, sin[..., half:])
    if width < x.shape[-1]:
        result[..., width:] = x[..., width:]
    return result
