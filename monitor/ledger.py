"""What an evaluation reads, and where it keeps what it knows from one step to the next.

`Ledger` is the store at this moment, as the watcher works with it. A backtest works with another one
(`monitor.proof.replayed`): the same figures as they lay at an earlier moment, and alerts and detectors of its
own. Whoever evaluates is handed a ledger, a time and settings, and knows nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection

from monitor.drift import lateness
from monitor.drift.lateness import Reach
from monitor.settings import DriftSettings
from monitor.store import (
    alerts,
    alternatives,
    discoveries,
    drift,
    identity,
    ingest,
    packs,
    scores,
    server_canaries,
    twins,
    windows,
    workers,
)
from monitor.store.baselines import load_baseline
from monitor.store.fidelity import replays_compared
from monitor.values.alerts import Alert, Event, Silence
from monitor.values.drift import Baseline, DetectorState, Drift, Window
from monitor.values.evidence import Discoveries
from monitor.values.fidelity import Compared
from monitor.values.likeness import Likeness, LikenessBucket
from monitor.values.presence import IngestHealth, PackPresence
from monitor.values.progress import Progress
from monitor.values.scores import Bucket, CanaryRun
from monitor.values.server_canaries import ServerStanding
from monitor.values.surprise import IdentityBucket, IdentityState, Tally
from monitor.values.twin import TwinState


class Figures(Protocol):
    """Sums of scores; of raw ones, or of those that the baseline ``adjusted_by`` adjusted."""

    def windows(
        self, pack_id: str, start: datetime, end: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Window]:
        """As `monitor.store.windows.read_windows` has them, of [start, end)."""
        ...

    def buckets(
        self, pack_id: str, after: datetime, before: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Bucket]:
        """As `monitor.store.windows.new_buckets` has them."""
        ...


class Detectors(Figures, Protocol):
    """Figures, and where the sequential detectors stand."""

    def detectors(self, baseline_id: str) -> Mapping[tuple[int, str], DetectorState]: ...

    def keep_detectors(self, states: Iterable[DetectorState]) -> None: ...


class Ledger:
    """The store as of now, within the transaction of ``c``."""

    def __init__(self, c: Connection) -> None:
        self._c = c

    # --- who is there ----------------------------------------------------------------------------

    def presence(self, now: datetime) -> Sequence[PackPresence]:
        return packs.pack_presence(self._c, now)

    def features(self, pack_id: str) -> Sequence[packs.PackFeature]:
        return packs.pack_features(self._c, pack_id)

    def baseline(self, pack_id: str, now: datetime) -> Baseline | None:
        """The one that is compared with at ``now``."""
        return load_baseline(self._c, pack_id=pack_id)

    def canaries(self, since: datetime, now: datetime) -> Sequence[CanaryRun]:
        """The latest run of every worker that ran them since then."""
        return workers.latest_canaries(self._c, since)

    def alive(self, now: datetime) -> frozenset[str]:
        """The workers that live."""
        found = workers.live_workers(self._c, now - packs.ALIVE)
        return frozenset(worker.worker_id for worker in found)

    # --- how far is read -------------------------------------------------------------------------

    def health(self, since: datetime, now: datetime, group_id: str) -> IngestHealth:
        return ingest.ingest_health(self._c, since, now, group_id=group_id)

    def reach(self, progress: Iterable[Progress], settings: DriftSettings, now: datetime) -> Reach:
        """Where windows end."""
        return lateness.reach(progress, settings, now)

    def outcomes(self, since: datetime, before: datetime, group_id: str) -> Mapping[str, int]:
        return ingest.outcomes_between(self._c, since, before, group_id=group_id)

    def replays(self, start: datetime, end: datetime) -> Mapping[str, Compared]:
        return replays_compared(self._c, start, end)

    # --- figures ---------------------------------------------------------------------------------

    def windows(
        self, pack_id: str, start: datetime, end: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Window]:
        return windows.read_windows(self._c, pack_id, [(start, end)], adjusted_by=adjusted_by)

    def buckets(
        self, pack_id: str, after: datetime, before: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Bucket]:
        return windows.new_buckets(self._c, pack_id, after, before, adjusted_by=adjusted_by)

    def weighed(
        self, pack_id: str, after: datetime, before: datetime
    ) -> Sequence[IdentityBucket | LikenessBucket]:
        """What the weighed answers between the two times add up to, by minute, segment and model; and what they
        say for each alternative."""
        return [
            *identity.new_identity(self._c, pack_id, after, before),
            *alternatives.new_likenesses(self._c, pack_id, after, before),
        ]

    def tallies(self, pack_id: str, start: datetime, end: datetime) -> Mapping[str, Tally]:
        return identity.tallies(self._c, pack_id, start, end)

    def likenesses(
        self, pack_id: str, start: datetime, end: datetime
    ) -> Mapping[str, Mapping[str, Likeness]]:
        """What the weighed answers say for each alternative, by segment."""
        return alternatives.likenesses(self._c, pack_id, start, end)

    def twin_windows(self, pack_id: str, start: datetime, end: datetime) -> Sequence[Window]:
        """Of the differences between served answers and their twins."""
        return windows.read_windows(self._c, pack_id, [(start, end)], of_twins=True)

    def twin_buckets(self, pack_id: str, after: datetime, before: datetime) -> Sequence[Bucket]:
        return windows.new_buckets(self._c, pack_id, after, before, of_twins=True)

    def server(self, pack_id: str, end: datetime) -> ServerStanding:
        """How the served endpoint answered when it was asked last; a backtest knows of nothing after ``end``."""
        return server_canaries.server_standing(self._c, pack_id)

    def served(self, pack_id: str, start: datetime, end: datetime) -> tuple[str, ...]:
        """The served models that records named."""
        return packs.served_models(self._c, pack_id, start, end)

    def strongest_prompts(
        self, feature: packs.PackFeature, shown: Drift, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """The prompts that lie furthest towards the persona in the window of ``shown``."""
        return scores.strongest_prompts(
            self._c,
            shown.pack_id,
            feature,
            shown.segment,
            shown.window_start,
            shown.window_end,
            limit,
            adjusted_by=shown.baseline_id if shown.adjusted else None,
        )

    def contents_beyond(
        self, feature: packs.PackFeature, shown: Drift, threshold: float, share: float, limit: int
    ) -> Sequence[tuple[bytes, float]]:
        """Content and score of prompts of ``shown`` that lie at or beyond ``threshold``, both towards the persona: of
        the last ``share`` of its window, the newest ``limit``."""
        return scores.contents_beyond(
            self._c,
            shown.pack_id,
            feature,
            shown.segment,
            shown.window_end - (shown.window_end - shown.window_start) * share,
            shown.window_end,
            threshold,
            limit,
            adjusted_by=shown.baseline_id if shown.adjusted else None,
        )

    # --- what is kept ----------------------------------------------------------------------------

    def detectors(self, baseline_id: str) -> Mapping[tuple[int, str], DetectorState]:
        return drift.load_detectors(self._c, baseline_id)

    def keep_detectors(self, states: Iterable[DetectorState]) -> None:
        drift.save_detectors(self._c, states)

    def tests(self, pack_id: str) -> Mapping[tuple[str, str, str], IdentityState]:
        """Where the tests of the served models stand, by segment, model and the alternative that is bet on."""
        return {
            **identity.load_identity(self._c, pack_id),
            **alternatives.load_alternatives(self._c, pack_id),
        }

    def keep_tests(self, pack_id: str, states: Iterable[IdentityState]) -> None:
        kept = list(states)
        identity.save_identity(self._c, pack_id, [one for one in kept if not one.alternative])
        alternatives.save_alternatives(self._c, pack_id, [one for one in kept if one.alternative])

    def twins(self, pack_id: str) -> Mapping[tuple[int, str], TwinState]:
        """Where the tests of the differences stand, by feature and segment."""
        return twins.load_twins(self._c, pack_id)

    def keep_twins(self, pack_id: str, states: Iterable[TwinState]) -> None:
        twins.save_twins(self._c, pack_id, states)

    def keep_drifts(self, drifts: Iterable[Drift]) -> None:
        drift.save_drifts(self._c, drifts)

    def keep_discoveries(self, pack_id: str, made: Discoveries, now: datetime) -> None:
        discoveries.save_discoveries(self._c, pack_id, made, now)

    def alerts(self, since: datetime) -> Sequence[Alert]:
        """The latest one of every key that is open, or ended since then, or owes its end."""
        return alerts.recent_alerts(self._c, since)

    def silences(self, now: datetime) -> Sequence[Silence]:
        return alerts.active_silences(self._c, now)

    def keep_alert(self, alert: Alert, event: Event | None, endpoints: Iterable[str]) -> None:
        """Raises `StaleAlert` when another process was faster."""
        alerts.save_alert(self._c, alert, event, endpoints)

    def forget(self, alert_id: str) -> None:
        """Drop an alert that never fired."""
        alerts.forget_alert(self._c, alert_id)
