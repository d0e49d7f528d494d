"""What was read: records as they came, prompts, and what became of those that are not scored.

Every value is keyword-only and refuses nonsense when it is built. Times are aware and in UTC.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from monitor.values.checks import frozen, require, require_aware
from monitor.values.making import quickly_made

EVERYTHING: Final = "all"
"""The segment that every production prompt belongs to."""
GENERATED: Final = "generated"
"""The segment of scores that read an answer of the copy's own: they count here and nowhere else."""
MEDIA: Final = "media_left_out"
"""The segment of exchanges whose images, audio or files were left out: they count here and nowhere else,
since the copy reads half of what the served model read."""
WHOLE: Final = (EVERYTHING, GENERATED, MEDIA)
"""The segments that are no slice of another, each compared with a baseline of its own alone."""
CANARY: Final = "canary"
"""The segment reserved for the agent's own fixed prompts."""

BATCH_BYTES: Final = 32 * 1024 * 1024
"""What one compressed batch of Kafka may come to. A producer's own limits are a thirtieth of it, and 3 MB
of gzip can be 3 GB."""


@quickly_made
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
    unread_from: int | None = None
    """Set where this stands for all records from that offset to its own: their batch is too large to
    be decompressed."""

    def __post_init__(self) -> None:
        require_aware(self.timestamp, "timestamp")


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RecordKey:
    """Identity of one prompt: a Kafka message may carry several (OTLP), told apart by ``index``."""

    topic: str
    partition: int
    offset: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool. ``arguments`` is the JSON text that was logged, unchanged where it was text."""

    name: str
    arguments: str
    call_id: str | None = None


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat, with all of it that can reach the chat template.

    ``reasoning`` is what the record keeps apart from the answer; reasoning inside ``content`` stays there.
    """

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCounts:
    """The server's own token counts, against which the replay's are held."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the served answer was drawn; None where the record does not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids of the served model, each with what its score was raised by."""
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    finish_reason: str | None = None
    steered_by: tuple[str, ...] = ()
    """Parameters that change what can be drawn and are not reproduced: grammars, schemas, beams …"""

    @property
    def sharp(self) -> bool:
        """Its unlikely tokens are less likely than the model has them: colder than 1, or cut by top_p, top_k or min_p."""
        cold = self.temperature is not None and self.temperature < 1.0
        cut = (self.top_p or 1.0) < 1.0 or (self.top_k or 0) > 0 or (self.min_p or 0.0) > 0.0
        return cold or cut


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One sampled exchange: what was asked, and the served answer where it was logged.

    Exactly one of ``messages`` (a chat), ``text`` (a raw prompt, no template) and ``token_ids`` (a raw
    prompt as the server's own tokens) is given. The answer is ``response`` (its text), with
    ``reasoning`` and ``tool_calls`` that belong to it; all empty means that no answer was logged.
    ``recorded_at`` is the record's own timestamp: stable on redelivery, it decides bucket and
    partition. ``inclusion_probability`` is the product of every sampling step up to here.
    """

    key: RecordKey
    recorded_at: datetime
    messages: tuple[Message, ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    response: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    continues: bool = False
    """The answer continues the last assistant message (a prefill) instead of opening a turn."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tool definitions as the chat template takes them: ``{"type": "function", "function": {…}}``."""
    tools_forbidden: bool = False
    """The request forbade calls (``tool_choice: none``); a server may then leave ``tools`` out."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What else reaches the chat template: ``documents``, ``enable_thinking``, ``reasoning_effort`` …"""
    special_tokens: bool = False
    """``text`` is an already rendered template: the record says that its special tokens are tokens."""
    media_left_out: bool = False
    """The exchange held images, audio or files, which are not replayed."""
    served: ServedCounts | None = None
    sampling: Sampling | None = None
    prompt_id: str = ""
    conversation_id: str | None = None
    model: str | None = None
    model_revision: str | None = None
    segment: Mapping[str, str] = field(default_factory=dict)
    inclusion_probability: float = 1.0
    source_format: str = "native"
    left_out: tuple[str, ...] = ()
    """Fields that held nothing usable and were passed over (``response.created``): paths, no content."""

    def __post_init__(self) -> None:
        require_aware(self.recorded_at, "recorded_at")
        given = bool(self.messages) + (self.text is not None) + (self.token_ids is not None)
        require(given == 1, "give exactly one of messages, text and token_ids")
        require(0.0 < self.inclusion_probability <= 1.0, "inclusion_probability must be in (0, 1]")
        object.__setattr__(self, "segment", frozen(self.segment))
        object.__setattr__(self, "template_options", frozen(self.template_options))

    @property
    def answered(self) -> bool:
        """An answer was logged, be it text, reasoning or a tool call."""
        return self.response is not None or self.reasoning is not None or bool(self.tool_calls)


def plain(value: Any) -> Any:
    """``value`` as JSON types alone: mappings become dicts, sequences lists."""
    if value is None or isinstance(value, str):  # asking for a Mapping is slow, and most are these
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def identity(prompt: Prompt) -> Iterator[str]:
    """The exchange's content as a sequence of texts: equal for two prompts only where they replay alike.

    Text, roles, contents and response come first, and alone for a plain chat. What else reaches the
    replay follows as one JSON text. The order of keys counts, since templates print objects as they come.
    """
    yield prompt.text or ""
    for message in prompt.messages:
        yield message.role
        yield message.content
    yield prompt.response or ""
    if _is_plain_chat(prompt):
        return
    turns = [_beside_content(message) for message in prompt.messages]
    beside = {
        "token_ids": plain(prompt.token_ids),
        "special_tokens": prompt.special_tokens,
        "continues": prompt.continues,
        "tools": plain(prompt.tools),
        **({"tools_forbidden": True} if prompt.tools and prompt.tools_forbidden else {}),
        "template_options": plain(prompt.template_options),
        "reasoning": prompt.reasoning,
        "tool_calls": [_call(call) for call in prompt.tool_calls],
    }
    yield json.dumps(beside | {"messages": turns}, ensure_ascii=False)


def _is_plain_chat(prompt: Prompt) -> bool:
    """No more reaches the replay than text, roles, contents and response."""
    more = prompt.token_ids or prompt.special_tokens or prompt.continues or prompt.tools
    if more or prompt.template_options or prompt.reasoning or prompt.tool_calls:
        return False
    for said in prompt.messages:
        if said.reasoning or said.tool_calls or said.tool_call_id or said.name:
            return False
    return True


def question(prompt: Prompt) -> tuple[str, ...]:
    """The content of what was asked, whatever was answered: equal only for prompts that replay alike."""
    return tuple(identity(replace(prompt, response=None, reasoning=None, tool_calls=())))


def _beside_content(message: Message) -> dict[str, Any]:
    return {
        name: [_call(call) for call in held] if name == "tool_calls" else held
        for name in ("reasoning", "tool_calls", "tool_call_id", "name")
        if (held := getattr(message, name))
    }


def _call(call: ToolCall) -> list[str | None]:
    return [call.name, call.arguments, call.call_id]


class DeadReason(enum.StrEnum):
    """Why a record was dead-lettered; the values are stable and stand in SQL and metrics."""

    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    UNKNOWN_FORMAT = "unknown_format"
    INVALID_FIELD = "invalid_field"
    EMPTY = "empty"
    DIALECT_NOT_READ = "dialect_not_read"
    """An exchange with a model, in a form that is known and not read; the detail names it."""
    TRUNCATED = "truncated"
    """The sender cut its content off."""
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
    """Telemetry, or a call that is no exchange in text: embeddings, moderation, images, speech …"""
    ONLY_MEDIA = "only_media"
    """The prompt holds images, audio or files and no text."""
    OTHER_MODEL = "other_model"
    NO_ANSWER = "no_answer"
    """No answer was logged, the pack reads nothing else, and ``replay.answer_share`` leaves this one out."""
    UNPAIRED = "unpaired"
    """A part of an exchange whose rest did not come within ``ingest.join.window``, or came twice."""
    JOIN_FULL = "join_full"
    """A part of an exchange that was given up early: more waited than ``ingest.join`` allows."""
    NOTHING_TO_READ = "nothing_to_read"
    """No feature of the pack has a token here: the first one is never pooled."""
    SERVER_CANARY = "server_canary"
    """One of the monitor's own questions to the served endpoint (``server_canaries``): no traffic."""


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


SKIP_MENDS: Final[Mapping[SkipReason, str]] = {
    SkipReason.NO_ANSWER: "set replay.answer_share (a share gets the copy's own answer) or replay.mode: "
    "generate (all do), log the answers, or use a pack with features of the region prompt or "
    "last_prompt_token",
    SkipReason.CONTENT_REDACTED: "let the sender record contents",
    SkipReason.ONLY_MEDIA: "send the exchanges that hold text",
    SkipReason.NOTHING_TO_READ: "use a pack with features of regions that these prompts have",
}
"""What helps against a skip that need not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    key: RecordKey
    recorded_at: datetime
    reason: SkipReason


Parsed = Prompt | DeadLetter | Skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One part of an exchange that comes in several; `monitor.ingest.joining` puts it together.

    ``exchange`` is the same for all its parts. Without ``ordered`` there are two, of different ``side``,
    in any order and place. With it there are any number, one after the other in one partition, and the
    one that is ``last`` closes the exchange.
    """

    key: RecordKey
    recorded_at: datetime
    """When its record was appended."""
    exchange: bytes
    side: str
    content: bytes
    """What the dialect needs of it, as JSON."""
    ordered: bool = False
    last: bool = False
    keyed: bool = False
    """Its record has a Kafka key, so that its exchange may be in one partition."""

    def __post_init__(self) -> None:
        require_aware(self.recorded_at, "recorded_at")


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
class Recalled:
    """A record below the stored offset, read again for the halves in it that still wait.

    ``indexes`` are those of the halves. ``record`` is None where the log no longer has it.
    """

    topic: str
    partition: int
    offset: int
    indexes: frozenset[int]
    record: RawRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one poll hands to the worker: records of one or several partitions, spans contiguous.

    ``recalled`` come before the records, and belong to no span.
    """

    records: tuple[RawRecord, ...]
    spans: tuple[OffsetSpan, ...]
    recalled: tuple[Recalled, ...] = ()
