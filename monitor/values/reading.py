"""Where a consumer group reads on, as the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from monitor.values.checks import require

Partition = tuple[str, int]
Places = Mapping[int, frozenset[int]]
"""Of one partition: offsets of records, and which of the halves in them still wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPoint:
    """Where the reading of one partition goes on."""

    next_offset: int
    waiting: Places = field(default_factory=dict)
    """Records that were read and hold halves that still wait: they are read once more."""

    def __post_init__(self) -> None:
        require(self.next_offset >= 0, "next_offset is an offset")
