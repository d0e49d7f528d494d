"""Which packs are at work: who scores with them, and whether their drift is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


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


def _workers(pack: PackPresence) -> str:
    return "1 worker" if pack.live_workers == 1 else f"{pack.live_workers} workers"
