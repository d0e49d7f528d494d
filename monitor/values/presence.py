"""Who is at work: packs, the workers that score with them, and how far a consumer group has read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from monitor.values.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPresence:
    """A registered pack, and the workers that were seen with it."""

    pack_id: str
    name: str
    registered_at: datetime
    last_seen_at: datetime | None
    """When a worker with the pack was last seen; None: never."""
    live_workers: int
    baseline_id: str | None
    """Its approved baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPresence:
    """A worker as it last showed itself."""

    worker_id: str
    group_id: str
    pack_id: str
    state: str
    started_at: datetime
    seen_at: datetime
    remarks: Sequence[str] = ()
    """What it says of what is wrong around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestHealth:
    """What is known of a consumer group: how far it reads, what it made of the records, who reads."""

    progress: Sequence[Progress]
    """One for each partition."""
    outcomes: Mapping[str, int]
    """Records of an interval, by their own time: ``scored``, ``dead:<reason>``, ``skipped:<reason>``."""
    last_scored_at: datetime | None
    """When an offset last moved."""
    workers: Sequence[WorkerPresence]
    """Those that live."""

    @property
    def lag(self) -> Mapping[str, int] | None:
        """Records behind the log's end by ``topic/partition``; None where nothing is known."""
        lag: Counter[str] = Counter()
        for one in self.progress:
            lag[one.source] += one.lag
        return dict(lag) or None


def live(packs: Sequence[PackPresence]) -> list[PackPresence]:
    """Those with a live worker."""
    return [pack for pack in packs if pack.live_workers]


def foremost(packs: Sequence[PackPresence]) -> PackPresence | None:
    """The pack that is meant where none is named; it does not change from one moment to the next.

    Of the live ones the one with an approved baseline, then the one registered first. Without a live
    one: the one seen last, and before any worker was seen the one registered last.
    """
    if at_work := live(packs):
        return min(at_work, key=lambda pack: (pack.baseline_id is None, pack.registered_at))
    seen = [pack for pack in packs if pack.last_seen_at is not None]
    return max(
        seen or packs, key=lambda pack: pack.last_seen_at or pack.registered_at, default=None
    )


def several_live(packs: Sequence[PackPresence]) -> str | None:
    """A sentence that says so when more than one pack is live; None when not."""
    at_work = live(packs)
    if len(at_work) < 2:
        return None
    named = ", ".join(f"{pack.name} ({pack.pack_id[:12]}, {_workers(pack)})" for pack in at_work)
    return (
        f"{len(at_work)} packs have live workers: {named}. Each is watched apart, against its own"
        " baseline, on the records that its own workers read."
    )


def said_by(workers: Sequence[WorkerPresence]) -> list[str]:
    """What the workers remark, each sentence once, in order."""
    return sorted({said for worker in workers for said in worker.remarks})


def _workers(pack: PackPresence) -> str:
    return "1 worker" if pack.live_workers == 1 else f"{pack.live_workers} workers"
