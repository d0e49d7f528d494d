"""Attention over packed rows, written out."""

from __future__ import annotations

import torch

from monitor.replay.variable import Layout


def by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
    late: int = 0,
) -> torch.Tensor:
    """`VariableKernel` to the letter. ``late``: how many keys behind its own a query may see."""
    groups = query.shape[1] // key.shape[1]
    parts = []
    for segment in range(len(layout.query_starts) - 1):
        q = query[layout.query_starts[segment] : layout.query_starts[segment + 1]]
        here = slice(int(layout.key_starts[segment]), int(layout.key_starts[segment + 1]))
        k = key[here].repeat_interleave(groups, dim=1)
        v = value[here].repeat_interleave(groups, dim=1)
        own = torch.arange(len(q))[:, None] + len(k) - len(q)
        seen = torch.arange(len(k))[None] <= own + late
        if window is not None:
            seen &= torch.arange(len(k))[None] > own - window
        scores = torch.einsum("qhe,khe->hqk", q, k) * (scaling or q.shape[2] ** -0.5)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        parts.append(torch.einsum("hqk,khe->qhe", weights, v))
    return torch.cat(parts)
