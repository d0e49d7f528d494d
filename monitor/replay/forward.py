"""Run planned batches through the model; halve a batch that does not fit into memory.

A batch stands in its pass as the copy's packing says: packed side by side in one row, or below each other
in rows that are filled up on the right. No mask is needed then: what a decoder makes of a token does
not depend on later ones, be it attention or a recurrent state.

Legend: t = tokens of one forward pass, d = model width, b = rows, l = tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch

from monitor.replay.attention import KeysValues, PackedRow, PackedSegment, standing
from monitor.replay.loaded import LoadedModel
from monitor.replay.plan import Plan, Segment
from monitor.replay.swapped import swapped
from monitor.replay.taps import tapped
from monitor.replay.variable import sent

FILLING: Final = 0
"""The id behind a shorter row's end. Any will do: no token that is read depends on it."""
RowReader = Callable[[int, torch.Tensor], None]
"""Takes a site and its residual stream [t, d] for all tokens of the pass, segment by segment."""


@dataclass(slots=True)
class Forward:
    """Runs the batches of one plan. ``failed`` collects the segments that fit no memory.

    ``kept[prefix][block]`` are keys and values of shared segments. Those that are there from the beginning are not run.
    """

    loaded: LoadedModel
    plan: Plan
    sites: Sequence[int]
    start_row: Callable[[tuple[int, ...], int], RowReader]
    """Called before each forward pass with its segments and number of tokens."""
    finish_row: Callable[[tuple[int, ...]], None]
    relieve: Callable[[], None] = lambda: None
    """Called where a pass did not fit into memory, before it is tried in halves."""
    failed: set[int] = field(default_factory=set)
    passes: int = 0
    splits: int = 0
    tokens: int = 0
    kept: dict[int, dict[int, KeysValues]] = field(default_factory=dict)

    def run(self) -> None:
        """Run every batch. Segments behind a failed prefix fail with it."""
        ready = frozenset(self.kept)
        for batch in self.plan.batches:
            pending = [tuple(index for index in batch if index not in ready)]
            while pending:
                members = tuple(i for i in pending.pop() if self.failed.isdisjoint(self._chain(i)))
                if members and not self._fits(members):
                    self.splits += 1
                    half = len(members) // 2
                    if half == 0:
                        self.failed.update(members)
                    else:
                        pending += [members[half:], members[:half]]

    def _chain(self, index: int) -> tuple[int, ...]:
        return self.plan.segments[index].chain

    def _fits(self, members: tuple[int, ...]) -> bool:
        try:
            self._pass(members)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            for index in members:
                self.kept.pop(index, None)
        else:
            return True
        # Outside the handler, where the traceback no longer holds the failed pass's tensors.
        self.relieve()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _pass(self, members: tuple[int, ...]) -> None:
        segments = [self.plan.segments[index] for index in members]
        total = sum(len(segment.ids) for segment in segments)
        read = self.start_row(members, total)
        loaded = self.loaded
        inputs: dict[str, object] = {}
        row: AbstractContextManager[None] = nullcontext()
        flat: Callable[[torch.Tensor], torch.Tensor]
        if loaded.packed:
            ids = torch.tensor([[i for s in segments for i in s.ids]])
            row = standing(self._packed(members, segments))
            positions = torch.cat([torch.arange(s.first, s.first + len(s.ids)) for s in segments])
            inputs["position_ids"] = sent(positions[None], loaded.device)
            flat = _first
        else:
            ids, flat = _filled_up([segment.ids for segment in segments], loaded.device)
        readers = {
            site: (lambda residual, site=site: read(site, flat(residual))) for site in self.sites
        }
        with (
            torch.inference_mode(),
            loaded.fused.at_work(),
            swapped(loaded.recurrent if loaded.packed else ()),
            row,
            tapped(loaded.blocks, readers),
        ):
            loaded.model(input_ids=sent(ids, loaded.device), use_cache=False, **inputs)
        self.finish_row(members)
        self.passes += 1
        self.tokens += total

    def _packed(self, members: Sequence[int], segments: Sequence[Segment]) -> PackedRow:
        parts: list[PackedSegment] = []
        start = 0
        for index, segment in zip(members, segments, strict=True):
            stop = start + len(segment.ids)
            parts.append(
                PackedSegment(
                    start=start,
                    stop=stop,
                    first=segment.first,
                    chain=segment.chain,
                    keep=index if segment.shared else None,
                )
            )
            start = stop
        return PackedRow(
            segments=tuple(parts),
            kept=self.kept,
            exact_softmax=self.loaded.attention.endswith("eager"),
            kernel=self.loaded.kernel,
        )


def _first(residual: torch.Tensor) -> torch.Tensor:
    return residual[0]


def _filled_up(
    rows: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Ids [b, l] of ``rows``, and what takes their own tokens [t, d] out of a stream [b, l, d]."""
    if len(rows) == 1:
        return torch.tensor(rows), _first
    longest = max(map(len, rows))
    ids = torch.tensor([row + (FILLING,) * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    own = (torch.arange(longest) < lengths[:, None]).flatten().nonzero()[:, 0]
    places = sent(own, device)
    return ids, lambda residual: residual.flatten(0, 1)[places]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that device or host memory is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
