"""What an alert says to people: when it fires, while nothing holds, and when it is over. Pure.

Every figure in a sentence is of the evaluation that wrote it; what is of another moment is said to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from monitor.values.alerts import Alert, Condition
from monitor.values.drift import Drift, TailGrowth

WHEN_FIRED: Final = "when_fired"
"""Where an alert's details keep what it read when it fired, or last became graver."""
_KEPT: Final = (
    *("window", "current", "shift", "tail_ratio", "psi", "ks", "evidence", "cause", "verdict"),
    *("lag", "delay_seconds", "quiet_seconds", "share", "records", "mismatches", "workers"),
    *("share_low", "kinds"),
)


def shown(drift: Drift, statistics: AbstractSet[str]) -> str:
    """The summary of a drift that crossed thresholds of these statistics, led by the plainest of them."""
    window = drift.window
    mean = (
        f"mean{' given the prompt' if drift.adjusted else ''} {drift.shift.value:+.2f} SD"
        f" [{drift.shift.low:+.2f}, {drift.shift.high:+.2f}] from baseline"
    )
    tail = f"tail {_share(drift.tail_rate)} against {_share(drift.baseline_tail_rate)}"
    if "shift" in statistics:
        said = f"{'rose' if drift.shift.value >= 0 else 'fell'} over {window}: {mean}, {tail}"
    elif "tail_ratio" in statistics:
        said = f"has more tail prompts over {window}: {tail}, {mean}"
    elif "tail_growth" in statistics and (grown := most_grown(drift)):
        said = (
            f"has more extreme prompts over {window}: {_share(grown.rate)} lie where the last"
            f" {_share(grown.share)} of the baseline begins, at least {grown.ratio.low:.1f} times as"
            f" many as before; {mean}"
        )
    elif {"psi", "ks"}.intersection(statistics):
        said = (
            f"is distributed otherwise over {window}: PSI at least {drift.psi_low:.2f},"
            f" KS at least {drift.ks_low:.2f}, {mean}, {tail}"
        )
    else:
        said = (
            f"is no longer the process that its baseline was: evidence {drift.evidence:.1f},"
            f" limit {drift.evidence_limit:.1f}; over {window}: {mean}, {tail}"
        )
    return f"{_stream(drift.feature, drift.segment)} {said} (n={drift.n})"


def most_grown(drift: Drift) -> TailGrowth | None:
    """The level at which the tail grew by the largest factor, by its lower bound."""
    return max(drift.tails, key=lambda level: level.ratio.low, default=None)


def clear(drift: Drift) -> str:
    """The summary while no threshold is crossed."""
    return f"{_stream(drift.feature, drift.segment)} is inside its thresholds over {drift.window}"


def over(alert: Alert, condition: Condition) -> str:
    """The summary of a resolved alert: what it reads now, and what it read when it fired.

    ``condition`` is the inactive one that ended ``alert``; where it knows no reading, what was read last
    is said to be that. What nothing watches any more does not resolve: see `watched.unwatched_because`.
    """
    then = alert.details.get(WHEN_FIRED)
    if then is None:
        return f"{condition.summary}; before: {alert.summary}"
    if condition.kind == "silence":
        return f"{condition.summary}; when it fired: {then['summary']}"
    readings: Mapping[str, Mapping[str, Any]] = condition.details.get("readings", {})
    if not readings:
        return f"{condition.summary}; read last: {alert.summary}"
    window = then.get("window", "")
    same = window in readings
    if not same:
        window = condition.details["window"]
    now = readings[window]
    became = f"{then['event']}" + ("" if same else f" over {then.get('window')}")
    pairs = [
        ("shift", f"{_sd(now['shift'])}", f"{_sd(_value(then, 'shift'), unit='')}"),
        ("tail", _share(now["tail_rate"]), _share(then.get("current", {}).get("tail_rate"))),
    ]
    crossed = set(then.get("statistics", ()))
    for name, word in (("psi", "PSI"), ("ks", "KS"), ("process_change", "evidence")):
        if name in crossed:
            key = "evidence" if name == "process_change" else name
            pairs.append((word, _plain(now[key]), _plain(_value(then, key))))
    (first, *rest) = pairs
    told = f"{first[0]} now {first[1]}, was {first[2]} when it {became}"
    told += "".join(f"; {word} now {new}, was {old}" for word, new, old in rest)
    stream = _stream(alert.labels.get("feature", ""), alert.labels.get("segment", "all"))
    return f"{stream} is back inside its thresholds over {window}: {told} (n={now['n']})"


def reading_when(condition: Condition, event: str, at: str) -> dict[str, Any]:
    """What ``details.when_fired`` keeps: ``event`` is "fired" or "became critical"; ``at`` is ISO 8601."""
    details = condition.details
    statistics = dict.fromkeys(
        crossing["statistic"]
        for crossing in details.get("crossed", ())
        if crossing["window"] == details.get("window")
    )
    kept = {key: details[key] for key in _KEPT if key in details}
    return {
        "event": event,
        "at": at,
        "severity": condition.severity,
        "summary": condition.summary,
        **kept,
        **({"statistics": list(statistics)} if statistics else {}),
    }


def _stream(feature: str, segment: str) -> str:
    return feature if segment == "all" else f"{feature} in {segment}"


def _value(then: Mapping[str, Any], key: str) -> float | None:
    found: float | None = then.get(key, {}).get("value")
    return found


def _sd(value: float | None, unit: str = " SD") -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:+.2f}{unit}"


def _share(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.2%}"


def _plain(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.2f}"
