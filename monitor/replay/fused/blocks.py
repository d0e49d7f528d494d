"""Attention over a packed row on a CPU: matrix products of a few queries at a time with every key that they see.

Legend: t = tokens of the row, u = keys of all its segments, n = queries of a block, c = keys they see, h = query
heads, g = key/value heads, r = h / g, e = head width.

torch's own kernel for a CPU takes one head at a time, and a boolean mask wherever a segment continues a prefix. Here
the r heads of a group are rows of one product, and only keys behind a block's first query are masked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch

from monitor.replay.variable import Layout

QUERIES: Final = 64
"""Of a block: fewer make the products small, more compute what the causal rule throws away."""
THREADS: Final = 2
"""With more it was not measured: the products are small, and torch's own kernel has a task for every head."""
SCORES: Final = 2**18
"""Numbers of attention that are held at once, but at least one group's: what a core's cache has room for."""


def by_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """A `VariableKernel`. Scores and softmax are in float32 or wider; shares are rounded to the dtype of ``value``."""
    tokens, heads, width = query.shape
    groups = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    # The heads of a group side by side behind each token, so that any stretch of tokens is one matrix.
    queries = query.new_empty(groups, tokens, heads // groups, width, dtype=wide)
    torch.mul(
        query.view(tokens, groups, -1, width).transpose(0, 1),
        width**-0.5 if scaling is None else scaling,
        out=queries,
    )
    keys, values = key.permute(1, 2, 0).to(wide), value.transpose(0, 1)
    output = value.new_empty(tokens, groups, heads // groups, value.shape[2])
    starts = zip(layout.query_starts.tolist(), layout.key_starts.tolist(), strict=True)
    begun, begun_keys = next(starts)
    for end, end_keys in starts:
        before = end_keys - begun_keys - (end - begun)
        for start in range(begun, end, QUERIES):
            stop = min(start + QUERIES, end)
            last = before + stop - begun
            first = 0 if window is None else max(0, last - (stop - start) - window + 1)
            seen = slice(begun_keys + first, begun_keys + last)
            _block(
                queries[:, start:stop],
                keys[:, :, seen],
                values[:, seen],
                output[start:stop].transpose(0, 1),
                window,
            )
        begun, begun_keys = end, end_keys
    return output.flatten(1, 2)


def _block(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    into: torch.Tensor,
    window: int | None,
) -> None:
    """Attention of ``queries`` [g, n, r, e] over ``keys`` [g, e, c], ``values`` [g, c, e]; the last query stands at the last key."""
    groups, n, each, _ = queries.shape
    seen = keys.shape[2]
    at_once = max(1, SCORES // (n * each * seen))
    for first in range(0, groups, at_once):
        some = slice(first, first + at_once)
        scores = torch.bmm(queries[some].flatten(1, 2), keys[some])
        weights = scores.view(-1, n, each, seen)
        weights[..., seen - n :] += _hidden(n, 1, scores.dtype)
        if window is not None and seen > window:
            weights[..., :n] += _hidden(n, seen - n - window, scores.dtype)
        shares = torch.softmax(scores, dim=-1).to(values.dtype)
        into[some] = torch.bmm(shares, values[some]).view(-1, n, each, values.shape[2])


@lru_cache(maxsize=4 * QUERIES)
def _hidden(n: int, diagonal: int, dtype: torch.dtype) -> torch.Tensor:
    """[n, 1, n]: -inf from ``diagonal`` on to the right, or where it is below 0 to the left, else 0."""
    never = torch.full((n, n), float("-inf"), dtype=dtype)
    return (never.triu(diagonal) if diagonal > 0 else never.tril(diagonal))[:, None]
