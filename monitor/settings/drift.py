"""Buckets, windows, baselines, and the rules that say which drift and which silence matter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Final, Literal

from pydantic import ConfigDict, Field, model_validator

from monitor.settings.section import Duration, Section
from monitor.values.alerts import Severity
from monitor.values.features import WATCH_ONLY
from monitor.values.prompts import CANARY, EVERYTHING, GENERATED

_FOR: Final = "how long it must hold before it fires, and be gone before it resolves"
_COOLDOWN: Final = "how long it stays quiet after it resolved, unless it comes back graver"
_REMINDER: Final = "how often a firing alert is told again until acknowledged; null: never"


class Thresholds(Section):
    """Effect sizes; an alert needs the *lower* confidence bound above them. null: not watched."""

    shift: float | None = Field(None, gt=0.0, description="standardised mean shift")
    psi: float | None = Field(None, gt=0.0, description="population stability index")
    ks: float | None = Field(None, gt=0.0, le=1.0, description="Kolmogorov-Smirnov distance")
    tail_ratio: float | None = Field(None, gt=1.0, description="tail rate against the baseline's")
    tail_growth: float | None = Field(
        None,
        gt=1.0,
        description="rate beyond one of the baseline's own thresholds, for its last 1 %, 0.5 % and 0.1 %, "
        "against the baseline's",
    )
    process_change: bool = Field(False, description="the sequential detector crossed its bound")

    @model_validator(mode="after")
    def _something(self) -> Thresholds:
        effects = (self.shift, self.psi, self.ks, self.tail_ratio, self.tail_growth)
        if effects == (None,) * len(effects) and not self.process_change:
            raise ValueError(
                "a threshold needs at least one of shift, psi, ks, tail_ratio, tail_growth, "
                "process_change"
            )
        return self


class DriftRule(Section):
    """Which drift is worth an alert. Any one crossed threshold of a severity is enough."""

    name: str = Field(min_length=1, pattern=r"^[a-zA-Z0-9_.-]+$")
    features: tuple[str, ...] = Field(
        ("*", f"!tag:{WATCH_ONLY}"),
        description="names or globs; tag:NAME selects by tag; ! in front leaves out",
    )
    segments: tuple[str, ...] = Field(
        (EVERYTHING, GENERATED),
        min_length=1,
        description="all, generated (answers of the copy's own), media_left_out (exchanges with images or audio), "
        "globs of key=value; a key's segments exist once ingest.segment_keys names it",
    )
    windows: tuple[str, ...] = Field((), description="names from drift.windows; empty: all")
    severities: dict[Severity, Thresholds] = Field(min_length=1)
    direction: Literal["expected", "either"] = Field(
        "expected", description="expected: only the way the feature moves when a persona appears"
    )
    min_n: int = Field(
        200, ge=2, description="a window with fewer prompts neither raises nor resolves"
    )
    hold_for: timedelta = Field(timedelta(minutes=2), alias="for", description=_FOR)
    cooldown: timedelta = Field(timedelta(minutes=30), description=_COOLDOWN)
    reminder: timedelta | None = Field(timedelta(hours=4), description=_REMINDER)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _selects(self) -> DriftRule:
        if all(selector.startswith("!") for selector in self.features):
            raise ValueError(
                f"rule {self.name}: features only leaves out; say what it leaves it out of, "
                'for example ["*", "!tag:style"]'
            )
        return self


LIMIT_UNITS: Final[Mapping[str, str]] = {
    "lag": "records",
    "delay": "seconds",
    "starvation": "seconds",
    "dead_letter_ratio": "share of the records",
    "non_finite": "share of the records",
    "replay_mismatch": "share of the prompts whose record carries the server's token counts",
    "not_evaluated": "seconds",
}
"""Silence rules that compare with ``limit``, and what it counts; without one they could never fire."""


class SilenceRule(Section):
    """ "No data" is never read as "no drift"."""

    name: Literal[
        "lag",
        "delay",
        "starvation",
        "dead_letter_ratio",
        "model_mismatch",
        "instrument",
        "non_finite",
        "no_baseline",
        "replay_mismatch",
        "not_evaluated",
    ]
    severity: Severity = "warning"
    limit: float | None = Field(
        None,
        gt=0.0,
        description="needed by "
        + ", ".join(f"{name} ({unit})" for name, unit in LIMIT_UNITS.items())
        + "; the others take none",
    )
    hold_for: timedelta = Field(timedelta(minutes=5), alias="for", description=_FOR)
    cooldown: timedelta = Field(timedelta(minutes=30), description=_COOLDOWN)
    reminder: timedelta | None = Field(timedelta(hours=4), description=_REMINDER)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _can_fire(self) -> SilenceRule:
        if self.name in LIMIT_UNITS and self.limit is None:
            raise ValueError(
                f"rule {self.name} needs a limit ({LIMIT_UNITS[self.name]}): without one it never fires"
            )
        return self


def _default_rules() -> tuple[DriftRule, ...]:
    return (
        DriftRule(
            name="persona-drift",
            severities={
                "warning": Thresholds(shift=0.3, tail_ratio=3.0, tail_growth=3.0),
                "critical": Thresholds(shift=0.8, tail_ratio=10.0),
            },
        ),
        DriftRule(
            name="process-change",
            severities={"warning": Thresholds(process_change=True)},
        ),
    )


def _default_silence_rules() -> tuple[SilenceRule, ...]:
    return (
        SilenceRule(name="lag", limit=10_000),
        SilenceRule(name="delay", limit=600),
        SilenceRule(name="starvation", limit=900),
        SilenceRule(name="dead_letter_ratio", limit=0.05),
        SilenceRule(name="non_finite", limit=0.001),
        SilenceRule(name="model_mismatch", severity="critical"),
        SilenceRule(name="instrument", severity="critical"),
        SilenceRule(name="replay_mismatch", limit=0.05),
        SilenceRule(name="not_evaluated", limit=300, severity="critical", **{"for": timedelta(0)}),
        SilenceRule(name="no_baseline", severity="info", **{"for": timedelta(minutes=30)}),
    )


class DriftSettings(Section):
    """Buckets, windows, baselines and rules."""

    bucket: Duration = Field(timedelta(minutes=1), description="changing it starts a new history")
    windows: dict[str, Duration] = Field(
        default_factory=lambda: {
            "15m": timedelta(minutes=15),
            "1h": timedelta(hours=1),
            "24h": timedelta(hours=24),
        },
        min_length=1,
        description="name → length; every window ends at the last closed bucket",
    )
    evaluate_every: Duration = timedelta(minutes=1)
    rollup_every: Duration = timedelta(minutes=5)
    settle: timedelta = Field(
        timedelta(seconds=30), description="how long after its end a bucket still waits for records"
    )
    wait_for_late: timedelta = Field(
        timedelta(minutes=15),
        ge=timedelta(0),
        description="how long windows and detectors wait for a partition that is read late",
    )
    clock_tolerance: Duration = Field(
        timedelta(seconds=30),
        description="a watcher whose machine's clock differs more from the database's does not lead: one of "
        "the two is wrong",
    )
    confidence: float = Field(0.99, gt=0.5, lt=1.0, description="of the two-sided bounds")
    adjust: bool = Field(
        True,
        description="watch scores given the prompt, where the pack reads its side and the baseline was "
        "captured with this on; off: raw scores, as they are stored in either case",
    )
    min_segment_n: int = Field(
        500,
        ge=2,
        description="a segment's own baseline is used from this n on, else the pooled one",
    )
    min_baseline_n: int = Field(1_000, ge=2)
    average_run_length: Duration = Field(
        timedelta(days=30),
        description="mean time, at least, between false alarms of the sequential detectors, all streams "
        "together",
    )
    false_discovery: float = Field(
        0.05,
        gt=0.0,
        lt=1.0,
        description="expected share of false ones, at most, among the streams that an evaluation lists as "
        "changed since the baseline's approval; raises no alert",
    )
    unwatched_after: timedelta = Field(
        timedelta(hours=1),
        ge=timedelta(minutes=5),
        description="a pack without a live worker for this long is no longer watched: its alerts end "
        "as unwatched",
    )
    rules: tuple[DriftRule, ...] = Field(default_factory=_default_rules)
    silence_rules: tuple[SilenceRule, ...] = Field(default_factory=_default_silence_rules)

    @model_validator(mode="after")
    def _consistent(self) -> DriftSettings:
        if 86_400 % self.bucket.total_seconds():
            raise ValueError("drift.bucket must divide a day evenly, for example PT1M")
        for name, length in self.windows.items():
            if length < self.bucket or length.total_seconds() % self.bucket.total_seconds():
                raise ValueError(f"drift.windows.{name} must be a multiple of drift.bucket")
        for rule in self.rules:
            for window in rule.windows:
                if window not in self.windows:
                    near = get_close_matches(window, self.windows, n=1)
                    raise ValueError(
                        f"rule {rule.name}: window {window!r} is not in drift.windows; "
                        + (
                            f"did you mean {near[0]!r}?"
                            if near
                            else f"{', '.join(self.windows)} are"
                        )
                    )
            if CANARY in rule.segments:
                raise ValueError(f"rule {rule.name}: segment {CANARY!r} is reserved")
        if self.average_run_length < self.bucket:
            raise ValueError("drift.average_run_length must be at least drift.bucket")
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("drift.rules: names must differ")
        return self
