"""Which tokens to run, in which forward pass: nothing twice, little or no padding, no pass over the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

Way = Literal["packed", "batched", "alone"]
"""How segments stand in a forward pass: side by side in one row, below each other in rows that are filled up
on the right, or each in a pass of its own."""
PADDING: Final = 0.05
"""Largest share of a batch's places that may be filled up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens that are run together, standing at positions ``first`` and on.

    ``chain`` holds the indices of the segments that come before it in its prompts, root first;
    ``shared`` says that others continue it, so its keys and values are kept.
    """

    ids: tuple[int, ...]
    first: int = 0
    chain: tuple[int, ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``segments`` [s]; ``paths[i]`` are the segments of row i, in order; ``batches`` run in order."""

    segments: tuple[Segment, ...]
    paths: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    def repeated(self, count: int, batch_tokens: int) -> Plan:
        """The segments ``count`` times, packed: number i of the k-th time is k * segments + i, and goes on from its own."""
        each, rows = len(self.segments), len(self.paths)
        segments = [
            replace(one, chain=tuple(shift + link for link in one.chain))
            for shift in range(0, count * each, each)
            for one in self.segments
        ]
        return Plan(
            segments=tuple(segments),
            paths=tuple(
                tuple(index + (line // rows) * each for index in self.paths[line % rows])
                for line in range(count * rows)
            ),
            batches=tuple(_batches(segments, batch_tokens, "packed", PADDING)),
        )

    def spelled(self, index: int) -> tuple[int, ...]:
        """The tokens of a prompt up to the end of a segment."""
        segment = self.segments[index]
        before = (token for one in segment.chain for token in self.segments[one].ids)
        return (*before, *segment.ids)


def plan(
    rows: Sequence[tuple[int, ...]],
    *,
    batch_tokens: int,
    min_shared_tokens: int | None,
    way: Way = "packed",
    padding: float = PADDING,
    known: Callable[[tuple[int, ...]], int] = lambda _row: 0,
) -> Plan:
    """Plan distinct ``rows`` of token ids. ``min_shared_tokens`` None: share no prefixes.

    ``known`` says how many of a row's first tokens are kept from before: a segment ends there, so that it need not be run.
    ``batch_tokens`` bounds the places of a pass, filled up ones among them; a longer row stands alone.
    """
    paths: list[tuple[int, ...]]
    if min_shared_tokens is None:
        segments = [Segment(ids=row) for row in rows]
        paths = [(index,) for index in range(len(rows))]
    else:
        order = sorted(range(len(rows)), key=rows.__getitem__)
        common = [common_length(rows[a], rows[b]) for a, b in pairwise(order)]
        segments, paths = _shared(rows, order, common, min_shared_tokens, known)
    return Plan(
        segments=tuple(segments),
        paths=tuple(paths),
        batches=tuple(_batches(segments, batch_tokens, way, padding)),
    )


def _shared(
    rows: Sequence[tuple[int, ...]],
    order: Sequence[int],
    common: Sequence[int],
    least: int,
    known: Callable[[tuple[int, ...]], int],
) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Split sorted rows into runs that share at least ``least`` further tokens, level by level.

    ``common[i]`` is the number of leading tokens that rows ``order[i]`` and ``order[i + 1]`` share.
    """
    segments: list[Segment] = []
    paths: list[tuple[int, ...]] = [()] * len(rows)
    pending: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]

    def added(
        row: tuple[int, ...], depth: int, end: int, chain: tuple[int, ...], shared: bool
    ) -> tuple[int, ...]:
        """``chain`` with the tokens of ``row`` from ``depth`` to ``end``, what is kept of them apart."""
        kept = min(known(row), end)
        if depth + least <= kept:
            segments.append(Segment(ids=row[depth:kept], first=depth, chain=chain, shared=True))
            depth, chain = kept, (*chain, len(segments) - 1)
        if depth < end:
            segments.append(Segment(ids=row[depth:end], first=depth, chain=chain, shared=shared))
            chain = (*chain, len(segments) - 1)
        return chain

    while pending:
        low, high, depth, chain = pending.pop()
        start = low
        for stop in range(low + 1, high + 1):
            if stop < high and common[stop - 1] >= depth + least:
                continue
            row = rows[order[start]]
            if stop - start == 1:
                paths[order[start]] = added(row, depth, len(row), chain, False)
            else:
                end = min(common[start : stop - 1])
                pending.append((start, stop, end, added(row, depth, end, chain, True)))
            start = stop
    return segments, paths


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _batches(
    segments: Sequence[Segment], budget: int, way: Way, padding: float
) -> list[tuple[int, ...]]:
    """Prefixes before what continues them; within a level, longest first."""
    batches: list[tuple[int, ...]] = []
    for level in sorted({len(segment.chain) for segment in segments}):
        members = [i for i, segment in enumerate(segments) if len(segment.chain) == level]
        members.sort(key=lambda i: (-len(segments[i].ids), i))
        sizes = [len(segments[i].ids) for i in members]
        if way == "packed":
            found = _filled(sizes, budget)
        elif way == "batched":
            found = _alike(sizes, budget, padding)
        else:
            found = [[place] for place in range(len(sizes))]
        batches += [tuple(members[place] for place in batch) for batch in found]
    return batches


def _filled(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Each of the ``sizes``, longest first, into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for place, size in enumerate(sizes):
        fitting = next((r for r, left in enumerate(room) if left >= size), None)
        if fitting is None:
            rows.append([place])
            room.append(budget - size)
        else:
            rows[fitting].append(place)
            room[fitting] -= size
    return rows


def _alike(sizes: Sequence[int], budget: int, padding: float) -> list[list[int]]:
    """Neighbours of the ``sizes``, longest first, while at most ``padding`` of their batch is filled up."""
    batches: list[list[int]] = []
    for place, size in enumerate(sizes):
        if batches:
            batch = batches[-1]
            places = sizes[batch[0]] * (len(batch) + 1)
            held = sum(sizes[other] for other in batch) + size
            if places <= budget and places - held <= padding * places:
                batch.append(place)
                continue
        batches.append([place])
    return batches
