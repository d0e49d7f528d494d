"""Asking the broker, on a schedule, where the logs of our partitions end.

A poll tells the end of those partitions alone that it fetches; the others, and all of them while a
full queue holds reading up, keep an old one. So the broker is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from monitor.errors import BrokerUnavailable
from monitor.ingest.kafka.natives import high_watermarks, look_up, positions
from monitor.logs import get_logger
from monitor.values.reading import Partition

log = get_logger(__name__)

ASK_SECONDS: Final = 15.0
TIMEOUT_MS: Final = 3_000
"""Polls wait for the answer: a broker that is slow to give it must not cost the membership."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What the broker answered, for each partition."""

    log: Mapping[Partition, int]
    """The high watermark: the offset that the next record will get."""
    readable: Mapping[Partition, int]
    """The last stable offset: no record at or above it may be read, for a transaction before it is open."""
    positions: Mapping[Partition, int]
    """Up to where each was read when the broker was asked."""
    asked_at: datetime


class EndsAsked:
    """When to ask, and asking. For the source's own thread."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._due_at = 0.0
        self._known: frozenset[Partition] = frozenset()

    def ask(self, consumer: KafkaConsumer, partitions: frozenset[Partition]) -> Ends | None:
        """The ends of the partitions that are read; None when it is not time, or in vain.

        It is time every `ASK_SECONDS`, and at once when there are new partitions.
        """
        now, asked = time.monotonic(), partitions
        if not asked or (now < self._due_at and asked <= self._known):
            return None
        self._due_at, self._known = now + ASK_SECONDS, asked
        at, standing = self._clock(), positions(consumer)
        try:
            ends = look_up(high_watermarks(consumer), asked, TIMEOUT_MS)
            behind = [one for one, end in ends.items() if standing.get(one, end) < end]
            readable = look_up(consumer.end_offsets, behind, TIMEOUT_MS) if behind else {}
        except (KafkaError, BrokerUnavailable) as error:
            log.info("kafka.ends_not_told", error=str(error) or type(error).__name__)
            return None
        return Ends(
            log=ends,
            readable={**ends, **readable},
            positions={one: standing[one] for one in asked if one in standing},
            asked_at=at,
        )
