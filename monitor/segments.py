"""The segments that a worker tells apart. The store knows them, so neither a restart nor a second worker
makes them more than ``ingest.max_segments``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Engine

from monitor.ingest.sampling import labelled, segments_of
from monitor.logs import get_logger
from monitor.settings import IngestSettings
from monitor.store.border import clean
from monitor.store.database import transaction
from monitor.store.segments import admit_segments, known_segments, saw_segments
from monitor.values.prompts import EVERYTHING, Prompt

log = get_logger(__name__)

LOOK_AGAIN: Final = timedelta(hours=1)
"""How often a worker says which segments it saw, and learns what others admitted and what was forgotten."""
_EVERYTHING: Final = (EVERYTHING,)
FORGOTTEN_AFTER: Final = timedelta(days=45)
"""A segment that no worker saw for so long gives its place up when there is no other."""


class Segments:
    """What a worker knows of its group's segments. For one thread."""

    def __init__(self, database: Engine, group_id: str, settings: IngestSettings) -> None:
        self._database = database
        self._group_id = group_id
        self._keys = settings.segment_keys
        self._most = settings.max_segments
        self._known: frozenset[str] = frozenset()
        self._seen: set[str] = set()
        self._full = False
        self._look_at: datetime | None = None

    def admit(self, prompts: Iterable[Prompt], now: datetime) -> None:
        """Learn the segments of ``prompts``; asks the store when one is not known and there may be room.

        Raises `DatabaseUnavailable`; call again.
        """
        if not self._keys:
            return
        self._look(now)
        wanted = [clean(one) for prompt in prompts for one in labelled(prompt, self._keys)]
        if not self._full and not self._known.issuperset(wanted):
            with transaction(self._database) as c:
                self._known = admit_segments(c, self._group_id, wanted, self._most, FORGOTTEN_AFTER)
            self._full = len(self._known) >= self._most
            if self._full:
                log.warning(
                    "segments.no_more_room",
                    limit=self._most,
                    effect="new ones are counted as key=(other)",
                    mend="Raise ingest.max_segments, or take a key with many values out of segment_keys.",
                )
        self._seen.update(self._known.intersection(wanted))

    def of(self, prompt: Prompt) -> tuple[str, ...]:
        """The prompt's segments; see `segments_of`. `admit` it first."""
        if not self._keys:
            return _EVERYTHING
        return segments_of(prompt, self._keys, lambda segment: clean(segment) in self._known)

    def _look(self, now: datetime) -> None:
        if self._look_at is not None and now < self._look_at:
            return
        with transaction(self._database) as c:
            if self._seen:
                saw_segments(c, self._group_id, self._seen)
            self._known = known_segments(c, self._group_id)
        self._seen.clear()
        self._full = False
        self._look_at = now + LOOK_AGAIN
