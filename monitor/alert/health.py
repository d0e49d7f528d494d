"""Which alarms about the monitor itself hold now: "no data" is never read as "no drift". Pure.

Lag, starvation and unreadable records are those of the consumer group, whatever packs its workers
have: one alert. Baseline, model, canaries and the fidelity of the replay are those of a pack: an alert
for each pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from monitor.alert import replays
from monitor.alert.rules import figure
from monitor.settings import SilenceRule
from monitor.values.alerts import Condition
from monitor.values.fidelity import Compared
from monitor.values.losses import of_everything, of_reading, of_replaying
from monitor.values.progress import Progress
from monitor.values.scores import CanaryRun

MIN_RECORDS: Final = 20
"""Shares of records (dead letters, non-finite readings) are not judged on fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the watcher knows of the monitor itself. None and empty mean "not known"."""

    since: datetime
    """``outcomes`` counts the records from here to now."""
    until: datetime
    """``replays`` of packs are those of the prompts from ``since`` to here."""
    watching_since: datetime
    """When there was first something to watch: starvation counts from here before the first score."""
    lag: Mapping[str, int] | None = None
    """Records behind the end of the log, by ``topic/partition``."""
    progress: Sequence[Progress] = ()
    """How far every partition is read."""
    last_scored_at: datetime | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """``scored``, ``dead:<reason>``, ``skipped:<reason>`` → records."""
    packs: Sequence[PackHealth] = ()
    """One for each watched pack."""
    confidence: float = 0.99
    """Of the two-sided bounds on shares of replays."""
    loss_limit: float = 1.0
    """``ingest.dead_letter_limit``: a larger share of records that come to nothing stops a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHealth:
    """What the watcher knows of one pack's instrument."""

    pack_id: str
    baseline_id: str | None = None
    """The approved baseline of the pack."""
    mismatches: Sequence[str] = ()
    """Sentences: why the pack and a model do not belong together."""
    canaries: Sequence[CanaryRun] = ()
    """The latest run of every live worker with the pack."""
    replays: Compared = field(default_factory=lambda: Compared(n=0))
    """Its replays whose records carry the server's token counts."""


def silence_conditions(
    health: Health, rules: Sequence[SilenceRule], now: datetime
) -> list[Condition]:
    """What the silence rules say about the monitor itself; nothing where the facts are not known.

    Shares of records are judged from `MIN_RECORDS` on; with fewer, starvation is the alarm.
    """
    made = []
    for rule in rules:
        if rule.name in _OF_PACK:
            for pack in health.packs:
                verdict = _OF_PACK[rule.name](health, pack, rule.limit)
                made.append(_condition(rule, verdict, pack.pack_id))
        else:
            made.append(_condition(rule, _OF_GROUP[rule.name](health, rule.limit, now)))
    return [condition for condition in made if condition is not None]


def not_evaluated(
    rule: SilenceRule, quiet: timedelta, last: datetime | None, holder: str | None
) -> Condition:
    """What is known when nothing was evaluated for ``quiet``; said by whoever notices, never by an
    evaluation.

    ``last`` is when an evaluation ended, ``holder`` the process that leads.
    """
    assert rule.limit is not None
    seconds = quiet.total_seconds()
    since = f"since {last:%Y-%m-%d %H:%M} UTC" if last else "since the monitor is there"
    who = f"{holder} leads and does not get through" if holder else "no watcher leads"
    summary = f"drift was not evaluated {since} (limit {rule.limit:g} s): {who}"
    found = {"quiet_seconds": round(seconds), "leader": holder, "last_evaluated_at": _iso(last)}
    condition = _condition(rule, (seconds > rule.limit, summary, found))
    assert condition is not None
    return condition


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def of_pack(rule_name: str) -> bool:
    """Does the silence rule watch each pack apart? Its alerts carry the label ``pack``."""
    return rule_name in _OF_PACK


_Verdict = tuple[bool, str, dict[str, Any]] | None


def _condition(rule: SilenceRule, verdict: _Verdict, pack_id: str = "") -> Condition | None:
    if verdict is None:
        return None
    active, summary, details = verdict
    return Condition(
        dedupe_key=f"silence/{rule.name}" + (f"/{pack_id}" if pack_id else ""),
        rule=rule.name,
        kind="silence",
        severity=rule.severity,
        active=active,
        summary=summary,
        labels={"kind": "silence", "rule": rule.name} | ({"pack": pack_id} if pack_id else {}),
        details={"limit": rule.limit, **details},
        hold_for=rule.hold_for,
        cooldown=rule.cooldown,
        reminder=rule.reminder,
    )


def _lag(health: Health, limit: float | None, now: datetime) -> _Verdict:
    if health.lag is None or limit is None:
        return None
    total = sum(health.lag.values())
    worst = sorted(health.lag.items(), key=lambda item: -item[1])[:5]
    summary = f"the monitor is {total} records behind the end of its topics (limit {limit:g})"
    return total > limit, summary, {"lag": total, "worst_partitions": dict(worst)}


def _delay(health: Health, limit: float | None, now: datetime) -> _Verdict:
    delays = {one: delay for one in health.progress if (delay := one.delay(now)) is not None}
    if not delays or limit is None:
        return None
    slowest = max(delays, key=delays.__getitem__)
    read = f"up to {slowest.watermark:%Y-%m-%d %H:%M} UTC" if slowest.watermark else "not at all"
    summary = f"{slowest.source} is read {read}, {delays[slowest]:.0f} s behind (limit {limit:g} s)"
    if delays[slowest] > limit:
        summary += ": drift since then is not seen yet"
    worst = sorted(delays, key=delays.__getitem__, reverse=True)[:5]
    return (
        delays[slowest] > limit,
        summary,
        {
            "delay_seconds": round(delays[slowest]),
            "worst_partitions": {one.source: round(delays[one]) for one in worst},
        },
    )


def _starvation(health: Health, limit: float | None, now: datetime) -> _Verdict:
    if limit is None:
        return None
    last = health.last_scored_at or health.watching_since
    quiet = (now - last).total_seconds()
    if quiet > limit:
        summary = (
            f"no prompt was scored for {quiet:.0f} s (limit {limit:g} s): drift cannot be seen"
        )
    elif health.last_scored_at:
        summary = f"the last prompt was scored {quiet:.0f} s ago (limit {limit:g} s)"
    else:
        summary = f"no prompt was scored yet, for {quiet:.0f} s (limit {limit:g} s)"
    found = {"quiet_seconds": round(quiet), "last_scored_at": _iso(health.last_scored_at)}
    return quiet > limit, summary, found


def _evaluates(health: Health, limit: float | None, now: datetime) -> _Verdict:
    return False, "drift is evaluated again", {"quiet_seconds": 0}


def _share(health: Health, limit: float | None, prefix: str, what: str) -> _Verdict:
    read = sum(n for outcome, n in health.outcomes.items() if not outcome.startswith("skipped"))
    if limit is None or read < MIN_RECORDS:
        return None
    hit = {name: n for name, n in health.outcomes.items() if name.startswith(prefix)}
    share = sum(hit.values()) / read
    summary = f"{share:.1%} of {read} records since {health.since:%Y-%m-%d %H:%M} UTC {what} (limit {limit:.1%})"
    return share > limit, summary, {"share": figure(share), "records": read, "reasons": hit}


def _dead_letters(health: Health, limit: float | None, now: datetime) -> _Verdict:
    """Dead letters by the rule's limit; what was skipped by the one at which a worker stops."""
    if limit is None:
        return None
    for losses in (
        of_everything(health.outcomes),
        of_reading(health.outcomes),
        of_replaying(health.outcomes),
    ):
        skipped = any(outcome.startswith("skipped") for outcome in losses.reasons)
        if losses.n >= MIN_RECORDS and skipped and losses.share > health.loss_limit:
            summary = (
                f"{losses.share:.1%} of {losses.n} records since {health.since:%Y-%m-%d %H:%M} UTC gave"
                f" nothing to score (limit {health.loss_limit:.1%}): {losses.told()}"
            )
            found = {"share": figure(losses.share), "records": losses.n}
            return True, summary, {**found, "reasons": losses.reasons, "limit": health.loss_limit}
    return _share(health, limit, "dead:", "could not be read or replayed")


def _non_finite(health: Health, limit: float | None, now: datetime) -> _Verdict:
    return _share(health, limit, "dead:non_finite", "gave non-finite readings")


def _model_mismatch(health: Health, pack: PackHealth, limit: float | None) -> _Verdict:
    reasons = list(pack.mismatches)
    summary = reasons[0] if reasons else "pack and model belong together"
    return bool(reasons), summary, {"mismatches": reasons}


def _instrument(health: Health, pack: PackHealth, limit: float | None) -> _Verdict:
    if not pack.canaries:
        return None
    failed = [run for run in pack.canaries if not run.reproduced]
    if not failed:
        return False, "the canaries read as recorded", {"workers": []}
    worst = max(failed, key=lambda run: run.largest_deviation)
    summary = (
        f"{len(failed)} of {len(pack.canaries)} copies do not reproduce the pack's canaries: off by"
        f" {worst.largest_deviation:.3g} SD (noise floor {worst.noise_floor:.3g}); drift alerts are held"
    )
    workers = [
        {"worker": run.worker_id, "deviation": figure(run.largest_deviation)} for run in failed
    ]
    return True, summary, {"workers": workers}


def _no_baseline(health: Health, pack: PackHealth, limit: float | None) -> _Verdict:
    missing = pack.baseline_id is None
    summary = (
        f"pack {pack.pack_id} has no approved baseline: drift is not watched"
        if missing
        else "a baseline is approved"
    )
    return missing, summary, {"baseline": pack.baseline_id}


def _replay_mismatch(health: Health, pack: PackHealth, limit: float | None) -> _Verdict:
    compared = pack.replays
    if limit is None or compared.n < MIN_RECORDS:
        return None
    low = replays.least_share(compared, health.confidence)
    summary = (
        f"{replays.told(compared)}; at least {low:.1%} (limit {limit:.1%}) since"
        f" {health.since:%Y-%m-%d %H:%M} UTC"
    )
    if low > limit:
        summary += ": what is replayed is not what was served"
    found = replays.details(compared, low, pack.pack_id, health.since, health.until)
    return low > limit, summary, found


_OF_GROUP: Final = {
    "lag": _lag,
    "delay": _delay,
    "starvation": _starvation,
    "dead_letter_ratio": _dead_letters,
    "non_finite": _non_finite,
    "not_evaluated": _evaluates,
}
_OF_PACK: Final = {
    "model_mismatch": _model_mismatch,
    "instrument": _instrument,
    "no_baseline": _no_baseline,
    "replay_mismatch": _replay_mismatch,
}
