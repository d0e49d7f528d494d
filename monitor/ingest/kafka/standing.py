"""Partitions that stand still while their log grows: behind an open transaction, or for no reason.

Pure: positions, ends and the time go in. A partition without a reason has no other watcher: the client
library believes that it reads it (dpkp/kafka-python #3106, #3131).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from monitor.ingest.kafka.ends import Ends
from monitor.ingest.kafka.natives import names_of
from monitor.values.reading import Partition

STAND_SECONDS: Final = 60.0
CURE_SECONDS: Final = 600.0
"""A new consumer costs the whole group a rebalance: no other one within this time."""
NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class _Still:
    position: int
    readable: int
    since: float


class Standing:
    """Which partitions stand still, as of the last look. For the source's own thread but for `said`."""

    def __init__(self) -> None:
        self._still: dict[Partition, _Still] = {}
        self._cured: dict[Partition, int] = {}
        """Where a partition stood when a new consumer was tried for it."""
        self._cured_at = float("-inf")
        self.stalled: frozenset[Partition] = frozenset()
        """Something could be read for `STAND_SECONDS`, and nothing was."""
        self.behind_transactions: Mapping[Partition, int] = {}
        """Everything is read that may be, and has been for `STAND_SECONDS`: how many records wait."""

    def look(self, ends: Ends, now: float) -> frozenset[Partition]:
        """Those that have just been found stalled. All of ``ends`` are read, and none is paused."""
        before, self._still = self._still, {}
        stalled, waiting = set(), {}
        for partition, position in ends.positions.items():
            readable, end = ends.readable.get(partition), ends.log.get(partition)
            if readable is None or end is None or position >= end:
                self._cured.pop(partition, None)
                continue
            if self._cured.get(partition) != position:
                self._cured.pop(partition, None)
            blocked = position >= readable
            last = before.get(partition)
            moved = last is None or last.position != position
            if last is None or moved or (last.position >= last.readable) != blocked:
                last = _Still(position, readable, now)
            self._still[partition] = last
            if now - last.since < STAND_SECONDS:
                continue
            if blocked:
                waiting[partition] = end - position
            else:
                stalled.add(partition)
        found = frozenset(stalled - self.stalled)
        self.stalled, self.behind_transactions = frozenset(stalled), waiting
        return found

    def held_up(self) -> None:
        """Reading was paused: nothing can be said of how long a partition has stood."""
        self._still = {
            one: still for one, still in self._still.items() if still.position >= still.readable
        }
        self.stalled = frozenset()

    def cure(self, now: float) -> frozenset[Partition]:
        """The stalled partitions for which a new consumer is due; each is given once while it stands."""
        due = self.stalled - self._cured.keys()
        if not due or now - self._cured_at < CURE_SECONDS:
            return frozenset()
        self._cured |= {one: self._still[one].position for one in self.stalled}
        self._cured_at = now
        return due

    def restart(self) -> None:
        """A new consumer reads: what is cured is remembered, all else begins again."""
        self._still = {}
        self.stalled, self.behind_transactions = frozenset(), {}

    def said(self) -> tuple[str, ...]:
        """A sentence for each kind of standstill."""
        said = []
        if stalled := self.stalled:
            said.append(
                f"Kafka: {_named(stalled)} not read for a minute though the log grows: a fault of the client "
                "library or of the leader. A new connection was tried; restart the worker if it stays."
            )
        if waiting := self.behind_transactions:
            said.append(
                f"Kafka: {_named(waiting)} read up to a transaction that has been open for more than a minute; "
                f"{sum(waiting.values())} records wait behind it. Its producer must commit or abort it "
                "(Kafka's own kafka-transactions.sh finds it)."
            )
        return tuple(said)


def _named(partitions: Collection[Partition]) -> str:
    names = names_of(sorted(partitions)[:NAMED])
    verb = "is" if len(partitions) == 1 else "are"
    more = f" and {len(partitions) - NAMED} more" if len(partitions) > NAMED else ""
    return f"{', '.join(names)}{more} {verb}"
