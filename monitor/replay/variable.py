"""Attention over all segments of a packed row by one kernel for sequences of unequal length.

Legend: t = tokens of the row, u = keys of all its segments, s = segments, h = query heads,
g = key/value heads, e = head width.

A row of fifty prompts costs the plain form fifty small kernels in every block, and the host that
starts them is what a GPU waits for. Where torch has a kernel for such rows (flash attention on CUDA
in bfloat16), it takes the whole row at once: no head is repeated, no mask is built, and a segment
that continues kept prefixes sees them through the lower-right causal rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the segments of a row stand, on the device.

    ``query_starts`` and ``key_starts`` [s + 1] (int32) are where each segment's queries and keys begin in
    their lists. ``gather`` [u] takes the keys out of the kept prefixes ``prefixes`` followed by
    the row's own; None when nothing is continued and the row's own keys are the list.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int
    prefixes: tuple[int, ...]
    gather: torch.Tensor | None


class VariableKernel(Protocol):
    """Query [t, h, e] over key, value [u, g, e], segment by segment: [t, h, e].

    The last query of a segment stands at its last key and each sees no later key; ``window`` w lets
    it see w keys, its own among them.
    """

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        *,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor: ...


def layout_of(
    segments: Sequence[tuple[int, tuple[int, ...]]],
    kept_tokens: Mapping[int, int],
    device: torch.device,
) -> Layout:
    """Of ``segments`` in the row's order: tokens of each and the prefixes it continues, root first.

    ``kept_tokens`` are the lengths of the prefixes.
    """
    prefixes = tuple(sorted({prefix for _, chain in segments for prefix in chain}))
    lengths = np.array([kept_tokens[prefix] for prefix in prefixes], dtype=np.int64)
    begin = dict(zip(prefixes, np.cumsum(lengths) - lengths, strict=True))
    own = int(lengths.sum())
    parts: list[np.ndarray] = []
    queries, keys = [0], [0]
    for tokens, chain in segments:
        for prefix in chain:
            parts.append(np.arange(begin[prefix], begin[prefix] + kept_tokens[prefix]))
        parts.append(np.arange(own, own + tokens))
        own += tokens
        queries.append(tokens)
        keys.append(tokens + sum(kept_tokens[prefix] for prefix in chain))
    return Layout(
        query_starts=sent(torch.tensor(queries).cumsum(0).to(torch.int32), device),
        key_starts=sent(torch.tensor(keys).cumsum(0).to(torch.int32), device),
        longest_query=max(queries),
        longest_key=max(keys),
        prefixes=prefixes,
        gather=sent(torch.from_numpy(np.concatenate(parts)), device) if prefixes else None,
    )


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``values`` on ``device``, without waiting for what a GPU still has to do."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def found_kernel(device: torch.device, dtype: torch.dtype) -> VariableKernel | None:
    """torch's own kernel for such rows, where this torch has one for the device and the dtype."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= known.keys():
        return None
    return flash(varlen_attn, grouped={"enable_gqa": True} if "enable_gqa" in known else {})


def flash(varlen: Callable[..., Any], grouped: Mapping[str, bool]) -> VariableKernel:
    """torch's ``varlen_attn`` as a `VariableKernel`. ``grouped``: how this torch is told of fewer key heads."""

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        *,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        result: torch.Tensor = varlen(
            query,
            key,
            value,
            layout.query_starts,
            layout.key_starts,
            layout.longest_query,
            layout.longest_key,
            scale=scaling,
            # torch counts the keys before a query's own.
            window_size=(-1 if window is None else window - 1, 0),
            **(grouped if query.shape[1] != key.shape[1] else {}),
        )
        return result

    return kernel
