"""How likely rows are under many edits: see `monitor.replay.branches.trunk`.

The LM head sees only the tokens whose successors are weighed, in pieces, so that the logits of a large vocabulary fit.

Legend: b = branches, n = rows, d = model width, p = places, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monitor.replay.branches.trunk import (
    AT_ONCE,
    MIN_SHARED,
    Branch,
    BranchedRow,
    Passing,
    Trunk,
    by_first_site,
    entered,
    lengths,
    run_all,
)
from monitor.replay.forward import Forward, RowReader
from monitor.replay.loaded import LoadedModel
from monitor.replay.passes import LOGITS
from monitor.replay.plan import Plan, plan
from monitor.values.arrays import Doubles


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, of which those from ``weighed`` on are weighed, each by what stands before it; at least one does."""

    ids: tuple[int, ...]
    weighed: int


def log_probabilities(
    loaded: LoadedModel, rows: Sequence[Row], branches: Sequence[Branch], batch_tokens: int
) -> Doubles:
    """``Σ log p(weighed token | all before it)`` in nats [b, n] under each of ``branches``.

    What one branch and one row alone give, but for the last digits of matrix products. Edits that were made around the
    call (`monitor.replay.taps.steered`) hold for every branch. Raises `BadInput` for a row that fits no memory even alone.
    """
    sums = np.zeros((len(branches), len(rows)))
    work = plan(
        list(dict.fromkeys(row.ids for row in rows)),
        batch_tokens=batch_tokens,
        min_shared_tokens=MIN_SHARED,
    )
    places = _places(work, rows)
    for site, members in by_first_site(branches).items():
        trunk = None if site is None else Trunk.run(loaded, work, site)
        step = max(1, AT_ONCE * batch_tokens // work.tokens)
        for start in range(0, len(members), step):
            piece = members[start : start + step]
            ends = _ends(
                loaded,
                work.repeated(len(piece), batch_tokens),
                places,
                [branches[member] for member in piece],
                trunk,
            )
            for member, states in zip(piece, ends, strict=True):
                sums[member] = _weighed(loaded, states, places, len(rows))
    return sums


# --- which places are read ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Places:
    """Tokens of a plan whose successors are weighed: ``offsets[segment]`` within it, in one order with the segments.

    The successor at ``place[e]`` (in that order) of row ``row[e]`` is ``target[e]``; ``place`` rises. Where rows part,
    one place has several successors.
    """

    offsets: dict[int, torch.Tensor]
    place: torch.Tensor
    row: torch.Tensor
    target: torch.Tensor


def _places(work: Plan, rows: Sequence[Row]) -> _Places:
    distinct = {ids: index for index, ids in enumerate(dict.fromkeys(row.ids for row in rows))}
    wanted: list[tuple[int, int, int, int]] = []
    for line, row in enumerate(rows):
        for segment in work.paths[distinct[row.ids]]:
            one = work.segments[segment]
            first = max(row.weighed - 1, one.first)
            stop = min(len(row.ids) - 1, one.first + len(one.ids))
            wanted += [
                (segment, position - one.first, line, row.ids[position + 1])
                for position in range(first, stop)
            ]
    wanted.sort()
    known = list(dict.fromkeys((segment, offset) for segment, offset, _, _ in wanted))
    at = {place: index for index, place in enumerate(known)}
    offsets: dict[int, list[int]] = {}
    for segment, offset in known:
        offsets.setdefault(segment, []).append(offset)
    return _Places(
        offsets={segment: torch.tensor(found) for segment, found in offsets.items()},
        place=torch.tensor([at[segment, offset] for segment, offset, _, _ in wanted]),
        row=torch.tensor([line for _, _, line, _ in wanted]),
        target=torch.tensor([target for _, _, _, target in wanted]),
    )


# --- what goes on from the trunk -----------------------------------------------------------------


def _ends(
    loaded: LoadedModel,
    work: Plan,
    places: _Places,
    branches: Sequence[Branch],
    trunk: Trunk | None,
) -> list[torch.Tensor]:
    """The residual stream behind the last block at each place [p, d], under each of ``branches``."""
    each = len(work.segments) // len(branches)
    last = len(loaded.blocks) - 1
    found: list[dict[int, torch.Tensor]] = [{} for _ in branches]
    row = BranchedRow(loaded, work, branches, trunk)

    def start_row(members: tuple[int, ...], _total: int) -> RowReader:
        row.begin(members)

        def read(_site: int, residual: torch.Tensor) -> None:
            parts = torch.split(residual, lengths(work, members))
            for member, part in zip(members, parts, strict=True):
                branch, segment = divmod(member, each)
                offsets = places.offsets.get(segment)
                if offsets is not None:
                    found[branch][segment] = part[offsets.to(part.device)]

        return read

    with row.at_work():
        run_all(Forward(loaded, work, (last,), start_row, lambda _members: None))
    return [torch.cat([states[segment] for segment in places.offsets]) for states in found]


# --- the LM head ----------------------------------------------------------------------------------


def _weighed(loaded: LoadedModel, states: torch.Tensor, places: _Places, rows: int) -> Doubles:
    """The sums [n] that the residual streams [p, d] behind the last block come to."""
    sums = torch.zeros(rows, dtype=torch.float64)
    piece = max(1, LOGITS // loaded.config.get_text_config().vocab_size)
    with torch.inference_mode(), entered(loaded, len(loaded.blocks) - 1) as entry:
        for start in range(0, len(states), piece):
            part = states[start : start + piece]
            logits = _logits(loaded, entry, part)
            first, stop = torch.searchsorted(
                places.place, torch.tensor([start, start + len(part)])
            ).tolist()
            here = (places.place[first:stop] - start).to(logits.device)
            targets = places.target[first:stop].to(logits.device)
            chosen = logits[here, targets] - torch.logsumexp(logits, dim=1)[here]
            sums.index_add_(0, places.row[first:stop], chosen.double().cpu())
    found: Doubles = sums.numpy()
    return found


def _logits(loaded: LoadedModel, entry: Passing, states: torch.Tensor) -> torch.Tensor:
    """What the final norm, the LM head and whatever else is behind the blocks make of ``states``: [p, v] in float32."""
    entry.residual = states[None]
    nothing = torch.zeros(1, len(states), dtype=torch.long, device=loaded.device)
    whole: Any = loaded.answerer
    with loaded.fused.at_work():
        logits = whole(input_ids=nothing, position_ids=nothing, use_cache=False).logits[0]
    wide: torch.Tensor = logits.to(torch.float32)
    return wide
