"""What the monitor reads of what a library wrote, held against what was said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from monitor.ingest.joining import Joins
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    Chunk,
    DeadLetter,
    Message,
    Parsed,
    Prompt,
    RawRecord,
    Skip,
    ToolCall,
)
from tests.libraries.cases import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    SAMPLING,
    TOOL,
    Call,
    Case,
)

SETTINGS: Final = IngestSettings()
CHAT_SAMPLING: Final = {key: value for key, value in SAMPLING.items() if key != "stop"}
CHAT_SAMPLING |= {"stop": tuple(SAMPLING["stop"])}
RESPONSES_SAMPLING: Final = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 100}
ANTHROPIC_SAMPLING: Final = {"max_tokens": 100, "stop": ("END", "</s>")}


@dataclass(frozen=True)
class Written:
    """A message with headers of its own, or one that is no JSON."""

    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def parsed(*documents: Any) -> tuple[Parsed, ...]:
    """What becomes of records that are appended one after the other, halves joined."""
    now = datetime.now(UTC) + timedelta(minutes=1)
    records = []
    for offset, document in enumerate(documents):
        written = document
        if not isinstance(written, Written):
            written = Written(value=json.dumps(document).encode())
        records.append(
            RawRecord(
                topic="t",
                partition=0,
                offset=offset,
                timestamp=now,
                value=written.value,
                headers=written.headers,
            )
        )
    joins = Joins(SETTINGS, in_order=True)
    joined = joins.read(Chunk(records=tuple(records), spans=()), now=now)
    return (*joined.outcomes, *joins.end())


def read(*documents: Any) -> Prompt:
    """The one prompt in the documents."""
    found = parsed(*documents)
    assert len(found) == 1, found
    assert isinstance(found[0], Prompt), found
    return found[0]


def to_the_end(served: Any) -> None:
    """Reads a stream, as its caller does; an answer that is whole has nothing to read."""
    if hasattr(served, "__iter__") and not hasattr(served, "model_dump"):
        for _ in served:
            pass


def check(
    told: Case,
    prompt: Prompt,
    source_format: str,
    *,
    sampling: dict[str, Any] = CHAT_SAMPLING,
    lacks: Iterable[str] = (),
    counts: tuple[int, int] = (PROMPT_TOKENS, COMPLETION_TOKENS),
) -> None:
    """Everything that was said is what was read. ``lacks`` names what the library does not write.

    What it lacks must be absent from the prompt: nothing is invented in its place.
    """
    without = set(lacks)
    assert prompt.source_format == source_format
    assert [_plain(m, without) for m in prompt.messages] == expected(told, without)
    assert prompt.continues is False
    assert prompt.response == (told.reply.text or None)
    if "reasoning" in without:
        assert prompt.reasoning is None
    else:
        assert prompt.reasoning == (told.reply.reasoning or None)
    assert _calls(prompt.tool_calls) == _told_calls(told.reply.calls)
    assert prompt.media_left_out is ("image" not in without and any(t.image for t in told.turns))
    assert list(prompt.tools) == _tools(told, without)
    _check_sampling(prompt, sampling if told.sampling else {}, without)
    if "counts" in without:
        assert prompt.served is None
    else:
        assert prompt.served is not None
        assert (prompt.served.prompt_tokens, prompt.served.completion_tokens) == counts
    assert prompt.left_out == ()
    assert bool(prompt.model) is ("model" not in without)


def check_refused(document: Any, reason: str) -> None:
    """Nothing is read, and the reason is the true one."""
    (found,) = parsed(document)
    assert isinstance(found, DeadLetter | Skip), found
    assert found.reason == reason


def check_failed(told: Case, *documents: Any) -> None:
    """A failed call: the question, or a reason why nothing is read; never an answer, never a letter."""
    for one in parsed(*documents):
        assert not isinstance(one, DeadLetter), one
        if isinstance(one, Prompt):
            assert not one.answered, one
            assert told.reply.text not in [message.content for message in one.messages]
            assert [_plain(m, set()) for m in one.messages] == expected(told, set())


def expected(told: Case, without: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": "\n".join(turn.texts),
            "calls": _told_calls(turn.calls),
            "answers": None if "answers" in without else turn.answers,
            "reasoning": turn.reasoning or None,
        }
        for turn in told.turns
    ]


def _plain(message: Message, without: set[str]) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": message.content,
        "calls": _calls(message.tool_calls),
        "answers": message.tool_call_id,
        "reasoning": message.reasoning,
    }


def _calls(calls: tuple[ToolCall, ...]) -> list[tuple[str, Any, str | None]]:
    return [(call.name, json.loads(call.arguments), call.call_id) for call in calls]


def _told_calls(calls: tuple[Call, ...]) -> list[tuple[str, Any, str | None]]:
    return [(call.name, call.arguments, call.id) for call in calls]


def _tools(told: Case, without: set[str]) -> list[dict[str, Any]]:
    if not told.tools or "tools" in without:
        return []
    function = {key: value for key, value in TOOL.items() if key not in without}
    return [{"type": "function", "function": function}]


def _check_sampling(prompt: Prompt, sampling: dict[str, Any], without: set[str]) -> None:
    for name, value in sampling.items():
        found = getattr(prompt.sampling, name, None)
        if name in without:
            assert not found, name
        else:
            assert found == value, name
    if "finish_reason" not in without:
        assert prompt.sampling is not None
        assert prompt.sampling.finish_reason
