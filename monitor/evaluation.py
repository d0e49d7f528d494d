"""One evaluation: what the watcher reads, compares, concludes and stores in one transaction.

``look`` reads and compares: ``watched_packs`` (subjects.py) says which packs are watched, and each is
examined apart; ``compare_all`` gives its windows' drift with the detectors' evidence. ``conclude`` applies the
rules: ``judge`` says what holds now, ``announce`` (announcing.py) takes every alert one step on.

What is read and kept lies in a `Ledger`, which is handed in with the time and the settings: `monitor
backtest` runs this very code on earlier moments.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Final

from monitor.alert.policy import Health, conditions, silence_conditions
from monitor.announcing import announce
from monitor.authorship import by_identity, by_server_canaries, by_twins
from monitor.discovering import discoveries_of, with_discoveries
from monitor.drift import sequential
from monitor.drift.baseline import baseline_for
from monitor.drift.bets import Bets, Stream, bets_on
from monitor.drift.histogram import floor_time
from monitor.drift.lateness import Reach
from monitor.drift.sequential import Evidence
from monitor.drift.tests import compare, with_raw
from monitor.ledger import Detectors, Figures, Ledger
from monitor.repeating import Repeats
from monitor.settings import DriftSettings, Settings
from monitor.subjects import Subject, pack_health, watched_packs
from monitor.values.alerts import Alert, Condition, Event
from monitor.values.drift import Baseline, DetectorState, Drift, Window
from monitor.values.fidelity import Compared
from monitor.values.presence import IngestHealth, PackPresence
from monitor.values.prompts import CANARY, WHOLE
from monitor.vouching import (
    MOST_BUCKETS_A_STEP,
    Examined,
    average_run_length,
    hear,
    with_causes,
)

ROWS_A_WINDOW: Final = 15
"""Segments' quiet windows are kept in the history about so many times per window length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one step saw and did."""

    at: datetime
    ingest: Ingest
    presence: Sequence[PackPresence]
    """Every registered pack, watched or not."""
    packs: tuple[Examined, ...]
    """Those that are watched."""
    conditions: tuple[Condition, ...]
    events: tuple[Event, ...]
    firing: tuple[Alert, ...]

    @property
    def reach(self) -> Reach:
        return self.ingest.reach

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """Of all packs."""
        return tuple(drift for pack in self.packs for drift in pack.drifts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """How far the consumer group has read, whatever packs its workers have."""

    health: IngestHealth
    """Its outcomes are those of the shortest window that is evaluated."""
    reach: Reach
    """Where windows end, and what they wait for."""
    replays: Mapping[str, Compared]
    """By pack, how the replays of the shortest window compare with what was served; empty where no rule
    asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one step saw, before any rule was asked."""

    at: datetime
    ingest: Ingest
    presence: Sequence[PackPresence]
    packs: tuple[Examined, ...]


def evaluate(
    ledger: Ledger,
    settings: Settings,
    now: datetime,
    watching_since: datetime,
    bets: Mapping[str, Bets],
) -> tuple[Evaluation, dict[str, Bets]]:
    """One evaluation at ``now``, and the detectors (by pack) to hand to the next one."""
    seen, kept = look(ledger, settings, now, bets)
    return conclude(ledger, settings, seen, watching_since), kept


def look(
    ledger: Ledger, settings: Settings, now: datetime, bets: Mapping[str, Bets]
) -> tuple[Seen, dict[str, Bets]]:
    """What there is to see at ``now``, and the detectors to hand to the next look.

    No rule is asked, but for what it takes to see: whether replays are to be compared.
    """
    presence = ledger.presence(now)
    ingest = ingest_of(ledger, settings, now)
    examined: list[Examined] = []
    kept: dict[str, Bets] = {}
    for subject in watched_packs(ledger, settings, presence, now):
        seen, own = examine(ledger, settings, subject, bets.get(subject.pack_id), ingest.reach, now)
        examined.append(seen)
        if own is not None:
            kept[subject.pack_id] = own
    return Seen(at=now, ingest=ingest, presence=presence, packs=tuple(examined)), kept


def conclude(
    ledger: Ledger, settings: Settings, seen: Seen, watching_since: datetime
) -> Evaluation:
    """What the rules make of it: alerts taken one step on, and kept with what was seen."""
    now, packs = seen.at, seen.packs
    made = judge(settings, seen.ingest, packs, watching_since, now)
    events, firing = announce(ledger, settings, seen.presence, packs, made, now)
    active = {condition.dedupe_key for condition in made if condition.active}
    done = Evaluation(
        at=now,
        ingest=seen.ingest,
        presence=seen.presence,
        packs=packs,
        conditions=tuple(made),
        events=tuple(events),
        firing=tuple(firing),
    )
    ledger.keep_drifts([d for d in done.drifts if _worth_keeping(d, settings.drift, active)])
    for pack in packs:
        if pack.discoveries is not None:
            ledger.keep_discoveries(pack.subject.pack_id, pack.discoveries, now)
    return done


def ingest_of(ledger: Ledger, settings: Settings, now: datetime) -> Ingest:
    """How far is read, and what became of the records that are evaluated."""
    shortest, group = min(settings.drift.windows.values()), settings.kafka.group_id
    health = ledger.health(now - shortest, now, group)
    seen = ledger.reach(health.progress, settings.drift, now)
    if seen.waiting_for:
        # What is read late lies before the last minutes: shares of records are judged where it lies.
        outcomes = ledger.outcomes(seen.until - shortest, now, group)
        health = replace(health, outcomes=outcomes)
    asked = any(rule.name == "replay_mismatch" for rule in settings.drift.silence_rules)
    replays = ledger.replays(seen.until - shortest, seen.until) if asked else {}
    return Ingest(health=health, reach=seen, replays=replays)


def examine(
    ledger: Ledger,
    settings: Settings,
    subject: Subject,
    bets: Bets | None,
    reach: Reach,
    now: datetime,
) -> tuple[Examined, Bets | None]:
    """One pack's witnesses and drift, and the detectors to hand to its next step; None without a baseline.

    While the instrument is in doubt the detectors pass the buckets over.
    """
    baseline, end, drift = subject.baseline, reach.until, settings.drift
    heard = hear(ledger, settings, subject, end)
    shortest = min(drift.windows, key=lambda name: drift.windows[name])
    seen = Examined(subject=subject, heard=heard, shortest=shortest, drifts=())
    if baseline is None:
        made = discoveries_of(subject, heard, {}, drift.false_discovery)
        return replace(seen, discoveries=made), None
    if bets is None or bets.baseline_id != baseline.baseline_id:
        bets = bets_on(baseline, subject.features, drift, average_run_length(settings))
    if _stands_still(reach, bets):
        return seen, bets
    held = heard.canaries.finding == "moved"
    states = take_in(ledger, baseline, bets, end, drift.bucket, held=held)
    repeats = Repeats(exchanges=ledger, settings=drift)
    told = evidence(bets, states)
    drifts = compare_all(ledger, drift, subject, baseline, bets, told, end, now, repeats)
    made = discoveries_of(subject, heard, states, drift.false_discovery)
    of_prompt = {feature.name for feature in subject.features if feature.of_prompt}
    found = tuple(with_discoveries(with_causes(drifts, heard, of_prompt), made))
    seen = replace(seen, drifts=found, discoveries=made)
    return seen, replace(bets, evaluated_until=end)


def _stands_still(reach: Reach, bets: Bets) -> bool:
    """While windows wait nothing new is known: neither that a drift lasts, nor that it has gone."""
    if reach.waiting_for is None or bets.evaluated_until is None:
        return False
    return bets.evaluated_until >= reach.until


# --- drift ---------------------------------------------------------------------------------------


def compare_all(
    figures: Figures,
    settings: DriftSettings,
    subject: Subject,
    baseline: Baseline,
    bets: Bets,
    evidence: Mapping[Stream, Evidence],
    end: datetime,
    now: datetime,
    repeats: Repeats | None = None,
) -> list[Drift]:
    """Every window that ends at ``end``, of every stream with data, against its baseline.

    ``evidence`` is the detectors', ``repeats`` looks single prompts up where there are any. What the drifts are
    put down to is left open.
    """
    names = [feature.name for feature in subject.features]
    drifts = []
    for window_name, length in settings.windows.items():
        for raw, given_prompt in _windows(figures, baseline, bets, end - length, end):
            window = given_prompt or raw
            streams, references = (
                (baseline.adjusted, bets.adjusted)
                if given_prompt
                else (baseline.streams, bets.references)
            )
            found = baseline_for(streams, window.feature, window.segment, settings.min_segment_n)
            if window.segment == CANARY or found is None:
                continue
            key = window.feature, window.segment
            stands = evidence.get(key)
            compared_with, pooled = found
            drift = compare(
                window,
                references[compared_with],
                confidence=settings.confidence,
                feature=names[window.feature],
                pack_id=baseline.pack_id,
                baseline_id=baseline.baseline_id,
                pooled=pooled,
                window_name=window_name,
                evidence=stands.whole if stands else 0.0,
                evidence_limit=bets.limit if stands else float("inf"),
                now=now,
            )
            drift = replace(drift, evidence_toward=stands.toward if stands else None)
            if given_prompt:
                drift = with_raw(
                    drift, raw, bets.references[compared_with], confidence=settings.confidence
                )
            if repeats:
                feature, against = subject.features[window.feature], references[compared_with]
                drift = repeats.taken_off(drift, feature, against)
            drifts.append(drift)
    return drifts


ENOUGH_ADJUSTED: Final = 0.5
"""A window is compared by its scores given the prompt once so large a share of its prompts has one: not
while a baseline is new, and not while workers that know nothing of it score."""


def _windows(
    figures: Figures, baseline: Baseline, bets: Bets, start: datetime, end: datetime
) -> Iterator[tuple[Window, Window | None]]:
    """Every stream's window of raw scores, and of the scores given the prompt where those are watched."""
    adjusted: dict[Stream, Window] = {}
    if bets.adjusted:
        found = figures.windows(baseline.pack_id, start, end, adjusted_by=baseline.baseline_id)
        adjusted = {(window.feature, window.segment): window for window in found}
    for raw in figures.windows(baseline.pack_id, start, end):
        given_prompt = adjusted.get((raw.feature, raw.segment))
        enough = given_prompt is not None and given_prompt.n >= ENOUGH_ADJUSTED * raw.n
        yield raw, given_prompt if enough else None


def take_in(
    ledger: Detectors,
    baseline: Baseline,
    bets: Bets,
    end: datetime,
    bucket: timedelta,
    *,
    held: bool,
) -> dict[Stream, DetectorState]:
    """Let the detectors see the buckets closed since the last step, and store them.

    ``held``: the buckets are passed over. What arrives after its bucket was taken in is missed here
    (and counted by the windows).
    """
    stored = ledger.detectors(baseline.baseline_id)
    states: dict[Stream, DetectorState] = {
        key: stored.get(key) or sequential.start(baseline.baseline_id, *key, end - bucket)
        for key in bets.detectors
    }
    last = min(state.last_bucket for state in states.values())
    until = min(end - bucket, last + MOST_BUCKETS_A_STEP * bucket)
    if until > last and not held:
        for adjusted_by in (None, baseline.baseline_id) if bets.adjusted else (None,):
            closed_ones = ledger.buckets(
                baseline.pack_id, last, until + bucket, adjusted_by=adjusted_by
            )
            for closed in closed_ones:
                key = closed.feature, closed.segment
                if key in states and (key in bets.adjusted) == (adjusted_by is not None):
                    states[key] = sequential.update(states[key], closed, bets.detectors[key])
    states = {key: sequential.pass_over(state, until) for key, state in states.items()}
    ledger.keep_detectors(states.values())
    return states


def evidence(bets: Bets, states: Mapping[Stream, DetectorState]) -> dict[Stream, Evidence]:
    """Where the detectors stand, against ``bets.limit``."""
    return {
        key: sequential.standing(state, bets.detectors[key], bets.sign(key))
        for key, state in states.items()
    }


def _worth_keeping(drift: Drift, settings: DriftSettings, active: Collection[str]) -> bool:
    """All of segments ``all`` and ``generated`` and whatever alerts; of quiet slices one row in a while."""
    if drift.segment in WHOLE:
        return True
    if f"drift/{drift.pack_id}/{drift.feature}/{drift.segment}" in active:
        return True
    length = drift.window_end - drift.window_start
    every = settings.bucket * max(1, round(length / settings.bucket / ROWS_A_WINDOW))
    return floor_time(drift.window_end, every) == drift.window_end


# --- what holds now ------------------------------------------------------------------------------


def judge(
    settings: Settings,
    ingest: Ingest,
    examined: Sequence[Examined],
    watching_since: datetime,
    now: datetime,
) -> list[Condition]:
    """What the rules say about each pack's drifts and instrument, and once about the ingest."""
    drift, reading, reach = settings.drift, ingest.health, ingest.reach
    health = Health(
        since=reach.until - min(drift.windows.values()),
        until=reach.until,
        watching_since=watching_since,
        lag=reading.lag,
        progress=reading.progress,
        last_scored_at=reading.last_scored_at,
        outcomes=reading.outcomes,
        packs=[
            pack_health(pack.subject, ingest.replays.get(pack.subject.pack_id)) for pack in examined
        ],
        confidence=drift.confidence,
        loss_limit=settings.ingest.dead_letter_limit,
    )
    found = (
        condition
        for pack in examined
        for condition in conditions(pack.drifts, drift.rules, pack.subject.features)
    )
    return [
        *(
            _with_lateness(condition, reach)
            for condition in chain(
                found,
                by_identity(settings, examined),
                by_twins(settings, examined),
                by_server_canaries(settings, examined),
            )
        ),
        *silence_conditions(health, drift.silence_rules, now),
    ]


def _with_lateness(condition: Condition, reach: Reach) -> Condition:
    """The condition with how far the evaluation is behind and why, where it is."""
    if not reach.sentence:
        return condition
    return replace(
        condition,
        summary=f"{condition.summary}; {reach.sentence}",
        details={**condition.details, "evaluation": reach.sentence},
    )
