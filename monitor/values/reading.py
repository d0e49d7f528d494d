"""Where a consumer group reads on, as the store keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from monitor.values.checks import require

Partition = tuple[str, int]
Places = Mapping[int, frozenset[int]]
"""Of one partition: offsets of records, and which of the halves in them still wait."""


Span = tuple[int, int]
"""Offsets [first, end) of one partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPoint:
    """Where the reading of one partition goes on."""

    next_offset: int
    waiting: Places = field(default_factory=dict)
    """Records that were read and hold halves that still wait: they are read once more."""
    read: tuple[Span, ...] = ()
    """What was read before the reading point was moved, and is passed over: each record counts once."""

    def __post_init__(self) -> None:
        require(self.next_offset >= 0, "next_offset is an offset")


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same offsets as spans that neither touch nor overlap, in order; empty ones are left out."""
    made: list[Span] = []
    for first, end in sorted(spans):
        if first >= end:
            continue
        if made and first <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], end))
        else:
            made.append((first, end))
    return tuple(made)


def outside(span: Span, spans: Iterable[Span]) -> int:
    """How many offsets of ``span`` lie in none of ``spans``, which are `joined`."""
    first, end = span
    covered = sum(max(0, min(end, last) - max(first, start)) for start, last in spans)
    return max(0, end - first) - covered
