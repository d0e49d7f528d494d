"""What a dialect finds in a document, before the record's identity and sampling are added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from monitor.values.making import quickly_made
from monitor.values.prompts import Message, Sampling, ServedCounts, ToolCall


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The prompt side. One of ``messages``, ``text`` and ``token_ids``; as in `Prompt`."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tools_forbidden: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    special_tokens: bool = False
    media: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Where the dialect keeps its sampling parameters."""


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The served side; everything empty when a call failed, said nothing, or was not logged."""

    text: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    media: bool = False
    finish_reason: str | None = None
    counts: ServedCounts | None = None


NO_ANSWER: Final = Answer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One part of an exchange whose rest comes in other records; see `monitor.values.prompts.Half`.

    ``name`` holds whatever tells the exchange from others, of any length. ``dialect`` reads the parts
    once they are together.
    """

    dialect: str
    name: tuple[str, ...]
    side: str
    content: Mapping[str, Any]
    ordered: bool = False
    last: bool = False


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """``timestamp`` is the record's own, not yet held against the time at which it was appended."""

    source_format: str
    asked: Asked
    answer: Answer = NO_ANSWER
    counts: ServedCounts | None = None
    sampling: Sampling | None = None
    prompt_id: str | None = None
    conversation_id: str | None = None
    model: str | None = None
    model_revision: str | None = None
    segment: Mapping[str, str] = field(default_factory=dict)
    inclusion_probability: float = 1.0
    timestamp: datetime | None = None
    left_out: tuple[str, ...] = ()
