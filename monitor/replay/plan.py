"""Which tokens to run, in which forward pass: nothing twice, no padding, no row over the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


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


def plan(
    rows: Sequence[tuple[int, ...]], *, batch_tokens: int, min_shared_tokens: int | None
) -> Plan:
    """Plan distinct ``rows`` of token ids. ``min_shared_tokens`` None: share no prefixes."""
    paths: list[tuple[int, ...]]
    if min_shared_tokens is None:
        segments = [Segment(ids=row) for row in rows]
        paths = [(index,) for index in range(len(rows))]
    else:
        order = sorted(range(len(rows)), key=rows.__getitem__)
        common = [_common(rows[a], rows[b]) for a, b in pairwise(order)]
        segments, paths = _shared(rows, order, common, min_shared_tokens)
    return Plan(
        segments=tuple(segments),
        paths=tuple(paths),
        batches=tuple(_batches(segments, batch_tokens)),
    )


def _shared(
    rows: Sequence[tuple[int, ...]], order: Sequence[int], common: Sequence[int], least: int
) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Split sorted rows into runs that share at least ``least`` further tokens, level by level.

    ``common[i]`` is the number of leading tokens that rows ``order[i]`` and ``order[i + 1]`` share.
    """
    segments: list[Segment] = []
    paths: list[tuple[int, ...]] = [()] * len(rows)
    pending: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]
    while pending:
        low, high, depth, chain = pending.pop()
        start = low
        for stop in range(low + 1, high + 1):
            if stop < high and common[stop - 1] >= depth + least:
                continue
            if stop - start == 1:
                row = order[start]
                if depth < len(rows[row]):
                    segments.append(Segment(ids=rows[row][depth:], first=depth, chain=chain))
                    paths[row] = (*chain, len(segments) - 1)
                else:
                    paths[row] = chain
            else:
                end = min(common[start : stop - 1])
                ids = rows[order[start]][depth:end]
                segments.append(Segment(ids=ids, first=depth, chain=chain, shared=True))
                pending.append((start, stop, end, (*chain, len(segments) - 1)))
            start = stop
    return segments, paths


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _batches(segments: Sequence[Segment], budget: int) -> list[tuple[int, ...]]:
    """Prefixes before what continues them; within a level, longest first into the first row with room."""
    batches: list[tuple[int, ...]] = []
    for level in sorted({len(segment.chain) for segment in segments}):
        members = [i for i, segment in enumerate(segments) if len(segment.chain) == level]
        members.sort(key=lambda i: (-len(segments[i].ids), i))
        open_rows: list[list[int]] = []
        room: list[int] = []
        for index in members:
            size = len(segments[index].ids)
            fitting = next((r for r, left in enumerate(room) if left >= size), None)
            if fitting is None:
                open_rows.append([index])
                room.append(budget - size)
            else:
                open_rows[fitting].append(index)
                room[fitting] -= size
        batches += [tuple(row) for row in open_rows]
    return batches
