"""Prefixes that are kept from chunk to chunk: system prompts repeat for hours, and what a model makes of one does not change.

A kept prefix has its keys and values behind every block and its activations, as the pass that ran it made them. What a decoder
makes of a token depends on nothing later, so any beginning of a kept prefix serves as well: they stand in a tree, in which
a node goes on from some token of its parent. The least recently used ends of the tree go first.

All of it is in the copy's own memory, never on a disk. It holds token ids and activations of prompts.

Legend: t = tokens of a node, g = key/value heads, e = head width, k = features.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from monitor.metrics import METRICS
from monitor.replay.attention import KeysValues
from monitor.replay.plan import Plan, common_length

ID_BYTES: Final = 8
"""Of a token id in a node; the numbers themselves are the tokeniser's."""
NODES: Final = 512
"""Most nodes, so that looking a prompt up stays short where a model is so small that many fit."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Keys and values [1, g, t, e] by block, and activations [t, k], of some tokens that follow each other."""

    blocks: Mapping[int, KeysValues]
    activations: torch.Tensor

    @property
    def bytes(self) -> int:
        tensors = [self.activations, *(one for pair in self.blocks.values() for one in pair)]
        return sum(one.untyped_storage().nbytes() for one in tensors)

    def part(self, start: int, stop: int) -> Kept:
        """Of tokens ``start`` to ``stop``, in the same memory."""
        blocks = {
            block: (keys[:, :, start:stop], values[:, :, start:stop])
            for block, (keys, values) in self.blocks.items()
        }
        return Kept(blocks, self.activations[start:stop])


def _joined(parts: Sequence[Kept]) -> Kept:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    blocks = {
        block: (
            torch.cat([one.blocks[block][0] for one in parts], dim=2),
            torch.cat([one.blocks[block][1] for one in parts], dim=2),
        )
        for block in parts[0].blocks
    }
    return Kept(blocks, torch.cat([one.activations for one in parts]))


@dataclass(slots=True, eq=False)
class _Node:
    """Tokens from position ``first`` on. Those before are its parent's, and its parent's parents'."""

    first: int
    ids: tuple[int, ...]
    kept: Kept | None = None
    parent: _Node | None = None
    used: int = 0
    children: list[_Node] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return len(self.ids) * ID_BYTES + (self.kept.bytes if self.kept else 0)


class PrefixCache:
    """At most ``limit`` bytes of kept prefixes, of one copy and the features that one engine reads."""

    def __init__(self, limit: int, blocks: nn.ModuleList) -> None:
        self._limit = limit
        self._blocks = blocks
        self._state = self._state_now()
        self._root = _Node(0, ())
        self._clock = 0
        self._bytes = self._nodes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return self._bytes

    def known(self, ids: tuple[int, ...]) -> int:
        """How many of the first ``ids`` are kept."""
        with self._lock:
            return self._way(ids)[1]

    def of_plan(self, work: Plan) -> dict[int, Kept]:
        """What is kept of the shared segments of ``work``, by their indices; nothing while somebody changes the model."""
        if not self._limit or self._changed():
            return {}
        found: dict[int, Kept] = {}
        with self._lock:
            for index, segment in enumerate(work.segments):
                if segment.shared:
                    kept = self._between(work.spelled(index), segment.first)
                    METRICS.prefixes.labels(outcome="missed" if kept is None else "found").inc()
                    if kept is not None:
                        found[index] = kept
        return found

    def keep(self, work: Plan, made: Mapping[int, Kept]) -> None:
        """Take in what was ``made`` of shared segments, and let go of what was not used for longest."""
        if not self._limit or self._changed():
            return
        with self._lock:
            for index in sorted(made, key=lambda one: len(work.segments[one].chain)):
                self._take(work.spelled(index), work.segments[index].first, made[index])
                self._let_go()
        METRICS.prefix_bytes.set(self._bytes)

    def relieve(self) -> None:
        """The memory does not suffice: let go of everything, and keep half as much from now on."""
        self._limit //= 2
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._root.children.clear()
            self._bytes = self._nodes = 0
        METRICS.prefix_bytes.set(0)

    def _changed(self) -> bool:
        """Whether the blocks are hooked now; if they are others than before, nothing that is kept holds any more."""
        state = self._state_now()
        if state != self._state:
            self.clear()
            self._state = state
        return any(one._forward_hooks or one._forward_pre_hooks for one in self._blocks.modules())

    def _state_now(self) -> object:
        """Changes when a module gives its place to another, or a weight is written to."""
        modules = tuple(map(id, self._blocks.modules()))
        written = 0
        if not any(one.is_inference() for one in self._blocks.parameters()):
            written = sum(one._version for one in self._blocks.parameters())
        return modules, written

    def _way(self, ids: Sequence[int]) -> tuple[list[_Node], int]:
        """The nodes that hold the first of ``ids``, root first, and how many tokens they reach."""
        way, reached = [self._root], 0
        while True:
            longest, best = reached, None
            for child in way[-1].children:
                if child.first <= reached:
                    until = child.first + common_length(child.ids, ids[child.first :])
                    if until > longest:
                        longest, best = until, child
            if best is None:
                return way, reached
            way.append(best)
            reached = longest

    def _between(self, ids: tuple[int, ...], first: int) -> Kept | None:
        """Of the tokens of ``ids`` from ``first`` on, if all are kept; they count as used."""
        way, reached = self._way(ids)
        if reached < len(ids):
            return None
        self._use(way)
        stops = [node.first for node in way[2:]] + [reached]
        parts = []
        for node, stop in zip(way[1:], stops, strict=True):
            start = max(first, node.first)
            if start < stop and node.kept is not None:
                parts.append(node.kept.part(start - node.first, stop - node.first))
        return _joined(parts)

    def _take(self, ids: tuple[int, ...], first: int, kept: Kept) -> None:
        way, reached = self._way(ids[:first])
        if reached < first or self._way(ids)[1] == len(ids):
            return  # what comes before it is not kept, or it is itself
        node = _Node(first, ids[first:], _own(kept), way[-1])
        way[-1].children.append(node)
        self._bytes += node.bytes
        self._nodes += 1
        self._use([*way, node])

    def _use(self, way: Sequence[_Node]) -> None:
        self._clock += 1
        for node in way:
            node.used = self._clock

    def _let_go(self) -> None:
        """Of the ends of the tree, the least recently used first, until the rest is within the limit."""
        while self._bytes > self._limit or self._nodes > NODES:
            node = min(_ends(self._root), key=lambda one: one.used)
            self._nodes -= 1
            assert node.parent is not None
            node.parent.children.remove(node)
            self._bytes -= node.bytes


def _ends(root: _Node) -> Iterator[_Node]:
    pending = [root]
    while pending:
        node = pending.pop()
        pending += node.children
        if not node.children and node is not root:
            yield node


def _own(kept: Kept) -> Kept:
    """``kept`` in memory of its own: what is a view of a row would hold all of the row."""
    blocks = {
        block: (_alone(keys), _alone(values)) for block, (keys, values) in kept.blocks.items()
    }
    return Kept(blocks, _alone(kept.activations))


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    held = tensor.untyped_storage().nbytes()
    return tensor if held == tensor.numel() * tensor.element_size() else tensor.clone()
