"""Which packs one evaluation watches, and what is known of each pack's instrument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from monitor.alert.policy import PackHealth, WatchedPack
from monitor.ledger import Ledger
from monitor.settings import Settings
from monitor.store.packs import PackFeature
from monitor.values.drift import Baseline
from monitor.values.fidelity import Compared
from monitor.values.presence import PackPresence
from monitor.values.scores import CanaryRun

CANARY_INTERVALS: Final = 3
"""A canary run vouches for its copy for so many of `pack.canary_interval`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A watched pack. Without an approved baseline only its instrument is judged."""

    pack_id: str
    features: Sequence[PackFeature]
    baseline: Baseline | None
    canaries: Sequence[CanaryRun]
    """The latest recent run of every live worker with this pack."""

    def info(self) -> WatchedPack:
        return WatchedPack(
            pack_id=self.pack_id,
            baseline_id=self.baseline.baseline_id if self.baseline else None,
            features=self.features,
        )


def watched_packs(
    ledger: Ledger, settings: Settings, presence: Sequence[PackPresence], now: datetime
) -> list[Subject]:
    """Every pack that a worker was seen with lately, its baseline, and who vouches for the instrument.

    A pack whose workers are gone is watched on for ``drift.unwatched_after``: a restart, or another
    pack beside it, ends none of its alerts.
    """
    since = now - settings.drift.unwatched_after
    runs = ledger.canaries(now - CANARY_INTERVALS * settings.pack.canary_interval, now)
    alive = ledger.alive(now)
    found = []
    for pack in presence:
        if pack.last_seen_at is None or pack.last_seen_at < since:
            continue
        own = [run for run in runs if run.lineage.pack_id == pack.pack_id]
        found.append(
            Subject(
                pack_id=pack.pack_id,
                features=ledger.features(pack.pack_id),
                baseline=ledger.baseline(pack.pack_id, now),
                # A worker that is gone vouches for nothing, unless nobody else is there to ask.
                canaries=[run for run in own if run.worker_id in alive or not pack.live_workers],
            )
        )
    return found


def pack_health(subject: Subject, replays: Compared | None = None) -> PackHealth:
    """What there is to know of the pack's instrument, and of its ``replays``."""
    return PackHealth(
        pack_id=subject.pack_id,
        baseline_id=subject.baseline.baseline_id if subject.baseline else None,
        mismatches=mismatches(subject),
        canaries=subject.canaries,
        replays=replays or Compared(n=0),
    )


def mismatches(subject: Subject) -> tuple[str, ...]:
    """Sentences: what keeps scores and baseline from belonging together."""
    if subject.baseline is None:
        return ()
    made_from = subject.baseline.fingerprint
    others = tuple(
        f"worker {run.worker_id} replays model {model}, the baseline was made with"
        f" {', '.join(made_from.models)}: capture a new baseline"
        for run in subject.canaries
        if (model := made_from.strange(run.lineage.model_hash)) is not None
    )
    return others + tuple(
        f"worker {run.worker_id} reads in {run.lineage.dtype}, the baseline was made in"
        f" {' and '.join(made_from.dtypes)}: set replay.dtype, or capture a new baseline"
        for run in subject.canaries
        if made_from.in_another_dtype(run.lineage.dtype)
    )
