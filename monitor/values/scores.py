"""What the replay and the scorer give, and what the worker stores of it.

Array legend: k = features of the pack (in the pack's order), b = `SCORE_BINS` bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from monitor.values.arrays import Counts, Floats
from monitor.values.checks import require, require_aware
from monitor.values.fidelity import Fidelity, Rendering
from monitor.values.likelihood import LawBucket
from monitor.values.likeness import LikenessBucket
from monitor.values.making import quickly_made
from monitor.values.prompts import (
    GENERATED,
    DeadLetter,
    DeadReason,
    OffsetSpan,
    Prompt,
    RecordKey,
    ServedCounts,
)
from monitor.values.surprise import IdentityBucket, Weighed
from monitor.values.twin import Pair, Unpaired

_NOT_COUNTED: Final = ServedCounts()

SCORE_BIN_EDGES: Final[tuple[float, ...]] = (
    *(-20.0, -15.0, -12.0, -10.0, -8.0, -7.0, -6.0, -5.5),
    *(round(-5.0 + 0.25 * step, 2) for step in range(41)),
    *(5.5, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0),
)
"""Inner edges of the score bins, fixed for every feature and for ever: stored histograms rely on them.

Bin 0 is (-inf, edges[0]), bin i is [edges[i-1], edges[i]), the last is [edges[-1], inf).
"""
SCORE_BINS: Final = len(SCORE_BIN_EDGES) + 1


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


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Readings of one prompt. NaN in ``readings`` = the region is absent (no response), not an error.

    ``prompt_tokens``, ``reasoning_tokens`` and ``response_tokens`` were run, after the cut. ``counts`` are
    the replay's own before any cut, as a server counts; `monitor.values.fidelity` compares them.
    """

    prompt: Prompt
    readings: Floats
    pooled_tokens: Counts
    prompt_tokens: int
    response_tokens: int
    cut: bool = False
    generated: bool = False
    reasoning_tokens: int = 0
    counts: ServedCounts = _NOT_COUNTED
    rendering: Rendering = "chat"
    covariates: Floats | None = None
    """Readings of the pack's covariates, where it carries any."""
    stand_ins: tuple[str, ...] = ()
    """Parts of the answer (``reasoning``, ``tool_calls``) that the chat template has no form for: they
    were replayed in a stand-in form."""
    weighed: Weighed | None = None
    """Of the logged answer, where it was to be weighed."""
    twin: Pair | Unpaired | None = None
    """Of a prompt that the copy was to answer too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreplayable:
    prompt: Prompt
    reason: DeadReason
    detail: str = ""


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """One row of the scores table. NaN stands for "absent". ``content_hash`` is a keyed HMAC.

    ``segments`` are the prompt's; `counted_in` says in which of them a score counts.
    """

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
    served: ServedCounts | None = None
    fidelity: Fidelity | None = None
    """The replay against ``served``; None where nothing compares."""
    left_out: tuple[str, ...] = ()
    """Fields of the record that held nothing usable: `Prompt.left_out` without indices."""
    covariates: Floats | None = None
    """What the pack reads of the prompt for `Adjustment` alone; None: the pack carries none."""
    adjusted: Floats | None = None
    """The scores given the prompt; None: no baseline adjusted them."""
    weighed: Weighed | None = None
    """Of an answer of the chosen share (``identity.share``); None: it was not chosen."""
    twin: Floats | Unpaired | None = None
    """Score of the served answer minus that of the copy's own, over the same tokens, or why there is none;
    None: the prompt is not of the share ``twin.share``. NaN where a feature reads the prompt alone."""

    def counted_in(self, *, of_prompt: bool) -> tuple[str, ...]:
        """The segments in which a score of this prompt counts.

        One that reads an answer of the copy's own counts in `GENERATED` alone, so that no sum mixes it
        with scores of logged answers; what reads the prompt side is the same with either.
        """
        if not self.generated:
            return self.segments
        if of_prompt:
            return tuple(segment for segment in self.segments if segment != GENERATED)
        return (GENERATED,)


@quickly_made
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
    tail_count: int | None
    """See `Directed.in_tail`. None: not known (see `monitor.store.buckets`)."""

    def __post_init__(self) -> None:
        require_aware(self.bucket_start, "bucket_start")
        require(self.histogram.shape == (SCORE_BINS,), f"histogram must have {SCORE_BINS} bins")


def tail_sum(counts: Iterable[int | None]) -> int | None:
    """The sum of tail counts; None when one of them is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


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
    adjusted_by: str | None = None
    """Id of the baseline that adjusted `ScoredPrompt.adjusted`."""
    adjusted_buckets: tuple[Bucket, ...] = ()
    """The statistics of the adjusted scores."""
    watermarks: Mapping[tuple[str, int], datetime] = field(default_factory=dict)
    """By (topic, partition): the time of the newest of the chunk's records."""
    waiting: tuple[RecordKey, ...] = ()
    """Parts of exchanges that begin to wait for the rest."""
    settled: tuple[RecordKey, ...] = ()
    """Parts that waited in the store and do no longer: joined or given up."""
    identity: tuple[IdentityBucket, ...] = ()
    likenesses: tuple[LikenessBucket, ...] = ()
    """What the weighed answers add up to."""
    laws: tuple[LawBucket, ...] = ()
    """How likely the answers are of which nobody says how they were drawn."""
    twins: tuple[Bucket, ...] = ()
    """The statistics of the differences to the twins."""


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
