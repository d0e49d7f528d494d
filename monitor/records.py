"""The frozen values that pass between rooms. No behaviour, no I/O.

Every value is keyword-only and refuses nonsense when it is built. Times are aware and in UTC.

Array legend: k = features of the pack (in the pack's order), b = `SCORE_BINS` bins, d = model width,
n = latents of an SAE.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]

Region = Literal["prompt", "response", "last_prompt_token", "all"]
Pooling = Literal["mean", "max_rolling_mean", "max", "last"]
FeatureKind = Literal["direction", "probe", "latent"]
Activation = Literal["identity", "sigmoid", "relu", "jumprelu", "topk"]
InputNorm = Literal["none", "rescale", "layer_norm"]
Severity = Literal["info", "warning", "critical"]

EVERYTHING: Final = "all"
"""The segment that every production prompt belongs to."""
CANARY: Final = "canary"
"""The segment reserved for the agent's own fixed prompts."""

SCORE_BIN_EDGES: Final[tuple[float, ...]] = (
    *(-20.0, -15.0, -12.0, -10.0, -8.0, -7.0, -6.0, -5.5),
    *(round(-5.0 + 0.25 * step, 2) for step in range(41)),
    *(5.5, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0),
)
"""Inner edges of the score bins, fixed for every feature and for ever: stored histograms rely on them.

Bin 0 is (-inf, edges[0]), bin i is [edges[i-1], edges[i]), the last is [edges[-1], inf).
"""
SCORE_BINS: Final = len(SCORE_BIN_EDGES) + 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_aware(moment: datetime, name: str) -> None:
    _require(moment.tzinfo is not None, f"{name} must carry a time zone")


def _frozen(mapping: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(mapping))


# --- ingest ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecord:
    """One Kafka message (or one line of a file) as it came."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()

    def __post_init__(self) -> None:
        _require_aware(self.timestamp, "timestamp")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RecordKey:
    """Identity of one prompt: a Kafka message may carry several (OTLP), told apart by ``index``."""

    topic: str
    partition: int
    offset: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One sampled exchange: messages, and the served response where it was logged.

    Exactly one of ``messages`` (a chat) and ``text`` (a raw prompt, no template) is given.
    ``recorded_at`` is the record's own timestamp: stable on redelivery, it decides bucket and
    partition. ``inclusion_probability`` is the product of every sampling step up to here.
    """

    key: RecordKey
    recorded_at: datetime
    messages: tuple[Message, ...] = ()
    text: str | None = None
    response: str | None = None
    prompt_id: str = ""
    conversation_id: str | None = None
    model: str | None = None
    model_revision: str | None = None
    segment: Mapping[str, str] = field(default_factory=dict)
    inclusion_probability: float = 1.0
    source_format: str = "native"

    def __post_init__(self) -> None:
        _require_aware(self.recorded_at, "recorded_at")
        _require(bool(self.messages) != (self.text is not None), "give either messages or text")
        _require(0.0 < self.inclusion_probability <= 1.0, "inclusion_probability must be in (0, 1]")
        object.__setattr__(self, "segment", _frozen(self.segment))


class DeadReason(enum.StrEnum):
    """Why a record was dead-lettered; the values are stable and stand in SQL and metrics."""

    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    UNKNOWN_FORMAT = "unknown_format"
    INVALID_FIELD = "invalid_field"
    EMPTY = "empty"
    OVERSIZE = "oversize"
    TOO_DEEP = "too_deep"
    BAD_TIMESTAMP = "bad_timestamp"
    TEMPLATE_REFUSED = "template_refused"
    NO_TOKENS = "no_tokens"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"


class SkipReason(enum.StrEnum):
    """Why a readable record was not scored; counted, never an error."""

    SAMPLED_OUT = "sampled_out"
    CONTENT_REDACTED = "content_redacted"
    TOMBSTONE = "tombstone"
    NOT_A_PROMPT = "not_a_prompt"
    OTHER_MODEL = "other_model"
    NOTHING_TO_READ = "nothing_to_read"
    """No feature of the pack has a token here, for example no response under a pack of responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A record that could not be read or replayed. ``detail`` never holds content."""

    key: RecordKey
    recorded_at: datetime
    reason: DeadReason
    detail: str = ""
    content: bytes | None = None

    def __post_init__(self) -> None:
        _require_aware(self.recorded_at, "recorded_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    key: RecordKey
    recorded_at: datetime
    reason: SkipReason


Parsed = Prompt | DeadLetter | Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetSpan:
    """The offsets of one partition that a chunk covers: [start, end). ``log_end`` is the broker's.

    ``assignment`` tells spans read before the partition was taken away, or read again, from later
    ones; it means nothing outside the source that counts it.
    """

    topic: str
    partition: int
    start: int
    end: int
    log_end: int | None = None
    assignment: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.start <= self.end, f"offsets must rise: {self.start}..{self.end}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one poll hands to the worker: records of one or several partitions, spans contiguous."""

    records: tuple[RawRecord, ...]
    spans: tuple[OffsetSpan, ...]


# --- features ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Benign mean and deviation of a reading, as a function of the number of tokens pooled.

    The deviation of a mean falls, and the level of a maximum rises, with the number of tokens; a
    constant calibration would read length as persona. Between knots both are interpolated linearly
    in log2(tokens), outside they are held. One knot means no dependence on length.
    """

    tokens: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def __post_init__(self) -> None:
        _require(
            len(self.tokens) == len(self.means) == len(self.deviations) >= 1,
            "calibration needs as many means and deviations as token knots, at least one",
        )
        _require(all(t >= 1 for t in self.tokens), "calibration knots count tokens: at least 1")
        _require(
            all(a < b for a, b in zip(self.tokens, self.tokens[1:], strict=False)),
            "calibration knots must rise",
        )
        _require(all(math.isfinite(m) for m in self.means), "calibration means must be finite")
        _require(
            all(math.isfinite(s) and s > 0 for s in self.deviations),
            "calibration deviations must be positive",
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """All latents of a top-k SAE: on every token they compete for ``places``.

    ``weight`` [n, d] and ``bias`` [n], with everything folded that can be. Its features share it.
    """

    name: str
    weight: Floats
    bias: Floats
    places: int

    def __post_init__(self) -> None:
        _require(bool(self.name), "an encoder needs a name")
        _require(self.weight.ndim == 2, f"{self.name}: weight must be [n, d]")
        _require(
            self.bias.shape == self.weight.shape[:1], f"{self.name}: bias must be one per latent"
        )
        _require(1 <= self.places <= len(self.bias), f"{self.name}: places must be in 1..n")
        finite = bool(np.isfinite(self.weight).all() and np.isfinite(self.bias).all())
        _require(finite, f"{self.name}: weight and bias must be finite")


WATCH_ONLY: Final = "watch-only"
"""Tag of a feature that is scored and stored but, unless a rule names it, raises no alert: it moves with
harmless changes too, of style for instance."""


def selected(selector: str, name: str, tags: Sequence[str]) -> bool:
    """Does ``selector``, a name, a glob or ``tag:GLOB``, pick the feature of this name and these tags?"""
    if selector.startswith("tag:"):
        return any(fnmatchcase(tag, selector.removeprefix("tag:")) for tag in tags)
    return fnmatchcase(name, selector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One persona feature: what to read, where, over which tokens, and what a benign reading is.

    Site convention: ``site`` = L means the output of the 0-based decoder block L, which is
    ``hidden_states[L + 1]`` of transformers. Per token, with x [d] the residual stream:

    ``x' = input_norm(x)``;  ``a = activation(x' @ weight + bias)``

    with activation identity (direction), sigmoid (probe), relu, jumprelu (a·1[a > threshold]), or
    topk: relu(a) where ``latent`` of ``encoder`` is among its largest ``places`` on that token.
    An SAE's ``b_dec`` subtraction is folded into ``bias``. The reading pools ``a`` over ``region``,
    without tokens where ‖x‖ > ``largest_norm``, which the SAE was never trained on; for a probe the
    pooling is done on the logit and the sigmoid comes last.
    ``tail_threshold`` is the score above which a prompt counts as tail, set on benign text.
    """

    name: str
    kind: FeatureKind
    site: int
    region: Region
    pooling: Pooling
    weight: Floats
    calibration: Calibration
    bias: float = 0.0
    activation: Activation = "identity"
    threshold: float = 0.0
    input_norm: InputNorm = "none"
    rolling_tokens: int = 16
    skip_tokens: int = 1
    tail_threshold: float = 3.0
    expected: Literal["rises", "falls"] = "rises"
    tags: tuple[str, ...] = ()
    description: str = ""
    encoder: Encoder | None = None
    latent: int | None = None
    largest_norm: float | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "a feature needs a name")
        _require(self.site >= 0, f"{self.name}: site must be the index of a decoder block, from 0")
        _require(self.weight.ndim == 1 and self.weight.size > 0, f"{self.name}: weight must be [d]")
        _require(bool(np.isfinite(self.weight).all()), f"{self.name}: weight must be finite")
        _require(math.isfinite(self.bias), f"{self.name}: bias must be finite")
        _require(self.rolling_tokens >= 1, f"{self.name}: rolling_tokens must be at least 1")
        _require(self.skip_tokens >= 1, f"{self.name}: the first token is never pooled")
        _require(
            self.largest_norm is None
            or (math.isfinite(self.largest_norm) and self.largest_norm > 0),
            f"{self.name}: largest_norm must be positive",
        )
        if self.activation == "topk":
            _require(self.encoder is not None, f"{self.name}: topk needs the encoder")
            _require(
                self.latent is not None
                and self.encoder is not None
                and 0 <= self.latent < len(self.encoder.bias),
                f"{self.name}: latent must be one of the encoder's",
            )
        else:
            _require(
                self.encoder is None and self.latent is None,
                f"{self.name}: encoder and latent belong to topk",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """All that a score depends on beside the prompt. Two scores compare only within one lineage."""

    pack_id: str
    model_id: str
    model_hash: str
    dtype: str
    attention: str
    device: str
    engine: str
    rules: str
    """Replay rules that change readings: context, cut rule, masks; a short canonical JSON."""


# --- replay and score --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Readings of one prompt. NaN in ``readings`` = the region is absent (no response), not an error."""

    prompt: Prompt
    readings: Floats
    pooled_tokens: Counts
    prompt_tokens: int
    response_tokens: int
    cut: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreplayable:
    prompt: Prompt
    reason: DeadReason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """One row of the scores table. NaN stands for "absent". ``content_hash`` is a keyed HMAC."""

    key: RecordKey
    recorded_at: datetime
    prompt_id: str
    content_hash: bytes
    conversation_hash: bytes | None
    segments: tuple[str, ...]
    model: str | None
    model_revision: str | None
    prompt_tokens: int
    response_tokens: int
    cut: bool
    generated: bool
    inclusion_probability: float
    readings: Floats
    scores: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Additive statistics of one feature in one segment in one interval, from one writer.

    ``source`` is the writer's row set (``topic/partition``, or ``canary``); buckets merge by adding.
    ``histogram`` [b] counts scores in `SCORE_BIN_EDGES` bins.
    """

    bucket_start: datetime
    bucket_seconds: int
    feature: int
    segment: str
    source: str
    n: int
    total: float
    total_squares: float
    histogram: Counts
    tail_count: int

    def __post_init__(self) -> None:
        _require_aware(self.bucket_start, "bucket_start")
        _require(self.histogram.shape == (SCORE_BINS,), f"histogram must have {SCORE_BINS} bins")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestCount:
    """What became of the records of one source in one interval; additive."""

    bucket_start: datetime
    source: str
    outcome: str
    """``scored``, ``dead:<reason>`` or ``skipped:<reason>``."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Everything the worker stores for one chunk, in one transaction."""

    group_id: str
    worker_id: str
    spans: tuple[OffsetSpan, ...]
    lineage: Lineage
    scored: tuple[ScoredPrompt, ...]
    buckets: tuple[Bucket, ...]
    dead_letters: tuple[DeadLetter, ...]
    counts: tuple[IngestCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRun:
    """One replay of the pack's canaries against their recorded readings."""

    worker_id: str
    ran_at: datetime
    lineage: Lineage
    largest_deviation: float
    """Largest |reading - recorded| over canaries and features, in calibration deviations."""
    noise_floor: float
    reproduced: bool


# --- drift -------------------------------------------------------------------------------------


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
    tail_count: int

    def __post_init__(self) -> None:
        _require(self.start < self.end, "a window must end after it starts")
        _require(self.n >= 0, "n counts prompts")


class BaselineStatus(enum.StrEnum):
    """The life of a baseline; only an approved one is compared with, one per pack."""

    DRAFT = "draft"
    APPROVED = "approved"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineStream:
    """One feature in one segment of a baseline.

    A design effect is the variance of a mean of n prompts over what n independent prompts would
    give (Kish): 1 where prompts are independent, more where conversations or hours hang together.
    """

    window: Window
    design_effect: float = 1.0
    tail_design_effect: float = 1.0

    def __post_init__(self) -> None:
        _require(self.design_effect >= 1.0, "design_effect must be at least 1")
        _require(self.tail_design_effect >= 1.0, "tail_design_effect must be at least 1")


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
    """Prompts in segment ``all``."""
    fingerprint: Mapping[str, str]
    """What it was made from: pack, lineage, sampling, bucket length."""
    streams: Mapping[tuple[int, str], BaselineStream]
    """By feature index and segment."""
    approved_at: datetime | None = None
    approved_by: str | None = None
    retired_at: datetime | None = None

    def __post_init__(self) -> None:
        _require(self.window_start < self.window_end, "a baseline must end after it starts")
        object.__setattr__(self, "fingerprint", _frozen(self.fingerprint))
        object.__setattr__(self, "streams", MappingProxyType(dict(self.streams)))


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


class Cause(enum.StrEnum):
    """What the canaries say about a drift: did the users, the model, or our instrument change?"""

    INPUT_SHIFT = "input_shift"
    MODEL_SHIFT = "model_shift"
    INSTRUMENT_SHIFT = "instrument_shift"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An estimate with its two-sided confidence interval."""

    value: float
    low: float
    high: float


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
    evidence_limit: float = math.inf
    """``evidence`` at or above this is a process change, at the promised run length."""


# --- alerts ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One thing that a rule says about now: it holds (``active``), or it does not."""

    dedupe_key: str
    rule: str
    kind: Literal["drift", "silence"]
    severity: Severity
    active: bool
    summary: str
    labels: Mapping[str, str]
    """What identifies the alert (feature, segment, window, rule …); never a measured value."""
    details: Mapping[str, Any]
    """Figures for a person: JSON values only."""
    hold_for: timedelta = timedelta(0)
    cooldown: timedelta = timedelta(0)
    reminder: timedelta | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _frozen(self.labels))


class AlertState(enum.StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition that held, and its life: pending → firing → resolved."""

    alert_id: str
    dedupe_key: str
    rule: str
    kind: Literal["drift", "silence"]
    severity: Severity
    state: AlertState
    summary: str
    labels: Mapping[str, str]
    details: Mapping[str, Any]
    pending_since: datetime
    last_active_at: datetime
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    last_announced_at: datetime | None = None
    sequence: int = 0
    """Number of events announced so far; orders them for receivers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """No event is announced for alerts whose labels match, between the two times."""

    silence_id: str
    matchers: Mapping[str, str]
    """label → glob pattern; all must match."""
    starts_at: datetime
    ends_at: datetime
    created_by: str
    comment: str = ""


EventType = Literal["drift.detected", "drift.reminder", "drift.resolved", "silence.detected",
                    "silence.reminder", "silence.resolved", "monitor.test"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of the outbox: what all endpoints are told, rendered per endpoint at sending."""

    event_id: str
    """Constant across retries: the ``webhook-id``. Never holds a dot."""
    alert_id: str
    type: EventType
    sequence: int
    created_at: datetime
    alert: Alert


class DeliveryState(enum.StrEnum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event for one endpoint, and how often it was tried."""

    delivery_id: int
    endpoint: str
    event: Event
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime


class Outcome(enum.StrEnum):
    DELIVERED = "delivered"
    RETRY = "retry"
    SLOW_DOWN = "slow_down"
    REFUSED = "refused"
    """The endpoint will never take this event (400 and the like): no further try."""
    GONE = "gone"
    """410: the endpoint is disabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one attempt. ``error`` never holds a secret or the endpoint's response body."""

    attempted_at: datetime
    outcome: Outcome
    status: int | None
    latency_seconds: float
    error: str = ""
    retry_after_seconds: float | None = None


def utc(moment: datetime) -> datetime:
    """The same moment in UTC; a naive one is refused."""
    _require_aware(moment, "a time")
    return moment.astimezone(UTC)
