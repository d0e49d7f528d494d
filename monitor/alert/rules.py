"""Which drift holds now, by the configured rules. Pure.

What is quiet, on purpose:

* A feature in a segment has one alert. The dedupe key of a drift alert is pack, feature and segment: all
  rules and all windows that see the change share the alert, and the most severe of them speaks. A
  change that moves several features or segments raises an alert for each.
* Unknown is not resolved. A window with fewer than ``min_n`` prompts says nothing, and an alert that
  only such windows showed stays as it is until they know again.
* While the instrument itself does not reproduce its canaries, no drift condition is made at all: the
  ``instrument`` silence rule is the alert then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol, get_args

from monitor.alert import sentences
from monitor.alert.sentences import most_grown
from monitor.settings import DriftRule, Thresholds
from monitor.values.alerts import Condition, Severity
from monitor.values.drift import Bound, Drift
from monitor.values.features import Expected, picked
from monitor.values.prompts import CANARY
from monitor.values.witnesses import Cause, as_json, sentence

EFFECTS: Final = ("shift", "psi", "ks", "tail_ratio", "tail_growth")
"""Thresholds with a limit of their own; `process_change` has the detectors'."""
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
"""From the mildest to the gravest."""


class FeatureInfo(Protocol):
    """What the policy needs to know of a feature; `Feature` and `PackFeature` are such."""

    @property
    def name(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def expected(self) -> Expected: ...
    @property
    def sign(self) -> int: ...
    @property
    def description(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One window of one rule: its gravest crossed severity, and by how much it was crossed."""

    rule: DriftRule
    drift: Drift
    severity: Severity | None
    crossed: tuple[dict[str, Any], ...] = ()
    margin: float = 0.0

    @property
    def strength(self) -> tuple[int, float]:
        return (-1 if self.severity is None else rank(self.severity), self.margin)

    @property
    def length(self) -> timedelta:
        return self.drift.window_end - self.drift.window_start


def rank(severity: Severity) -> int:
    """0 for info, 1 for warning, 2 for critical."""
    return SEVERITIES.index(severity)


def watches(rule: DriftRule, feature: FeatureInfo) -> bool:
    """Does the rule select this feature?"""
    return picked(rule.features, feature.name, feature.tags)


def matches(rule: DriftRule, feature: FeatureInfo, segment: str) -> bool:
    """Does the rule watch this feature in this segment?"""
    return (
        segment != CANARY
        and any(fnmatchcase(segment, pattern) for pattern in rule.segments)
        and watches(rule, feature)
    )


def conditions(
    drifts: Sequence[Drift],
    rules: Sequence[DriftRule],
    features: Sequence[FeatureInfo],
) -> list[Condition]:
    """What the rules say about these drifts: at most one condition per pack, feature and segment.

    A threshold is crossed by the *lower* confidence bound, in the feature's expected direction or,
    with ``direction: either``, in any:

    * ``shift``: `Drift.shift`, turned towards the persona. ``tail_ratio``: the tail is counted on that
      side already. ``tail_growth``: the largest of `Drift.tails`, likewise.
    * ``psi`` and ``ks`` (`Drift.psi_low`, `Drift.ks_low`) have no direction of their own: under
      ``expected`` they count only while the mean has moved the expected way.
    * ``process_change``: `Drift.evidence` has reached `Drift.evidence_limit`; its direction as theirs, and under
      ``expected`` the part of it that is bet on a persona must have (`Drift.evidence_toward`).

    Thin windows (n < ``min_n``) are left out; where only thin ones are, there is no condition.
    """
    known = {feature.name: feature for feature in features}
    groups: dict[tuple[str, str, str], list[_Finding]] = {}
    for drift in drifts:
        feature = known.get(drift.feature)
        if feature is None or drift.cause is Cause.INSTRUMENT_SHIFT:
            continue
        for rule in rules:
            if rule.windows and drift.window not in rule.windows:
                continue
            if drift.n >= rule.min_n and matches(rule, feature, drift.segment):
                finding = _judged(drift, rule, _lower_bounds(drift, rule, feature))
                groups.setdefault((drift.pack_id, drift.feature, drift.segment), []).append(finding)
    return [_drift_condition(found, known[name]) for (_, name, _), found in groups.items()]


def _judged(drift: Drift, rule: DriftRule, lows: Mapping[str, float]) -> _Finding:
    for severity in sorted(rule.severities, key=rank, reverse=True):
        limits = _limits(rule.severities[severity], drift)
        crossed = [
            (name, lows[name], limit) for name, limit in limits.items() if lows[name] >= limit
        ]
        if crossed:
            return _Finding(
                rule=rule,
                drift=drift,
                severity=severity,
                crossed=tuple(
                    {
                        "rule": rule.name,
                        "window": drift.window,
                        "severity": severity,
                        "statistic": name,
                        "lower_bound": figure(low),
                        "threshold": figure(limit),
                        **_level(drift, name),
                    }
                    for name, low, limit in crossed
                ),
                margin=max(low / limit if limit > 0 else math.inf for _, low, limit in crossed),
            )
    return _Finding(rule=rule, drift=drift, severity=None)


def _limits(thresholds: Thresholds, drift: Drift) -> dict[str, float]:
    given = {name: getattr(thresholds, name) for name in EFFECTS}
    limits: dict[str, float] = {name: limit for name, limit in given.items() if limit is not None}
    if thresholds.process_change and math.isfinite(drift.evidence_limit):
        limits["process_change"] = drift.evidence_limit
    return limits


def _level(drift: Drift, statistic: str) -> dict[str, Any]:
    """At which level a tail grew most."""
    grown = most_grown(drift) if statistic == "tail_growth" else None
    return {"share": grown.share} if grown else {}


def _lower_bounds(drift: Drift, rule: DriftRule, feature: FeatureInfo) -> dict[str, float]:
    along, against = drift.shift.times(feature.sign), drift.shift.times(-feature.sign)
    either = rule.direction == "either"
    seen = either or along.value > 0
    toward = drift.evidence_toward
    evidence = drift.evidence if either or toward is None else toward
    return {
        "shift": max(along.low, against.low) if either else along.low,
        "psi": drift.psi_low if seen else -math.inf,
        "ks": drift.ks_low if seen else -math.inf,
        "tail_ratio": drift.tail_ratio.low,
        "tail_growth": grown.ratio.low if (grown := most_grown(drift)) else -math.inf,
        "process_change": evidence if seen else -math.inf,
    }


def _drift_condition(found: Sequence[_Finding], feature: FeatureInfo) -> Condition:
    shown = [finding for finding in found if finding.severity is not None]
    # While nothing holds the longest window speaks: an alert ends only when it is clear.
    strongest = (
        max(shown, key=lambda finding: finding.strength)
        if shown
        else max(found, key=lambda finding: finding.length)
    )
    drift, rule = strongest.drift, strongest.rule
    mildest = sorted(rule.severities, key=rank)[0]
    shown_by = _by_length(shown)
    if shown:
        said: dict[str, Any] = {
            "cause": drift.cause.value,
            "verdict": sentence(drift.cause, drift.witnesses),
            "witnesses": as_json(drift.witnesses),
            "crossed": [crossing for finding in shown for crossing in finding.crossed],
        }
    else:
        # Nothing changed, so nothing is the cause of it.
        said = {"crossed": [], "readings": {f.drift.window: _reading(f.drift) for f in found}}
    return Condition(
        dedupe_key=f"drift/{drift.pack_id}/{drift.feature}/{drift.segment}",
        rule=rule.name,
        kind="drift",
        severity=strongest.severity or mildest,
        active=bool(shown),
        summary=_summary(strongest),
        labels={
            "kind": "drift",
            "rule": rule.name,
            "feature": drift.feature,
            "segment": drift.segment,
            "pack": drift.pack_id,
        },
        details={
            **_figures(drift),
            "meaning": feature.description,
            "tags": list(feature.tags),
            "expected": feature.expected,
            "window": drift.window,
            **said,
            "shown_by": shown_by,
            "clear_windows": [name for name in _by_length(found) if name not in shown_by],
            "query": query(drift),
        },
        hold_for=rule.hold_for,
        cooldown=rule.cooldown,
        reminder=rule.reminder,
    )


def _by_length(found: Iterable[_Finding]) -> list[str]:
    lengths = {f.drift.window: f.length for f in found}
    return sorted(lengths, key=lengths.__getitem__)


def _summary(finding: _Finding) -> str:
    if finding.severity is None:
        return sentences.clear(finding.drift)
    return sentences.shown(finding.drift, {crossing["statistic"] for crossing in finding.crossed})


def _reading(drift: Drift) -> dict[str, Any]:
    """One window's figures in few: what a resolution tells of the window that fired."""
    return {
        "n": drift.n,
        "shift": figure(drift.shift.value),
        "tail_rate": figure(drift.tail_rate),
        "psi": figure(drift.psi),
        "ks": figure(drift.ks),
        "evidence": figure(drift.evidence),
    }


def _figures(drift: Drift) -> dict[str, Any]:
    return {
        "pack": drift.pack_id,
        "feature": drift.feature,
        "segment": drift.segment,
        "window_start": drift.window_start.isoformat(),
        "window_end": drift.window_end.isoformat(),
        "baseline": {
            "id": drift.baseline_id,
            "n": drift.baseline_n,
            "mean": figure(drift.baseline_mean),
            "tail_rate": figure(drift.baseline_tail_rate),
            "pooled": drift.pooled_baseline,
        },
        "current": {
            "n": drift.n,
            "mean": figure(drift.mean),
            "tail_rate": figure(drift.tail_rate),
        },
        "adjusted": drift.adjusted,
        **({"raw_shift": _bound(drift.raw_shift)} if drift.adjusted else {}),
        "shift": _bound(drift.shift),
        "tail_ratio": _bound(drift.tail_ratio),
        "tails": [
            {
                "share": level.share,
                "threshold": level.threshold,
                "rate": figure(level.rate),
                "baseline_rate": figure(level.baseline_rate),
                "ratio": _bound(level.ratio),
            }
            for level in drift.tails
        ],
        "psi": {"value": figure(drift.psi), "low": figure(drift.psi_low)},
        "ks": {"value": figure(drift.ks), "low": figure(drift.ks_low)},
        "evidence": {"value": figure(drift.evidence), "limit": figure(drift.evidence_limit)},
    }


def _bound(bound: Bound) -> dict[str, float | None]:
    return {"value": figure(bound.value), "low": figure(bound.low), "high": figure(bound.high)}


def figure(number: float) -> float | None:
    """JSON has no infinity and no NaN; six significant digits are plenty for a person."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def query(drift: Drift) -> str:
    """The SQL that shows this comparison and the day before it, for a person with the reader's role."""
    feature, segment = (text.replace("'", "''") for text in (drift.feature, drift.segment))
    moment = drift.evaluated_at.isoformat()
    return (
        "SELECT evaluated_at, window_length, n, mean, baseline_mean, shift, shift_low, shift_high,"
        " tail_rate, baseline_tail_rate, tail_ratio_low, cause FROM monitor.drift_history"
        f" WHERE pack_id = '{drift.pack_id}' AND feature = '{feature}' AND segment = '{segment}'"
        f" AND evaluated_at <= '{moment}'"
        f" AND evaluated_at > timestamptz '{moment}' - interval '1 day'"
        " ORDER BY evaluated_at DESC, window_length"
    )


def with_prompts(condition: Condition, prompts: Sequence[Mapping[str, Any]]) -> Condition:
    """The condition with the ids and scores of the strongest prompts (never their text)."""
    return replace(condition, details={**condition.details, "strongest_prompts": list(prompts)})
