"""One evaluation: what the watcher reads, compares, concludes and stores in one transaction.

``begin`` gathers what it is about, ``compare_all`` the windows' drift with the detectors' evidence,
``judge`` what holds now, ``announce`` takes every alert one step on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from monitor.alert.policy import (
    Health,
    audience,
    conditions,
    event_of,
    is_silenced,
    orphan_conditions,
    silence_conditions,
    transition,
    with_prompts,
)
from monitor.drift import sequential
from monitor.drift.baseline import baseline_for
from monitor.drift.bets import Bets, Stream, bets_on
from monitor.drift.cause import cause_of
from monitor.drift.histogram import floor_time
from monitor.drift.lateness import Reach, reach
from monitor.drift.tests import compare
from monitor.settings import DriftSettings, Settings
from monitor.store.alerts import active_silences, forget_alert, recent_alerts, save_alert
from monitor.store.baselines import load_baseline
from monitor.store.drift import load_detectors, save_detectors, save_drifts
from monitor.store.ingest import ingest_health, outcomes_between
from monitor.store.packs import PackFeature, active_pack, pack_features, served_models
from monitor.store.scores import strongest_prompts
from monitor.store.windows import new_buckets, read_windows
from monitor.store.workers import latest_canaries
from monitor.values.alerts import Alert, AlertState, Condition, Event
from monitor.values.drift import Baseline, Cause, DetectorState, Drift
from monitor.values.prompts import CANARY, EVERYTHING
from monitor.values.scores import CanaryRun

STRONGEST_PROMPTS: Final = 5
MOST_BUCKETS_A_STEP: Final = 60
"""Detectors that were away for long catch up in such strides, so that no step takes minutes."""
ROWS_A_WINDOW: Final = 15
"""Segments' quiet windows are kept in the history about so many times per window length."""
CANARY_INTERVALS: Final = 3
"""A canary run vouches for its copy for so many of `pack.canary_interval`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one step saw and did."""

    at: datetime
    subject: Subject
    cause: Cause
    drifts: tuple[Drift, ...]
    conditions: tuple[Condition, ...]
    events: tuple[Event, ...]
    firing: tuple[Alert, ...]

    @property
    def reach(self) -> Reach:
        return self.subject.reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What one step is about. Without an approved baseline only the monitor itself is judged."""

    pack_id: str | None
    features: Sequence[PackFeature]
    baseline: Baseline | None
    canaries: Sequence[CanaryRun]
    """The latest recent run of every live worker with this pack."""
    status: Mapping[str, Any]
    """See `store.ingest.ingest_health`; its outcomes are those of the shortest window that is evaluated."""
    reach: Reach
    """Where windows end, and what they wait for."""


def evaluate(
    c: Connection, settings: Settings, now: datetime, watching_since: datetime, bets: Bets | None
) -> tuple[Evaluation, Bets | None]:
    """One evaluation at ``now``, and the detectors to hand to the next one."""
    drift = settings.drift
    subject = begin(c, settings, now)
    cause, drifts = Cause.UNKNOWN, []
    if subject.baseline is not None:
        end = subject.reach.until
        cause = _cause(c, subject, subject.baseline, end - min(drift.windows.values()), end)
        if bets is None or bets.baseline_id != subject.baseline.baseline_id:
            bets = bets_on(subject.baseline, drift)
        if not _stands_still(subject.reach, bets):
            drifts = compare_all(c, drift, subject, subject.baseline, bets, cause, end, now)
            bets = replace(bets, evaluated_until=end)
    made = judge(settings, subject, drifts, watching_since, now)
    events, firing = announce(c, settings, subject, made, drifts, now)
    active = {condition.dedupe_key for condition in made if condition.active}
    save_drifts(c, [d for d in drifts if _worth_keeping(d, drift, active)])
    done = Evaluation(
        at=now,
        subject=subject,
        cause=cause,
        drifts=tuple(drifts),
        conditions=tuple(made),
        events=tuple(events),
        firing=tuple(firing),
    )
    return done, bets


def _stands_still(reach: Reach, bets: Bets) -> bool:
    """While windows wait nothing new is known: neither that a drift lasts, nor that it has gone."""
    if reach.waiting_for is None or bets.evaluated_until is None:
        return False
    return bets.evaluated_until >= reach.until


def begin(c: Connection, settings: Settings, now: datetime) -> Subject:
    """The pack in use, its approved baseline, how far is read, and who vouches for the instrument."""
    shortest, group = min(settings.drift.windows.values()), settings.kafka.group_id
    status = ingest_health(c, now - shortest, now, group_id=group)
    seen = reach(status["progress"], settings.drift, now)
    if seen.waiting_for:
        # What is read late lies before the last minutes: shares of records are judged where it lies.
        status["outcomes"] = outcomes_between(c, seen.until - shortest, now, group_id=group)
    pack_id = active_pack(c)
    alive = {worker["worker_id"] for worker in status["workers"]}
    return Subject(
        pack_id=pack_id,
        features=pack_features(c, pack_id) if pack_id else [],
        baseline=load_baseline(c, pack_id=pack_id) if pack_id else None,
        # A worker that is gone vouches for nothing, unless nobody else is there to ask.
        canaries=[
            run
            for run in latest_canaries(c, now - CANARY_INTERVALS * settings.pack.canary_interval)
            if run.lineage.pack_id == pack_id and (not alive or run.worker_id in alive)
        ],
        status=status,
        reach=seen,
    )


def _cause(
    c: Connection, subject: Subject, baseline: Baseline, start: datetime, end: datetime
) -> Cause:
    served = served_models(c, baseline.pack_id, start, end)
    before = baseline.fingerprint.get("served_models", "").split()
    return cause_of(subject.canaries, served, before)


# --- drift ---------------------------------------------------------------------------------------


def compare_all(
    c: Connection,
    settings: DriftSettings,
    subject: Subject,
    baseline: Baseline,
    bets: Bets,
    cause: Cause,
    end: datetime,
    now: datetime,
) -> list[Drift]:
    """Every window that ends at ``end``, of every stream with data, against its baseline.

    While the instrument is in doubt the detectors pass the buckets over.
    """
    held = cause is Cause.INSTRUMENT_SHIFT
    evidence = take_in(c, baseline, bets, end, settings.bucket, held=held)
    names = [feature.name for feature in subject.features]
    drifts = []
    for window_name, length in settings.windows.items():
        for window in read_windows(c, baseline.pack_id, [(end - length, end)]):
            found = baseline_for(baseline, window.feature, window.segment, settings.min_segment_n)
            if window.segment == CANARY or found is None:
                continue
            key = window.feature, window.segment
            compared_with, pooled = found
            drifts.append(
                compare(
                    window,
                    bets.references[compared_with],
                    confidence=settings.confidence,
                    feature=names[window.feature],
                    pack_id=baseline.pack_id,
                    baseline_id=baseline.baseline_id,
                    pooled=pooled,
                    window_name=window_name,
                    evidence=evidence.get(key, 0.0),
                    evidence_limit=bets.limit if key in evidence else float("inf"),
                    cause=cause,
                    now=now,
                )
            )
    return drifts


def take_in(
    c: Connection,
    baseline: Baseline,
    bets: Bets,
    end: datetime,
    bucket: timedelta,
    *,
    held: bool,
) -> dict[Stream, float]:
    """Let the detectors see the buckets closed since the last step; store them, return the evidence.

    ``held``: the buckets are passed over. What arrives after its bucket was taken in is missed here
    (and counted by the windows).
    """
    stored = load_detectors(c, baseline.baseline_id)
    states: dict[Stream, DetectorState] = {
        key: stored.get(key) or sequential.start(baseline.baseline_id, *key, end - bucket)
        for key in bets.detectors
    }
    last = min(state.last_bucket for state in states.values())
    until = min(end - bucket, last + MOST_BUCKETS_A_STEP * bucket)
    if until > last and not held:
        for closed in new_buckets(c, baseline.pack_id, last, until + bucket):
            key = closed.feature, closed.segment
            if key in states:
                states[key] = sequential.update(states[key], closed, bets.detectors[key])
    states = {key: sequential.pass_over(state, until) for key, state in states.items()}
    save_detectors(c, states.values())
    return {key: sequential.evidence(state, bets.detectors[key]) for key, state in states.items()}


def _worth_keeping(drift: Drift, settings: DriftSettings, active: Collection[str]) -> bool:
    """All of segment ``all`` and whatever alerts; of quiet segments one row in a while."""
    if drift.segment == EVERYTHING:
        return True
    if f"drift/{drift.pack_id}/{drift.feature}/{drift.segment}" in active:
        return True
    length = drift.window_end - drift.window_start
    every = settings.bucket * max(1, round(length / settings.bucket / ROWS_A_WINDOW))
    return floor_time(drift.window_end, every) == drift.window_end


# --- what holds now ------------------------------------------------------------------------------


def judge(
    settings: Settings,
    subject: Subject,
    drifts: Sequence[Drift],
    watching_since: datetime,
    now: datetime,
) -> list[Condition]:
    """What the rules say about the drifts and about the monitor itself."""
    drift, status = settings.drift, subject.status
    health = Health(
        since=subject.reach.until - min(drift.windows.values()),
        progress=status["progress"],
        watching_since=watching_since,
        pack_id=subject.pack_id,
        baseline_id=subject.baseline.baseline_id if subject.baseline else None,
        lag=status["lag"],
        last_scored_at=status["last_scored_at"],
        outcomes=status["outcomes"],
        mismatches=mismatches(subject),
        canaries=subject.canaries,
    )
    found = conditions(drifts, drift.rules, subject.features)
    return [
        *(_with_lateness(condition, subject.reach) for condition in found),
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


def mismatches(subject: Subject) -> tuple[str, ...]:
    """Sentences: what keeps scores and baseline from belonging together."""
    found = []
    packs = subject.status["packs"]
    if len(packs) > 1:
        found.append(
            f"workers run different packs ({', '.join(packs)}): only {subject.pack_id} is watched"
        )
    known = subject.baseline.fingerprint.get("lineages", "") if subject.baseline else ""
    models = {word.split("/")[0] for word in known.split()}
    for run in subject.canaries:
        model = run.lineage.model_hash[:12]
        if models and model not in models:
            found.append(
                f"worker {run.worker_id} replays model {model}, the baseline was made with"
                f" {', '.join(sorted(models))}: capture a new baseline"
            )
    return tuple(found)


# --- alerts --------------------------------------------------------------------------------------


def announce(
    c: Connection,
    settings: Settings,
    subject: Subject,
    made: Sequence[Condition],
    drifts: Sequence[Drift],
    now: datetime,
) -> tuple[list[Event], list[Alert]]:
    """Take every alert one step on; what was put into the outbox, and what fires now."""
    drift = settings.drift
    cooldowns = [rule.cooldown for rule in drift.rules]
    cooldowns += [rule.cooldown for rule in drift.silence_rules]
    recent = recent_alerts(c, now - max(cooldowns, default=timedelta(0)))
    known = {alert.dedupe_key: alert for alert in recent}
    silences = active_silences(c, now)
    orphans = orphan_conditions(
        recent,
        pack_id=subject.pack_id,
        rules=drift.rules,
        features=subject.features,
        silence_rules=drift.silence_rules,
    )
    events = []
    for condition in (*made, *orphans):
        before = known.pop(condition.dedupe_key, None)
        silenced = is_silenced(condition.labels, silences, now)
        after, announced = transition(before, _kept(condition, before), now, silenced=silenced)
        if after is None:
            if before is not None:
                forget_alert(c, before.alert_id)
            continue
        if announced in ("drift.detected", "drift.reminder"):
            after = _with_strongest(c, after, drifts, subject)
        event = event_of(after, announced, now) if announced else None
        if event or after != before:
            told = audience(after, settings.alerts.endpoints) if event else ()
            save_alert(c, after, event, told)
        if event:
            events.append(event)
        known[condition.dedupe_key] = after
    return events, [alert for alert in known.values() if alert.state is AlertState.FIRING]


def _kept(condition: Condition, before: Alert | None) -> Condition:
    """The condition with the prompts that were found when the alert was announced."""
    if before is None or "strongest_prompts" not in before.details:
        return condition
    return with_prompts(condition, before.details["strongest_prompts"])


def _with_strongest(
    c: Connection, alert: Alert, drifts: Sequence[Drift], subject: Subject
) -> Alert:
    """The alert with ids and scores of the strongest prompts of its window; never their text."""
    shown = next(
        drift
        for drift in drifts
        if drift.window == alert.details["window"]
        and drift.feature == alert.labels["feature"]
        and drift.segment == alert.labels["segment"]
    )
    feature = next(f for f in subject.features if f.name == shown.feature)
    rows = strongest_prompts(
        c,
        shown.pack_id,
        feature,
        shown.segment,
        shown.window_start,
        shown.window_end,
        STRONGEST_PROMPTS,
    )
    prompts = [
        {
            "prompt_id": row["prompt_id"],
            "score": round(row["score"], 3),
            "recorded_at": row["recorded_at"].isoformat(),
            "record": f"{row['topic']}/{row['partition']}/{row['record_offset']}",
        }
        for row in rows
    ]
    return replace(alert, details={**alert.details, "strongest_prompts": prompts})
