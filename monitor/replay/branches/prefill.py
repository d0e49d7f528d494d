"""Prompts run before they are answered, under many edits: a cache of keys and values for `monitor.replay.answer.decoded`.

Legend: b = branches, n = rows, g = key/value heads, t = tokens, e = head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from monitor.replay.attention import KeysValues
from monitor.replay.branches.trunk import (
    MIN_SHARED,
    Branch,
    BranchedRow,
    Trunk,
    branches_fit,
    by_first_site,
    run_all,
)
from monitor.replay.forward import Forward, RowReader
from monitor.replay.loaded import LoadedModel
from monitor.replay.plan import Plan, plan

_Kept = Mapping[int, Mapping[int, KeysValues]]
"""``kept[segment][block]``, as `monitor.replay.forward.Forward` has them."""


def prefilled(
    loaded: LoadedModel,
    rows: Sequence[tuple[int, ...]],
    branches: Sequence[Branch],
    batch_tokens: int,
) -> DynamicCache | None:
    """Keys and values of all tokens of ``rows`` but their last, under each of ``branches``: [b * n, g, t, e] for every block.

    The rows of one branch follow each other, filled up on the left as `left_padded` does. None where the copy cannot be
    run so (`branches_fit`), or a row has one token alone. Raises `BadInput` for a row that fits no memory even alone.
    """
    before = [row[:-1] for row in rows]
    if not branches_fit(loaded) or not all(before):
        return None
    distinct = {ids: index for index, ids in enumerate(dict.fromkeys(before))}
    work = plan(list(distinct), batch_tokens=batch_tokens, min_shared_tokens=MIN_SHARED)
    work = replace(work, segments=tuple(replace(one, shared=True) for one in work.segments))
    paths = [work.paths[distinct[ids]] for ids in before]
    kept = _kept(loaded, work, branches, batch_tokens)
    whole: Any = loaded.answerer
    cache = DynamicCache(config=whole.config.get_text_config(decoder=True))
    longest = max(map(len, before))
    with torch.inference_mode():
        for block in range(len(loaded.blocks)):
            pairs = [_row(one, path, block, longest) for one in kept for path in paths]
            keys, values = zip(*pairs, strict=True)
            cache.update(torch.cat(keys), torch.cat(values), block)
    return cache


def _kept(
    loaded: LoadedModel, work: Plan, branches: Sequence[Branch], batch_tokens: int
) -> list[_Kept]:
    """What each of ``branches`` keeps of every segment."""
    found: list[_Kept] = [{}] * len(branches)
    last = len(loaded.blocks) - 1
    for site, members in by_first_site(branches).items():
        trunk = Trunk.run(loaded, work, last if site is None else site)
        if site is None:
            for member in members:
                found[member] = trunk.kept
            continue
        many = work.repeated(len(members), batch_tokens)
        later = _later(loaded, many, [branches[member] for member in members], trunk)
        for line, member in enumerate(members):
            first = line * len(work.segments)
            found[member] = {
                segment: {**kept, **later.get(first + segment, {})}
                for segment, kept in trunk.kept.items()
            }
    return found


def _later(loaded: LoadedModel, work: Plan, branches: Sequence[Branch], trunk: Trunk) -> _Kept:
    """What is kept behind the trunk."""
    row = BranchedRow(loaded, work, branches, trunk)

    def start_row(members: tuple[int, ...], _total: int) -> RowReader:
        row.begin(members)
        return lambda _site, _residual: None

    forward = Forward(loaded, work, (len(loaded.blocks) - 1,), start_row, lambda _members: None)
    with row.at_work():
        run_all(forward)
    return forward.kept


def _row(kept: _Kept, path: Sequence[int], block: int, longest: int) -> KeysValues:
    """Keys and values [1, g, longest, e] of one row."""
    keys, values = (
        torch.cat([kept[segment][block][which] for segment in path], dim=2) for which in (0, 1)
    )
    missing = (0, 0, longest - keys.shape[2], 0)
    return functional.pad(keys, missing), functional.pad(values, missing)
