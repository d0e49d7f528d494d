"""How large the chunks are: as many records as the worker goes through while a chunk may wait to be filled.

What a chunk costs beside its records (statements, commits, rows of buckets) is shared by more of them where the
worker is fast, and a worker with a slow model never has more in hand than it does in that time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from monitor.settings import IngestSettings

LOOKED_BACK_ON: Final = 4
"""Chunks by which the pace is told. A worker that begins takes its first three at once: one is parsed while
another is replayed and a third is stored."""


class Pace:
    """Told of every chunk that the worker takes. Not thread-safe; ``now`` is seconds of a monotonic clock."""

    def __init__(self, ingest: IngestSettings) -> None:
        self._seconds = ingest.chunk_wait.total_seconds()
        self._least, self._most = ingest.first_chunk_records, ingest.chunk_records
        self._taken: deque[tuple[int, float]] = deque(maxlen=LOOKED_BACK_ON + 1)
        self.records = self._least
        """How many records the next chunk holds."""

    def took(self, records: int, now: float) -> None:
        """The worker takes a chunk of ``records``. Chunks at most double from one to the next."""
        self._taken.append((records, now))
        if len(self._taken) <= LOOKED_BACK_ON:
            return
        seconds = now - self._taken[0][1]
        gone_through = sum(n for n, _ in self._taken) - records  # this one has just begun
        wanted = self._most
        if seconds > 0.0:
            wanted = min(self._most, int(gone_through / seconds * self._seconds))
        self.records = max(self._least, min(wanted, 2 * self.records))
