"""What one baseline is compared and bet with: its references, and a detector per stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitor.drift import sequential
from monitor.drift.tails import levels
from monitor.drift.tests import Reference, reference
from monitor.settings import DriftSettings
from monitor.values.drift import Baseline, BaselineStream
from monitor.values.features import Directed
from monitor.values.prompts import WHOLE

Stream = tuple[int, str]
"""Feature index and segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bets:
    """What one baseline is compared and bet with: built once, used at every step."""

    baseline_id: str
    references: Mapping[Stream, Reference]
    adjusted: Mapping[Stream, Reference]
    """The streams that are watched by their scores given the prompt."""
    detectors: Mapping[Stream, sequential.Detector]
    limit: float
    evaluated_until: datetime | None = None
    """Where the windows of the last evaluation ended."""

    def sign(self, stream: Stream) -> int:
        """1 where the persona raises the stream's feature, -1 where it lowers it."""
        return (self.references.get(stream) or self.adjusted[stream]).sign


def bets_on(
    baseline: Baseline,
    features: Sequence[Directed],
    settings: DriftSettings,
    average_run_length: timedelta | None = None,
) -> Bets:
    """Detectors of all streams that have a baseline of their own; ``features`` are the pack's.

    ``average_run_length`` is theirs where they share that of the settings with others.

    Against the pooled one a segment that has always been different would alarm.
    """
    adjusted = baseline.adjusted if settings.adjust else {}
    own = {
        key: stream
        for key, stream in {**baseline.streams, **adjusted}.items()
        if key[1] in WHOLE or stream.window.n >= settings.min_segment_n
    }
    length = average_run_length or settings.average_run_length
    limit = sequential.threshold(length, len(own), settings.bucket)
    return Bets(
        baseline_id=baseline.baseline_id,
        references={
            key: _reference(stream, features[key[0]].sign, settings)
            for key, stream in baseline.streams.items()
        },
        adjusted={
            key: _reference(stream, features[key[0]].sign, settings)
            for key, stream in adjusted.items()
        },
        detectors={
            key: sequential.detector(stream, limit=limit, streams=len(own))
            for key, stream in own.items()
        },
        limit=limit,
    )


def _reference(stream: BaselineStream, sign: int, settings: DriftSettings) -> Reference:
    """The stream made ready; one captured before there were tail levels gets them from its histogram."""
    tails = stream.tails
    if tails is None:
        # How far the tail itself depends was not kept: the larger of what was stands in.
        effect = max(stream.design_effect, stream.tail_design_effect)
        tails = levels(stream.window.histogram, (), sign, settings.confidence, effect)
    return reference(stream, sign, tails)
