"""What was read: records as they came, prompts, and what became of those that are not scored.

Every value is keyword-only and refuses nonsense when it is built. Times are aware and in UTC.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from monitor.values.checks import frozen, require, require_aware

EVERYTHING: Final = "all"
"""The segment that every production prompt belongs to."""
CANARY: Final = "canary"
"""The segment reserved for the agent's own fixed prompts."""


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
        require_aware(self.timestamp, "timestamp")


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
        require_aware(self.recorded_at, "recorded_at")
        require(bool(self.messages) != (self.text is not None), "give either messages or text")
        require(0.0 < self.inclusion_probability <= 1.0, "inclusion_probability must be in (0, 1]")
        object.__setattr__(self, "segment", frozen(self.segment))


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
        require_aware(self.recorded_at, "recorded_at")


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
        require(0 <= self.start <= self.end, f"offsets must rise: {self.start}..{self.end}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one poll hands to the worker: records of one or several partitions, spans contiguous."""

    records: tuple[RawRecord, ...]
    spans: tuple[OffsetSpan, ...]
