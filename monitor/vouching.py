"""Who vouches for the copy and the served model: one pack's witnesses, read and heard at one evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from monitor.drift import cause, sequential, server
from monitor.drift.alternatives import nearest
from monitor.drift.cause import Asked, verdict
from monitor.drift.identity import Stream, taken_in
from monitor.ledger import Ledger
from monitor.pairing import Twins, twins_of
from monitor.settings import Settings
from monitor.subjects import Subject
from monitor.values.drift import Drift
from monitor.values.evidence import Discoveries
from monitor.values.likeness import Likeness
from monitor.values.numerics import Numerics, tolerance_in_force
from monitor.values.prompts import EVERYTHING, GENERATED
from monitor.values.server_canaries import ServerStanding
from monitor.values.surprise import IdentityState, Tally
from monitor.values.witnesses import Cause, Verdict, Witness

MOST_BUCKETS_A_STEP: Final = 60
"""Tests and detectors that were away for long catch up in such strides, so that no step takes minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What vouches for one pack's copy and served model, whatever drifts."""

    canaries: Witness
    labels: Witness | None
    """None without a baseline, whose records say what was served before."""
    tests: Mapping[Stream, IdentityState]
    """Empty while identity is switched off."""
    tallies: Mapping[str, Mapping[str, Tally]]
    """By window and segment, what its weighed answers add up to."""
    twins: Twins | None
    """None while twins are switched off."""
    settings: Settings
    end: datetime
    """Of the windows."""
    server: ServerStanding | None = None
    """None while canaries to the served model are off."""
    likenesses: Mapping[str, Mapping[str, Mapping[str, Likeness]]] = field(default_factory=dict)
    """By window and segment, what the weighed answers say for each registered alternative."""
    numerics: Numerics | None = None
    """What the approved baseline measured."""

    def verdict(
        self,
        segment: str,
        window: str,
        *,
        prompts: int = 0,
        asked: Collection[Asked] = (),
        drift: Drift | None = None,
    ) -> Verdict:
        """What a drift of this segment and window is put down to.

        ``prompts`` is how many the window holds, ``asked`` what is known of what was asked.
        """
        return self.weighed(
            self.heard(segment, window, prompts=prompts, asked=asked),
            segment,
            window,
            prompts=prompts,
            drift=drift,
        )

    def weighed(
        self,
        heard: Sequence[Witness],
        segment: str,
        window: str,
        *,
        prompts: int,
        drift: Drift | None,
    ) -> Verdict:
        """The verdict of ``heard`` with what the twins say of ``drift``."""
        if self.twins is None or segment == GENERATED:
            return verdict(heard)
        twin = self.twins.witness(segment, window, drift, prompts=prompts)
        return verdict([*heard, twin])

    def heard(
        self, segment: str, window: str, *, prompts: int, asked: Collection[Asked]
    ) -> list[Witness]:
        """The witnesses that say the same of every feature."""
        heard = [self.canaries]
        if segment == GENERATED:
            heard.append(cause.own_answers())
        else:
            heard.append(self._identity(segment, window, prompts))
            if self.server is not None:
                heard.append(self.asked_directly(self.server, window))
            if self.labels is not None:
                heard.append(self.labels)
        heard.append(cause.prompt_side(asked, self.settings.drift.confidence))
        return heard

    def asked_directly(self, standing: ServerStanding, window: str) -> Witness:
        settings = self.settings
        return server.witness(
            standing,
            since=self.end - settings.drift.windows[window],
            counts_from=self.end - settings.server_canaries.vouches_for,
            confidence=settings.drift.confidence,
        )

    def _identity(self, segment: str, window: str, prompts: int) -> Witness:
        if self.settings.identity.share == 0.0:
            return cause.not_weighed()
        states = [state for state in self.tests.values() if state.segment == segment]
        identity, confidence = self.settings.identity, self.settings.drift.confidence
        return cause.identity(
            states,
            self.tallies.get(window, {}).get(segment, Tally()),
            prompts=prompts,
            confidence=confidence,
            within=identity.vouch_within,
            nearest=nearest(
                states,
                self.likenesses.get(window, {}).get(segment, {}),
                tolerance=tolerance_in_force(self.numerics, identity.tolerance),
                within=identity.vouch_within,
                confidence=confidence,
            ),
        )


def hear(ledger: Ledger, settings: Settings, subject: Subject, end: datetime) -> Heard:
    """The witnesses of one pack, for windows that end at ``end``; tests of identity and twins take a step."""
    windows = settings.drift.windows
    canaries = cause.canaries(subject.canaries)
    held = canaries.finding == "moved"
    tests: Mapping[Stream, IdentityState] = {}
    found: dict[str, Mapping[str, Tally]] = {}
    likenesses: dict[str, Mapping[str, Mapping[str, Likeness]]] = {}
    if settings.identity.share > 0.0:
        tests = moved_on(ledger, settings, subject.pack_id, end, held=held)
        found = {
            name: ledger.tallies(subject.pack_id, end - length, end)
            for name, length in windows.items()
        }
        if settings.identity.alternatives:
            likenesses = {
                name: ledger.likenesses(subject.pack_id, end - length, end)
                for name, length in windows.items()
            }
    labels = None
    if subject.baseline is not None:
        served = ledger.served(subject.pack_id, end - min(windows.values()), end)
        labels = cause.labels(served, subject.baseline.fingerprint.served_models)
    twins = twins_of(
        ledger,
        settings,
        subject,
        end,
        average_run_length=average_run_length(settings),
        most_buckets=MOST_BUCKETS_A_STEP,
        held=held,
    )
    return Heard(
        canaries=canaries,
        labels=labels,
        tests=tests,
        tallies=found,
        likenesses=likenesses,
        twins=twins,
        settings=settings,
        end=end,
        server=ledger.server(subject.pack_id, end) if settings.server_canaries.on else None,
        numerics=subject.baseline.numerics if subject.baseline else None,
    )


def moved_on(
    ledger: Ledger, settings: Settings, pack_id: str, end: datetime, *, held: bool
) -> dict[Stream, IdentityState]:
    """Let the tests see the buckets closed since the last step, and store them.

    ``held``: the buckets are passed over, for the copy itself is in doubt. Alternatives that are not registered any
    more are left alone.
    """
    bucket = settings.drift.bucket
    known = {"", *(one.name for one in settings.identity.alternatives)}
    stored = {key: one for key, one in ledger.tests(pack_id).items() if one.alternative in known}
    begin = end - MOST_BUCKETS_A_STEP * bucket
    last = max((state.last_bucket for state in stored.values()), default=begin)
    until = min(end - bucket, last + MOST_BUCKETS_A_STEP * bucket)
    fresh = () if held or until <= last else ledger.weighed(pack_id, last, until + bucket)
    fresh = [one for one in fresh if one.stream[2] in known]
    length = average_run_length(settings)
    tests = taken_in(
        stored,
        fresh,
        until=until,
        begin=last,
        alone=sequential.threshold(length, 1, bucket),
    )
    ledger.keep_tests(pack_id, tests.values())
    return tests


def average_run_length(settings: Settings) -> timedelta:
    """Of each family of detectors (drift's, identity's, twins'): together they keep the setting's."""
    families = 1 + (settings.identity.share > 0.0) + (settings.twin.share > 0.0)
    return settings.drift.average_run_length * families


def with_causes(
    drifts: Sequence[Drift], heard: Heard, of_prompt: Collection[str]
) -> Iterable[Drift]:
    """The drifts with their cause. ``of_prompt`` names the features that read the prompt side alone."""
    of: dict[tuple[str, str], list[Drift]] = {}
    for drift in drifts:
        of.setdefault((drift.segment, drift.window), []).append(drift)
    prompts = {key: max(drift.n for drift in its) for key, its in of.items()}
    witnesses = {
        # What the copy answered itself was asked in the segment of all prompts.
        key: heard.heard(
            *key,
            prompts=n,
            asked=[
                *cause.asked(
                    of.get((EVERYTHING, key[1]) if key[0] == GENERATED else key, ()), of_prompt
                )
            ],
        )
        for key, n in prompts.items()
    }
    for drift in drifts:
        key = drift.segment, drift.window
        found = heard.weighed(witnesses[key], *key, prompts=prompts[key], drift=drift)
        yield replace(drift, cause=found.cause, witnesses=found.witnesses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What one step saw of one pack."""

    subject: Subject
    heard: Heard
    shortest: str
    """Name of the shortest window."""
    drifts: tuple[Drift, ...]
    discoveries: Discoveries | None = None
    """None while windows wait for what is unread: those of the step before hold."""

    @property
    def cause(self) -> Cause:
        """What a drift of all traffic over the shortest window is put down to."""
        found = (
            d.cause for d in self.drifts if (d.segment, d.window) == (EVERYTHING, self.shortest)
        )
        return next(found, self.heard.verdict(EVERYTHING, self.shortest).cause)

    def prompts(self, segment: str) -> int:
        """How many the shortest window holds, as far as drifts tell."""
        return max(
            (d.n for d in self.drifts if d.segment == segment and d.window == self.shortest),
            default=0,
        )
