"""Which streams of one pack have changed, all families of tests together: what one evaluation discovers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from monitor.drift import discovery
from monitor.drift.bets import Stream
from monitor.subjects import Subject
from monitor.values.drift import DetectorState, Drift
from monitor.values.evidence import Discoveries, StreamEvidence
from monitor.values.surprise import IdentityState
from monitor.values.twin import TwinState
from monitor.vouching import Heard

State = DetectorState | IdentityState | TwinState


def discoveries_of(
    subject: Subject, heard: Heard, states: Mapping[Stream, DetectorState], rate: float
) -> Discoveries:
    """Of the tests as they stand after this step; ``states`` are the detectors', none without a baseline."""
    streams = tuple(_streams(subject, heard, states))
    line = discovery.line([stream.log_e for stream in streams], rate)
    return Discoveries(streams=streams, rate=rate, line=line)


def _streams(
    subject: Subject, heard: Heard, states: Mapping[Stream, DetectorState]
) -> Iterator[StreamEvidence]:
    names = [feature.name for feature in subject.features]
    for (feature, segment), state in states.items():
        yield StreamEvidence(
            family="drift",
            segment=segment,
            feature=names[feature],
            since=_since(state),
            log_e=_log_e(state),
        )
    for test in heard.tests.values():
        yield StreamEvidence(
            family="alternative" if test.alternative else "identity",
            segment=test.segment,
            served=test.served,
            alternative=test.alternative,
            since=_since(test),
            log_e=_log_e(test),
        )
    for twins in heard.twins.tests.values() if heard.twins else ():
        for twin in twins:
            yield StreamEvidence(
                family="twin",
                segment=twin.segment,
                feature=names[twin.feature],
                since=_since(twin),
                log_e=_log_e(twin),
            )


def _since(state: State) -> datetime:
    return state.process.since if state.process else state.last_bucket


def _log_e(state: State) -> float:
    """What has taken in nothing yet has an e-value of 1."""
    return state.process.log_e if state.process else 0.0


def with_discoveries(drifts: Iterable[Drift], made: Discoveries) -> Iterator[Drift]:
    """The drifts with the e-value of their stream, where a detector runs on it."""
    found = {(one.feature, one.segment): one.log_e for one in made.streams if one.family == "drift"}
    for drift in drifts:
        log_e = found.get((drift.feature, drift.segment))
        yield drift if log_e is None else replace(drift, log_e=log_e, log_e_line=made.line)
