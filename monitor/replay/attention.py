"""Attention over a packed row: many prompts side by side in one forward pass, none seeing another.

Legend: t = tokens of the row, h = query heads, g = key/value heads, e = head width.

Everything but attention works token by token, so prompts can stand in one row without padding. Here
each segment attends to itself, causally, and to the kept keys and values of the prefixes it
continues: by one kernel for the whole row where the device has one that was proven (`variable`),
else segment by segment. The function is registered with transformers under `PACKED`; transformers
builds no mask for a name it knows no mask for. So what a mask says besides is said here: windows,
chunks, attention sinks. The row is a part of the context (`standing`), since not every
architecture hands what its model is called with down to its attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from monitor.replay.batches import Batches
from monitor.replay.variable import Layout, VariableKernel, layout_of, sent

PACKED = "monitor_packed"

PROVEN_ARCHITECTURES = frozenset(
    {
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    }
)
"""Model types whose packed readings the tests compare with transformers' own, prompt by prompt.

Their attention is wholly described by what they pass: scaling, sliding window, soft cap. Any other
architecture is replayed one prompt at a time with its stock attention.
"""

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True, kw_only=True)
class PackedSegment:
    """Tokens [start, stop) of the row, the first at position ``first`` of its prompt.

    ``chain`` are the kept prefixes it continues, root first.
    """

    start: int
    stop: int
    first: int = 0
    chain: tuple[int, ...] = ()
    keep: int | None = None


@dataclass(slots=True, kw_only=True)
class PackedRow:
    """One forward pass. ``kept[prefix][block]`` are keys and values [1, g, tokens, e].

    Under a number below zero stands what one part with a state was given (`recurrent`). ``exact_softmax``: compute the attention
    weights openly instead of by a fused kernel. ``kernel`` takes all segments at once. Its layouts, the masks, and the
    batches of parts with a state are made for each device where a block first asks.
    """

    segments: tuple[PackedSegment, ...]
    kept: dict[int, dict[int, KeysValues]]
    exact_softmax: bool = False
    kernel: VariableKernel | None = None
    layouts: dict[torch.device, Layout] = field(default_factory=dict)
    masks: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)
    batches: dict[torch.device, Batches] = field(default_factory=dict)


ROW: ContextVar[PackedRow] = ContextVar("packed row")
"""The row that runs; set by `standing`."""


@contextmanager
def standing(row: PackedRow) -> Iterator[None]:
    """Within the context, packed attention is that of ``row``."""
    token = ROW.set(row)
    try:
        yield
    finally:
        ROW.reset(token)


def is_packed() -> bool:
    """Whether a packed row runs."""
    return ROW.get(None) is not None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_ignored: object,
) -> tuple[torch.Tensor, None]:
    """Attention of query [1, h, t, e] over key, value [1, g, t, e], segment by segment: [1, t, h, e].

    ``s_aux`` [h] are the logits of attention sinks: each head may look at nothing instead.
    """
    packed_row = ROW.get()
    block = int(module.layer_idx)  # type: ignore[arg-type]
    chunk = _chunk_size(module, block)
    # Blocks of Gemma 4 may look at the keys of an earlier one, which may stand on another device.
    key, value = key.to(query.device), value.to(query.device)
    _keep(packed_row, block, key, value)
    query = _own_temperature(module, query, packed_row)
    openly = softcap is not None or s_aux is not None or packed_row.exact_softmax
    if packed_row.kernel is not None and chunk is None and not openly:
        return _at_once(
            query, key, value, block, packed_row, scaling=scaling, window=sliding_window
        ), None
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for segment in packed_row.segments:
        here = slice(segment.start, segment.stop)
        keys, values = _seen(packed_row, segment, block, key, value)
        mask = _mask(
            packed_row, here.stop - here.start, keys.shape[2], sliding_window, chunk, query.device
        )
        if openly:
            result = _open(
                query[:, :, here],
                keys,
                values,
                mask=mask,
                scaling=scaling,
                softcap=softcap,
                sinks=s_aux,
            )
        else:
            result = _by_kernel(query[:, :, here], keys, values, mask=mask, scaling=scaling)
        output[:, here] = result.transpose(1, 2)
    return output, None


def _keep(row: PackedRow, block: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """Copy the keys and values of the segments that others will continue."""
    for segment in row.segments:
        if segment.keep is not None:
            here = slice(segment.start, segment.stop)
            kept = row.kept.setdefault(segment.keep, {})
            kept[block] = (key[:, :, here].clone(), value[:, :, here].clone())


def _seen(
    row: PackedRow, segment: PackedSegment, block: int, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [1, g, t', e] that a segment looks at: those of the prefixes that it continues, and its own."""
    here = slice(segment.start, segment.stop)
    own = key[:, :, here], value[:, :, here]
    parts = [row.kept[prefix][block] for prefix in segment.chain]
    if not parts:
        return own
    keys, values = zip(*parts, own, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block: int,
    row: PackedRow,
    *,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """The attention of the whole row [1, t, h, e] by the row's kernel."""
    assert row.kernel is not None
    layout = row.layouts.get(query.device)
    if layout is None:
        chains = {prefix for segment in row.segments for prefix in segment.chain}
        layout = row.layouts[query.device] = layout_of(
            [(segment.stop - segment.start, segment.chain) for segment in row.segments],
            {prefix: row.kept[prefix][block][0].shape[2] for prefix in chains},
            query.device,
        )
    keys, values = (one[0].transpose(0, 1) for one in (key, value))
    if layout.gather is not None:
        kept = [row.kept[prefix][block] for prefix in layout.prefixes]
        keys = torch.cat([*(k[0].transpose(0, 1) for k, _ in kept), keys])[layout.gather]
        values = torch.cat([*(v[0].transpose(0, 1) for _, v in kept), values])[layout.gather]
    if window is not None and layout.longest_key <= window:
        window = None
    queries = query[0].transpose(0, 1)
    return row.kernel(queries, keys, values, layout, scaling=scaling, window=window)[None]


def _chunk_size(module: torch.nn.Module, block: int) -> int | None:
    """Tokens of a chunk beyond which the block does not look back; None where it may see everything.

    Of Llama 4, whose blocks are told their chunks by the mask alone.
    """
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or kinds[block] != "chunked_attention":
        return None
    return int(config.attention_chunk_size)  # type: ignore[union-attr]


def _own_temperature(module: torch.nn.Module, query: torch.Tensor, row: PackedRow) -> torch.Tensor:
    """``query`` scaled by its tokens' positions in their own prompts, where it was by those in the row.

    Llama 4, in its blocks without rotary positions: ``1 + attn_scale·ln(1 + ⌊(p + 1) / floor_scale⌋)``, p being
    counted from the start of the pass, whatever ``position_ids`` say.
    """
    tuned: Any = module
    if not getattr(tuned, "attn_temperature_tuning", False) or getattr(tuned, "use_rope", True):
        return query
    own = torch.cat(
        [torch.arange(one.first, one.first + one.stop - one.start) for one in row.segments]
    )
    scales = [
        torch.log1p(torch.floor((positions + 1.0) / tuned.floor_scale)) * tuned.attn_scale + 1.0
        for positions in (own, torch.arange(len(own)))
    ]
    if torch.equal(*scales):
        return query
    ratio = sent(scales[0] / scales[1], query.device)
    return (query * ratio[:, None]).to(query.dtype)


def _mask(
    row: PackedRow,
    queries: int,
    keys: int,
    window: int | None,
    chunk: int | None,
    device: torch.device,
) -> torch.Tensor | None:
    """Who may see whom [queries, keys]; None when plain causal attention says the same.

    The last query stands at the last key, the first key at the start of the prompt. A window of w sees w
    keys, its own among them; a chunk of c those that stand in the same stretch of c.
    """
    if window is not None and keys <= window:
        window = None
    if chunk is not None and keys <= chunk:
        chunk = None
    if queries == keys and window is None and chunk is None and not row.exact_softmax:
        return None
    known = (queries, keys, window, chunk, device)
    if known not in row.masks:
        before = keys - queries
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
        if window is not None:
            allowed = allowed.triu(before - window + 1)
        if chunk is not None:
            stretch = torch.arange(keys, device=device) // chunk
            allowed &= stretch[before:, None] == stretch
        row.masks[known] = allowed
    return row.masks[known]


def _by_kernel(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """The attention of one segment by torch's own kernel."""
    groups = query.shape[1] // keys.shape[1]
    # A CPU's kernels take fewer key heads than query heads; on a GPU not all do, and the rest fall back to slow ones.
    grouped = groups > 1 and query.device.type == "cpu"
    repeats = 1 if grouped else groups
    return functional.scaled_dot_product_attention(
        query,
        keys if repeats == 1 else keys.repeat_interleave(repeats, dim=1),
        values if repeats == 1 else values.repeat_interleave(repeats, dim=1),
        attn_mask=mask,
        is_causal=mask is None and keys.shape[2] > 1,
        scale=scaling,
        enable_gqa=grouped,
    )


def _open(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """``softmax(softcap·tanh(q kᵀ·scaling / softcap)) v`` with the softmax in float32 or wider.

    ``sinks`` [h] stand in the softmax as one more logit of each head, with nothing to give.
    """
    groups = query.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(groups, dim=1)
    values = values.repeat_interleave(groups, dim=1)
    weights = query @ keys.transpose(2, 3) * (scaling or query.shape[3] ** -0.5)
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    if mask is None:
        mask = torch.ones(weights.shape[2:], dtype=torch.bool, device=weights.device).tril()
    weights = weights.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(weights.dtype, torch.float32)
    if sinks is not None:
        column = sinks.to(weights.dtype)[:, None, None].expand(1, -1, weights.shape[2], 1)
        weights = torch.cat([weights, column], dim=-1)
    shares = torch.softmax(weights, dim=-1, dtype=wide).to(values.dtype)
    return shares[..., : keys.shape[2]] @ values


AttentionInterface.register(PACKED, packed_attention)
