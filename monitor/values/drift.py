"""Windows, baselines, and one comparison of the two."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from monitor.values.adjustment import Expectation
from monitor.values.arrays import Counts
from monitor.values.checks import require
from monitor.values.evidence import EProcess
from monitor.values.identity import BaselineFingerprint
from monitor.values.likelihood import EstimatedLaw, NoLaw
from monitor.values.numerics import Numerics
from monitor.values.witnesses import Cause, Witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Merged buckets of one feature in one segment over [start, end)."""

    feature: int
    segment: str
    start: datetime
    end: datetime
    n: int
    total: float
    total_squares: float
    histogram: Counts
    tail_count: int | None
    """See `Directed.in_tail`. None: not known, since a part was not counted by that rule."""

    def __post_init__(self) -> None:
        require(self.start < self.end, "a window must end after it starts")
        require(self.n >= 0, "n counts prompts")


class BaselineStatus(enum.StrEnum):
    """The life of a baseline; only an approved one is compared with, one per pack."""

    DRAFT = "draft"
    APPROVED = "approved"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class TailLevel:
    """Where the last ``share`` of a baseline's prompts begins, on the side of the persona."""

    share: float
    """More than this share of traffic like the baseline's lies beyond only with the stated risk."""
    threshold: float
    """An edge of the score bins, counted towards the persona: scores of -3 and less lie beyond a falling
    feature's 3."""
    count: int
    """Prompts of the baseline that lie beyond."""
    design_effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineStream:
    """One feature in one segment of a baseline.

    A design effect is the variance of a mean of n prompts over what n independent prompts would
    give (Kish): 1 where prompts are independent, more where conversations or hours hang together.
    """

    window: Window
    design_effect: float = 1.0
    tail_design_effect: float = 1.0
    tails: tuple[TailLevel, ...] | None = None
    """Those that the baseline is large enough for; None: captured before there were any."""

    def __post_init__(self) -> None:
        require(self.design_effect >= 1.0, "design_effect must be at least 1")
        require(self.tail_design_effect >= 1.0, "tail_design_effect must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A frozen interval of one pack's scores that windows are compared with."""

    baseline_id: str
    pack_id: str
    name: str
    status: BaselineStatus
    created_at: datetime
    window_start: datetime
    window_end: datetime
    n: int
    """Prompts in segment ``all``, or ``generated`` where more are there."""
    fingerprint: BaselineFingerprint
    """What it was made from: copies, served models, sampling, bucket length."""
    streams: Mapping[tuple[int, str], BaselineStream]
    """By feature index and segment."""
    expectations: Mapping[int, Expectation] = field(default_factory=dict)
    """By feature index, what the prompt alone lets its score be."""
    adjusted: Mapping[tuple[int, str], BaselineStream] = field(default_factory=dict)
    """The streams of the scores given the prompt, of the features that have an expectation."""
    approved_at: datetime | None = None
    approved_by: str | None = None
    retired_at: datetime | None = None
    law: EstimatedLaw | NoLaw | None = None
    """By which answers were drawn of which nobody says it; None: there were none."""
    numerics: Numerics | None = None
    """How far its answers lie off what the copy would have said; None: none was weighed that had been drawn."""

    def __post_init__(self) -> None:
        require(self.window_start < self.window_end, "a baseline must end after it starts")
        for name in ("streams", "expectations", "adjusted"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorState:
    """Where the sequential detector of one stream stands; stored whole, one row per stream."""

    baseline_id: str
    feature: int
    segment: str
    started_at: datetime
    last_bucket: datetime
    """Start of the last bucket taken in: buckets up to and including it are never taken again."""
    steps: int
    """Buckets with data taken in since ``started_at``."""
    log_values: tuple[float, ...]
    """Log of every component's e-detector, in the order of `drift.sequential`."""
    process: EProcess | None = None
    """Beside it, from the beginning on; None: stored before there were any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An estimate with its two-sided confidence interval."""

    value: float
    low: float
    high: float

    def times(self, sign: int) -> Bound:
        """The bound of ``sign`` (1 or -1) times what this one is of."""
        return self if sign > 0 else Bound(value=-self.value, low=-self.high, high=-self.low)


UNKNOWN: Final = Bound(value=math.nan, low=math.nan, high=math.nan)
"""Of what was not measured: shown as absent, and beyond no threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TailGrowth:
    """How a window passes one of its baseline's own tail thresholds; see `TailLevel`."""

    share: float
    threshold: float
    rate: float
    baseline_rate: float
    ratio: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One comparison of a window with its baseline."""

    baseline_id: str
    pack_id: str
    feature: str
    segment: str
    window_start: datetime
    window_end: datetime
    n: int
    baseline_n: int
    pooled_baseline: bool
    """True when the segment's own baseline was too thin and the pooled one stood in."""
    mean: float
    baseline_mean: float
    shift: Bound
    """Standardised mean shift: (window mean - baseline mean) / baseline deviation."""
    psi: float
    ks: float
    tail_rate: float
    """NaN where the window's tail is not known; ``tail_ratio`` is `UNKNOWN` where either one is not."""
    baseline_tail_rate: float
    tail_ratio: Bound
    evidence: float
    """log e-value of the running sequence (0 when no detector runs)."""
    cause: Cause
    evaluated_at: datetime
    window: str = ""
    """Name of the window length in ``drift.windows``."""
    psi_low: float = 0.0
    """Lower confidence bound of ``psi``, its sampling bias taken off."""
    ks_low: float = 0.0
    """Lower confidence bound of ``ks``."""
    adjusted: bool = False
    """The figures are of scores given the prompt; those of the raw ones stand beside."""
    raw_mean: float = math.nan
    raw_baseline_mean: float = math.nan
    raw_shift: Bound = UNKNOWN
    expected_shift: Bound = UNKNOWN
    """How far what was asked moves the score that it lets expect, in raw deviations of the baseline: of this
    feature the part of ``raw_shift`` that the prompts alone explain."""
    tails: tuple[TailGrowth, ...] = ()
    """At every level that the baseline watches, the widest first."""
    evidence_toward: float | None = None
    """The part of ``evidence`` that is bet on a persona, not on its opposite; None: not told apart."""
    evidence_limit: float = math.inf
    """``evidence`` at or above this is a process change, at the promised run length."""
    witnesses: tuple[Witness, ...] = ()
    """What ``cause`` rests on."""
    log_e: float = math.nan
    """Log e-value of the stream since the baseline's approval; NaN where no detector runs."""
    log_e_line: float = math.inf
    """``log_e`` at or above it is one of the pack's discoveries."""

    @property
    def discovery(self) -> bool:
        """The stream has changed since the approval, with a bounded share of false ones among those found."""
        return self.log_e >= self.log_e_line
