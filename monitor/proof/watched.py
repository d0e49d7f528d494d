"""One feature's held-out history, and what the watcher concludes of a draw of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from sqlalchemy import Connection

from monitor.alert.rules import FeatureInfo
from monitor.drift.bets import Bets, Stream, bets_on
from monitor.drift.history import History
from monitor.drift.sequential import Evidence
from monitor.drift.tests import variance
from monitor.evaluation import compare_all, evidence, take_in
from monitor.proof.resampling import Blocks, blocks_of, with_persona
from monitor.settings import DriftSettings, Settings
from monitor.store.windows import new_buckets
from monitor.subjects import Subject
from monitor.values.drift import Baseline, DetectorState, Drift, Window
from monitor.values.prompts import EVERYTHING
from monitor.values.scores import Bucket
from monitor.vouching import average_run_length

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Where every draw begins; which moment it is matters to nobody."""


def watched(
    c: Connection,
    settings: Settings,
    subject: Subject,
    baseline: Baseline,
    index: int,
    start: datetime,
    end: datetime,
) -> Watched | None:
    """The feature ``index`` of the subject's, with its history in [start, end) but for the baseline's own.

    None where the baseline holds no stream of it, so that it is not watched.
    """
    key: Stream = (index, EVERYTHING)
    if key not in baseline.streams:
        return None
    drift = settings.drift
    given = drift.adjust and key in baseline.adjusted
    parts = [
        History.of(
            new_buckets(
                c,
                subject.pack_id,
                start - timedelta(microseconds=1),
                end,
                features=[index],
                segments=[EVERYTHING],
                adjusted_by=adjusted_by,
            ),
            start,
            end,
            drift.bucket,
        )
        for adjusted_by in (None, *([baseline.baseline_id] if given else []))
    ]
    history = _beside([part for part in parts if part.streams] or parts[:1])
    blocks = blocks_of(history, [(baseline.window_start, baseline.window_end)])
    return Watched.of(subject, baseline, index, drift, blocks, average_run_length(settings))


def _beside(parts: Sequence[History]) -> History:
    """Of parts of the same interval: their streams side by side."""
    first = parts[0]
    return History(
        start=first.start,
        step=first.step,
        streams=[stream for part in parts for stream in part.streams],
        n=np.concatenate([part.n for part in parts], axis=1),
        totals=np.concatenate([part.totals for part in parts], axis=1),
        squares=np.concatenate([part.squares for part in parts], axis=1),
        tails=np.concatenate([part.tails for part in parts], axis=1),
        unknown=np.concatenate([part.unknown for part in parts], axis=1),
        histograms=np.concatenate([part.histograms for part in parts], axis=1),
    )


@dataclass(kw_only=True)
class Resampled:
    """The ledger of one run: one feature's figures, and where its detectors stand."""

    raw: History
    adjusted: History | None
    states: dict[tuple[int, str], DetectorState] = field(default_factory=dict)

    def windows(
        self, pack_id: str, start: datetime, end: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Window]:
        found = self.raw if adjusted_by is None else self.adjusted
        return found.windows(start, end) if found is not None else ()

    def buckets(
        self, pack_id: str, after: datetime, before: datetime, *, adjusted_by: str | None = None
    ) -> Sequence[Bucket]:
        found = self.raw if adjusted_by is None else self.adjusted
        return found.buckets(after, before) if found is not None else ()

    def detectors(self, baseline_id: str) -> Mapping[tuple[int, str], DetectorState]:
        return self.states

    def keep_detectors(self, states: Iterable[DetectorState]) -> None:
        self.states = {(state.feature, state.segment): state for state in states}


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One feature on one baseline, with its held-out history: raw scores, and adjusted ones where watched."""

    subject: Subject
    baseline: Baseline
    index: int
    settings: DriftSettings
    blocks: Blocks
    """One stream, or two: the second is the adjusted one's."""
    bets: Bets

    @classmethod
    def of(
        cls,
        subject: Subject,
        baseline: Baseline,
        index: int,
        settings: DriftSettings,
        blocks: Blocks,
        average_run_length: timedelta,
    ) -> Watched:
        bets = bets_on(baseline, subject.features, settings, average_run_length)
        key: Stream = (index, EVERYTHING)
        own = {key: bets.detectors[key]} if key in bets.detectors else {}
        return cls(
            subject=subject,
            baseline=baseline,
            index=index,
            settings=settings,
            blocks=blocks,
            bets=replace(bets, detectors=own),
        )

    @property
    def feature(self) -> FeatureInfo:
        return self.subject.features[self.index]

    @property
    def deviations(self) -> list[float]:
        key = (self.index, EVERYTHING)
        streams = [self.baseline.streams[key]]
        if key in self.bets.adjusted:
            streams.append(self.baseline.adjusted[key])
        return [variance(stream.window) ** 0.5 or 1.0 for stream in streams]

    def run(
        self, generator: np.random.Generator, length: timedelta, size: float, share: float
    ) -> Resampled:
        """One draw: a stretch that fills the longest window, then ``length`` with a persona in it."""
        blocks, bucket = self.blocks, self.settings.bucket
        block = blocks.length * bucket
        count = -(-self.before // block) + -(-length // block)
        change = _EPOCH + -(-self.before // block) * block
        drawn = blocks.drawn(_EPOCH, count, generator)
        if share > 0.0 and size != 0.0:
            drawn = with_persona(
                drawn,
                self.subject.features[self.index],
                self.deviations,
                since=change,
                share=share,
                size=size,
                generator=generator,
            )
        parts = [_one_stream(drawn, s, (self.index, EVERYTHING)) for s in range(len(drawn.streams))]
        return Resampled(raw=parts[0], adjusted=parts[1] if len(parts) > 1 else None)

    @property
    def before(self) -> timedelta:
        """The longest window."""
        return max(self.settings.windows.values())

    @property
    def change(self) -> datetime:
        block = self.blocks.length * self.settings.bucket
        return _EPOCH + -(-self.before // block) * block

    def drifts(self, ledger: Resampled, end: datetime) -> list[Drift]:
        """What the watcher concludes of the windows that end at ``end``."""
        bucket = self.settings.bucket
        found: Mapping[Stream, Evidence] = {}
        if self.bets.detectors:
            states = take_in(ledger, self.baseline, self.bets, end, bucket, held=False)
            found = evidence(self.bets, states)
        return compare_all(
            ledger, self.settings, self.subject, self.baseline, self.bets, found, end, end
        )

    def warm(self, ledger: Resampled) -> None:
        """Let the detectors pass through the stretch before the change."""
        bucket, at = self.settings.bucket, _EPOCH + self.settings.bucket
        while self.bets.detectors and at <= self.change:
            take_in(ledger, self.baseline, self.bets, at, bucket, held=False)
            at += timedelta(hours=1)


def _one_stream(history: History, s: int, stream: Stream) -> History:
    return History(
        start=history.start,
        step=history.step,
        streams=[stream],
        n=history.n[:, [s]],
        totals=history.totals[:, [s]],
        squares=history.squares[:, [s]],
        tails=history.tails[:, [s]],
        unknown=history.unknown[:, [s]],
        histograms=history.histograms[:, [s]],
    )
