"""The ledger of a backtest: figures as they lay at an earlier moment, alerts and detectors of its own.

It writes nothing to the store. What the store does not keep of earlier moments, and so what differs from the
evaluation that really was: see `monitor.proof.backtest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from monitor.alert.policy import end_owed
from monitor.drift.history import BYTES_A_ROW, History
from monitor.drift.lateness import Reach, reach
from monitor.ledger import Ledger
from monitor.settings import DriftSettings
from monitor.store import past
from monitor.store.baselines import load_baseline
from monitor.store.packs import PackFeature, pack_features
from monitor.store.server_canaries import server_standing
from monitor.store.windows import new_buckets
from monitor.store.workers import latest_canaries
from monitor.values.alerts import Alert, AlertState, Event
from monitor.values.drift import Baseline, DetectorState, Drift, Window
from monitor.values.evidence import Discoveries
from monitor.values.fidelity import Compared
from monitor.values.presence import IngestHealth, PackPresence
from monitor.values.progress import Progress
from monitor.values.scores import Bucket, CanaryRun
from monitor.values.server_canaries import ServerStanding
from monitor.values.surprise import IdentityState
from monitor.values.twin import TwinState
from monitor.vouching import MOST_BUCKETS_A_STEP

_PIECE: Final = timedelta(hours=1)
"""Buckets are read in such pieces."""
_MOST_BYTES: Final = 256 * 2**20
"""Buckets are read ahead up to about so much; the longest window is held whatever it takes."""


class Past:
    """The stored figures, read once for all runs of a backtest; moments are asked for in their order."""

    def __init__(
        self, c: Connection, step: timedelta, longest: timedelta, until: Mapping[datetime, datetime]
    ) -> None:
        self.c = c
        self.until = until
        """Where the windows of an evaluation ended, by its time; of others the clock tells."""
        self._step = step
        self._back = longest + (MOST_BUCKETS_A_STEP + 2) * step
        self._histories: dict[tuple[str, str | None], History] = {}
        self._features: dict[str, Sequence[PackFeature]] = {}
        self._baselines: dict[str, Baseline | None] = {}
        self._present: tuple[datetime, Sequence[PackPresence]] | None = None

    def presence(self, now: datetime) -> Sequence[PackPresence]:
        if self._present is None or self._present[0] != now:
            self._present = now, past.presence_at(self.c, now)
        return self._present[1]

    def features(self, pack_id: str) -> Sequence[PackFeature]:
        if pack_id not in self._features:
            self._features[pack_id] = pack_features(self.c, pack_id)
        return self._features[pack_id]

    def baseline(self, baseline_id: str) -> Baseline | None:
        if baseline_id not in self._baselines:
            self._baselines[baseline_id] = load_baseline(self.c, baseline_id)
        return self._baselines[baseline_id]

    def history(
        self, pack_id: str, adjusted_by: str | None, start: datetime, end: datetime
    ) -> History:
        """One that holds [start, end)."""
        key = pack_id, adjusted_by
        found = self._histories.get(key)
        if found is None or start < found.start or end > found.end:
            self._histories[key] = found = self._read(key, found, start, end)
        return found

    def _read(
        self, key: tuple[str, str | None], before: History | None, start: datetime, end: datetime
    ) -> History:
        first = self._floor(min(start, end - self._back))
        parts = []
        if before is not None and before.start <= first < before.end:
            parts.append(before.since(first))
            first = before.end
        streams = max(len(before.streams), 1) if before is not None else None
        ahead = _MOST_BYTES // (BYTES_A_ROW * streams) * self._step if streams else _PIECE
        last = end + max(ahead - self._back, _PIECE)
        while first < last:
            after = first + max(_PIECE // self._step, 1) * self._step
            parts.append(self._piece(key, first, after))
            first = after
        return History.joined(parts)

    def _piece(self, key: tuple[str, str | None], first: datetime, after: datetime) -> History:
        just_before = first - timedelta(microseconds=1)
        read = new_buckets(self.c, key[0], just_before, after, adjusted_by=key[1])
        return History.of(read, first, after, self._step)

    def _floor(self, moment: datetime) -> datetime:
        return moment - timedelta(seconds=moment.timestamp() % self._step.total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """What was read when an alert fired."""

    summary: str
    cause: str | None


class Replayed(Ledger):
    """One run of a backtest: the past's figures, and the alerts and detectors of this run.

    ``baseline`` stands in the place of the one that was in force, for its pack.
    """

    def __init__(self, past: Past, baseline: Baseline | None = None) -> None:
        super().__init__(past.c)
        self._past = past
        self._baseline = baseline
        self._detectors: dict[str, dict[tuple[int, str], DetectorState]] = {}
        self._tests: dict[str, dict[tuple[str, str, str], IdentityState]] = {}
        self._twins: dict[str, dict[tuple[int, str], TwinState]] = {}
        self.raised: dict[str, Alert] = {}
        """By alert id, every alert as it stands."""
        self.fired: dict[str, Fired] = {}

    # --- who was there ---------------------------------------------------------------------------

    def presence(self, now: datetime) -> Sequence[PackPresence]:
        return self._past.presence(now)

    def features(self, pack_id: str) -> Sequence[PackFeature]:
        return self._past.features(pack_id)

    def baseline(self, pack_id: str, now: datetime) -> Baseline | None:
        if self._baseline is not None and self._baseline.pack_id == pack_id:
            return self._baseline
        there = (p.baseline_id for p in self.presence(now) if p.pack_id == pack_id)
        found = next(there, None)
        return self._past.baseline(found) if found else None

    def canaries(self, since: datetime, now: datetime) -> Sequence[CanaryRun]:
        return latest_canaries(self._c, since, now)

    def alive(self, now: datetime) -> frozenset[str]:
        return past.alive_at(self._c, now)

    # --- how far was read ------------------------------------------------------------------------

    def health(self, since: datetime, now: datetime, group_id: str) -> IngestHealth:
        """What became of records; how far each partition was read is not kept."""
        return IngestHealth(
            progress=(),
            outcomes=self.outcomes(since, now, group_id),
            last_scored_at=None,
            workers=(),
        )

    def reach(self, progress: Iterable[Progress], settings: DriftSettings, now: datetime) -> Reach:
        clock = reach((), settings, now)
        until = self._past.until.get(now, clock.until)
        return Reach(until=until, by_the_clock=clock.by_the_clock)

    def replays(self, start: datetime, end: datetime) -> Mapping[str, Compared]:
        return {}

    # --- figures ---------------------------------------------------------------------------------

    def windows(
        self, pack_id: str, start: datetime, end: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Window]:
        return self._past.history(pack_id, adjusted_by, start, end).windows(start, end)

    def buckets(
        self, pack_id: str, after: datetime, before: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Bucket]:
        return self._past.history(pack_id, adjusted_by, after, before).buckets(after, before)

    def server(self, pack_id: str, end: datetime) -> ServerStanding:
        return server_standing(self._c, pack_id, until=end)

    def strongest_prompts(
        self, feature: PackFeature, shown: Drift, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        return ()

    # --- what this run keeps ---------------------------------------------------------------------

    def detectors(self, baseline_id: str) -> Mapping[tuple[int, str], DetectorState]:
        return self._detectors.get(baseline_id, {})

    def keep_detectors(self, states: Iterable[DetectorState]) -> None:
        for state in states:
            own = self._detectors.setdefault(state.baseline_id, {})
            own[state.feature, state.segment] = state

    def tests(self, pack_id: str) -> Mapping[tuple[str, str, str], IdentityState]:
        return self._tests.get(pack_id, {})

    def keep_tests(self, pack_id: str, states: Iterable[IdentityState]) -> None:
        self._tests[pack_id] = {state.stream: state for state in states}

    def twins(self, pack_id: str) -> Mapping[tuple[int, str], TwinState]:
        return self._twins.get(pack_id, {})

    def keep_twins(self, pack_id: str, states: Iterable[TwinState]) -> None:
        self._twins[pack_id] = {(state.feature, state.segment): state for state in states}

    def keep_drifts(self, drifts: Iterable[Drift]) -> None:
        """Nothing asks for them again."""

    def keep_discoveries(self, pack_id: str, made: Discoveries, now: datetime) -> None:
        """They raise no alert."""

    def alerts(self, since: datetime) -> Sequence[Alert]:
        latest: dict[str, Alert] = {}
        for alert in sorted(self.raised.values(), key=lambda one: one.pending_since):
            if alert.ended_at is None or alert.ended_at >= since or end_owed(alert):
                latest[alert.dedupe_key] = alert
        return [latest[key] for key in sorted(latest)]

    def keep_alert(self, alert: Alert, event: Event | None, endpoints: Iterable[str]) -> None:
        self.raised[alert.alert_id] = alert
        if alert.fired_at is not None and alert.alert_id not in self.fired:
            cause = alert.details.get("cause")
            self.fired[alert.alert_id] = Fired(summary=alert.summary, cause=cause)

    def forget(self, alert_id: str) -> None:
        if self.raised[alert_id].state is AlertState.PENDING:
            del self.raised[alert_id]
