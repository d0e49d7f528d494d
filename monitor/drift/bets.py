"""What one baseline is compared and bet with: its references, and a detector per stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from monitor.drift import sequential
from monitor.drift.tests import Reference, reference
from monitor.settings import DriftSettings
from monitor.values.drift import Baseline
from monitor.values.prompts import WHOLE

Stream = tuple[int, str]
"""Feature index and segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bets:
    """What one baseline is compared and bet with: built once, used at every step."""

    baseline_id: str
    references: Mapping[Stream, Reference]
    detectors: Mapping[Stream, sequential.Detector]
    limit: float
    evaluated_until: datetime | None = None
    """Where the windows of the last evaluation ended."""


def bets_on(baseline: Baseline, settings: DriftSettings) -> Bets:
    """Detectors of all streams that have a baseline of their own.

    Against the pooled one a segment that has always been different would alarm.
    """
    own = {
        key: stream
        for key, stream in baseline.streams.items()
        if key[1] in WHOLE or stream.window.n >= settings.min_segment_n
    }
    limit = sequential.threshold(settings.average_run_length, len(own), settings.bucket)
    return Bets(
        baseline_id=baseline.baseline_id,
        references={key: reference(stream) for key, stream in baseline.streams.items()},
        detectors={
            key: sequential.detector(stream, limit=limit, streams=len(own))
            for key, stream in own.items()
        },
        limit=limit,
    )
