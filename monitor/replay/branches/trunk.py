"""The same rows under many edits: what comes before the first edited site is run once, each prefix once for each edit.

Up to the first site that is edited the residual stream is the same whatever the edits are: the **trunk**, run once. From
there on the rows go on once for each branch, packed side by side, several branches in one pass.

Legend: b = branches, n = rows, t = tokens of a pass, d = model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from monitor.errors import BadInput
from monitor.replay.attention import KeysValues
from monitor.replay.forward import Forward, RowReader
from monitor.replay.fused.piece import Piece
from monitor.replay.loaded import LoadedModel
from monitor.replay.plan import Plan
from monitor.replay.swapped import Place, swapped
from monitor.replay.taps import Change, Edit, steered

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


def by_first_site(branches: Sequence[Branch]) -> dict[int | None, list[int]]:
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


class Passing(Piece):
    """In the place of a block: hands on what it gets, or ``residual`` [1, t, d] if it is given one."""

    residual: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_given: object, **_named: object) -> Any:
        return hidden_states if self.residual is None else self.residual


@contextmanager
def entered(loaded: LoadedModel, site: int) -> Iterator[Passing]:
    """Within the context the copy begins behind block ``site``, with the residual stream that the yielded piece has."""
    blocks = loaded.blocks
    pieces = [Passing(block) for block in blocks[: site + 1]]
    places = [
        Place(blocks, str(index), block, piece)
        for index, (block, piece) in enumerate(zip(blocks, pieces, strict=False))
    ]
    with swapped(places):
        yield pieces[-1]


@dataclass(frozen=True, slots=True)
class Trunk:
    """The residual streams [t, d] of a plan's segments behind block ``site``, and what was kept up to there."""

    site: int
    states: dict[int, torch.Tensor]
    kept: dict[int, dict[int, KeysValues]]

    @classmethod
    def run(cls, loaded: LoadedModel, work: Plan, site: int) -> Trunk:
        states: dict[int, torch.Tensor] = {}

        def start_row(members: tuple[int, ...], _total: int) -> RowReader:
            def read(_site: int, residual: torch.Tensor) -> None:
                states.update(
                    zip(members, torch.split(residual, lengths(work, members)), strict=True)
                )

            return read

        forward = Forward(loaded, work, (site,), start_row, lambda _members: None)
        run_all(forward)
        return cls(site, states, forward.kept)


@dataclass(slots=True)
class BranchedRow:
    """Gives each segment of a pass the edits of its branch, and where there is a trunk, the beginning."""

    loaded: LoadedModel
    work: Plan
    branches: Sequence[Branch]
    trunk: Trunk | None
    _entry: Passing | None = None
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
                with entered(self.loaded, begun) as self._entry:
                    yield

    def begin(self, members: tuple[int, ...]) -> None:
        """The next pass has these segments."""
        each = len(self.work.segments) // len(self.branches)
        self._spans.clear()
        start = 0
        for member, length in zip(members, lengths(self.work, members), strict=True):
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


def lengths(work: Plan, members: Sequence[int]) -> list[int]:
    return [len(work.segments[member].ids) for member in members]


def run_all(forward: Forward) -> None:
    forward.run()
    if forward.failed:
        raise BadInput(
            f"{len(forward.failed)} texts do not fit into memory even alone",
            hint="give shorter texts, or a device with more memory",
        )
