"""The same rows under many edits: what comes before the first edited site is run once, each prefix once for each edit.

Up to the first site that is edited the residual stream is the same whatever the edits are: the **trunk**, run once. From
there on the rows go on once for each branch, packed side by side, several branches in one pass. The LM head
sees only the tokens whose successors are weighed, in pieces, so that the logits of a large vocabulary fit.

Legend: b = branches, n = rows, t = tokens of a pass, d = model width, p = places, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay.forward import Forward, RowReader
from monitor.replay.fused.piece import Piece
from monitor.replay.loaded import LoadedModel
from monitor.replay.passes import LOGITS
from monitor.replay.plan import Plan, plan
from monitor.replay.swapped import Place, swapped
from monitor.replay.taps import Change, Edit, steered
from monitor.values.arrays import Doubles

Branch = Sequence[Edit]
"""The edits of one steered copy; none: the copy as it is."""
MIN_SHARED: Final = 8
"""Tokens of a prefix that is worth keeping."""
AT_ONCE: Final = 8
"""Branches go on together until they have so many times the tokens of a pass: their prefixes are kept meanwhile."""


def branches_fit(loaded: LoadedModel) -> bool:
    """Whether ``loaded`` can be run so: a whole copy on one device, packed, of an architecture that the tests compare."""
    whole: Any = loaded.answerer
    return (
        whole is not None
        and loaded.packing.ground == "tested"
        and whole.base_model is loaded.model
        and len(loaded.devices) == 1
    )


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
    for site, members in _by_first_site(branches).items():
        trunk = None if site is None else _Trunk.run(loaded, work, site)
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


def _by_first_site(branches: Sequence[Branch]) -> dict[int | None, list[int]]:
    """The branches, by index, that leave the trunk behind the same block; None: it would serve no other one."""
    found: dict[int | None, list[int]] = {}
    for index, branch in enumerate(branches):
        found.setdefault(min((edit.site for edit in branch), default=None), []).append(index)
    unedited, sites = found.pop(None, []), sorted(site for site in found if site is not None)
    if unedited and sites:
        # The latest: there is least left to run.
        found[sites[-1]] += unedited
    elif unedited:
        found[None] = unedited
    return found


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


# --- the trunk, and what goes on from it ----------------------------------------------------------


class _Passing(Piece):
    """In the place of a block: hands on what it gets, or ``residual`` [1, t, d] if it is given one."""

    residual: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_given: object, **_named: object) -> Any:
        return hidden_states if self.residual is None else self.residual


@contextmanager
def _entered(loaded: LoadedModel, site: int) -> Iterator[_Passing]:
    """Within the context the copy begins behind block ``site``, with the residual stream that the yielded piece has."""
    blocks = loaded.blocks
    pieces = [_Passing(block) for block in blocks[: site + 1]]
    places = [
        Place(blocks, str(index), block, piece)
        for index, (block, piece) in enumerate(zip(blocks, pieces, strict=False))
    ]
    with swapped(places):
        yield pieces[-1]


@dataclass(frozen=True, slots=True)
class _Trunk:
    """The residual streams [t, d] of a plan's segments behind block ``site``."""

    site: int
    states: dict[int, torch.Tensor]

    @classmethod
    def run(cls, loaded: LoadedModel, work: Plan, site: int) -> _Trunk:
        states: dict[int, torch.Tensor] = {}

        def start_row(members: tuple[int, ...], _total: int) -> RowReader:
            def read(_site: int, residual: torch.Tensor) -> None:
                states.update(zip(members, residual.split(_lengths(work, members)), strict=True))

            return read

        _run(Forward(loaded, work, (site,), start_row, lambda _members: None))
        return cls(site, states)


def _ends(
    loaded: LoadedModel,
    work: Plan,
    places: _Places,
    branches: Sequence[Branch],
    trunk: _Trunk | None,
) -> list[torch.Tensor]:
    """The residual stream behind the last block at each place [p, d], under each of ``branches``."""
    each = len(work.segments) // len(branches)
    last = len(loaded.blocks) - 1
    found: list[dict[int, torch.Tensor]] = [{} for _ in branches]
    row = _BranchedRow(loaded, work, branches, trunk)

    def start_row(members: tuple[int, ...], _total: int) -> RowReader:
        row.begin(members)

        def read(_site: int, residual: torch.Tensor) -> None:
            parts = residual.split(_lengths(work, members))
            for member, part in zip(members, parts, strict=True):
                branch, segment = divmod(member, each)
                offsets = places.offsets.get(segment)
                if offsets is not None:
                    found[branch][segment] = part[offsets.to(part.device)]

        return read

    with row.at_work():
        _run(Forward(loaded, work, (last,), start_row, lambda _members: None))
    return [torch.cat([states[segment] for segment in places.offsets]) for states in found]


@dataclass(slots=True)
class _BranchedRow:
    """Gives each segment of a pass the edits of its branch, and where there is a trunk, the beginning."""

    loaded: LoadedModel
    work: Plan
    branches: Sequence[Branch]
    trunk: _Trunk | None
    _entry: _Passing | None = None
    _spans: list[_Span] = field(default_factory=list)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        begun = None if self.trunk is None else self.trunk.site
        later = {edit.site for branch in self.branches for edit in branch} - {begun}
        apart = [_Apart(site, 1, self._spans) for site in sorted(later)]
        with steered(self.loaded.blocks, apart):
            if begun is None:
                yield
            else:
                with _entered(self.loaded, begun) as self._entry:
                    yield

    def begin(self, members: tuple[int, ...]) -> None:
        """The next pass has these segments."""
        each = len(self.work.segments) // len(self.branches)
        self._spans.clear()
        start = 0
        for member, length in zip(members, _lengths(self.work, members), strict=True):
            self._spans.append((slice(start, start + length), self.branches[member // each]))
            start += length
        if self._entry is None or self.trunk is None:
            return
        stream = torch.cat([self.trunk.states[member % each] for member in members])[None]
        segments = [self.work.segments[member] for member in members]
        positions = torch.cat([torch.arange(s.first, s.first + len(s.ids)) for s in segments])
        self._entry.residual = _Apart(self.trunk.site, 1, self._spans).applied(
            stream, positions[None].to(stream.device)
        )


_Span = tuple[slice, Branch]
"""Rows, or tokens of the one row, that have the edits of one branch."""


@dataclass(frozen=True, slots=True)
class _Apart:
    """A change behind block ``site`` that is another one for each of the ``spans`` along ``dimension``, which they fill."""

    site: int
    dimension: int
    spans: Sequence[_Span]

    def applied(self, residual: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        parts = []
        for span, branch in self.spans:
            part, at = self._cut(residual, span), positions
            if positions is not None and positions.shape[self.dimension] > 1:
                at = self._cut(positions, span)
            for edit in branch:
                if edit.site == self.site:
                    part = edit.applied(part, at)
            parts.append(part)
        return torch.cat(parts, dim=self.dimension)

    def _cut(self, tensor: torch.Tensor, span: slice) -> torch.Tensor:
        return tensor.narrow(self.dimension, span.start, span.stop - span.start)


def by_rows(branches: Sequence[Branch], rows: int) -> list[Change]:
    """Changes of a batch in which ``rows`` rows of each branch follow each other, in order."""
    spans = [(slice(i * rows, (i + 1) * rows), branch) for i, branch in enumerate(branches)]
    sites = sorted({edit.site for branch in branches for edit in branch})
    return [_Apart(site, 0, spans) for site in sites]


def _lengths(work: Plan, members: Sequence[int]) -> list[int]:
    return [len(work.segments[member].ids) for member in members]


def _run(forward: Forward) -> None:
    forward.run()
    if forward.failed:
        raise BadInput(
            f"{len(forward.failed)} texts do not fit into memory even alone",
            hint="give shorter texts, or a device with more memory",
        )


# --- the LM head ----------------------------------------------------------------------------------


def _weighed(loaded: LoadedModel, states: torch.Tensor, places: _Places, rows: int) -> Doubles:
    """The sums [n] that the residual streams [p, d] behind the last block come to."""
    sums = torch.zeros(rows, dtype=torch.float64)
    piece = max(1, LOGITS // loaded.config.get_text_config().vocab_size)
    with torch.inference_mode(), _entered(loaded, len(loaded.blocks) - 1) as entry:
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


def _logits(loaded: LoadedModel, entry: _Passing, states: torch.Tensor) -> torch.Tensor:
    """What the final norm, the LM head and whatever else is behind the blocks make of ``states``: [p, v] in float32."""
    entry.residual = states[None]
    nothing = torch.zeros(1, len(states), dtype=torch.long, device=loaded.device)
    whole: Any = loaded.answerer
    fused: AbstractContextManager[None] = loaded.fused.at_work()
    with fused:
        logits = whole(input_ids=nothing, position_ids=nothing, use_cache=False).logits[0]
    wide: torch.Tensor = logits.to(torch.float32)
    return wide
