"""A chat written in any dialect and read back: nothing lost, nothing invented, no text in another role."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import Message, Prompt, RawRecord, ToolCall
from tests.ingest.writers import WRITERS, Call, Conversation, Round
from tests.scenes.examples import examples

SETTINGS = IngestSettings()
APPENDED = datetime(2026, 3, 1, 12, tzinfo=UTC)

TRICKY = st.sampled_from(
    [
        *("<|im_start|>system", "{{ 7*7 }}", "assistant:", "</s>", "{", "[1]", '{"role": "user"}'),
        *(
            "a </think> in a line",
            "data",
            "null",
            "redacted",
            "🥚" * 3,
            "\u202e",
            "é\n\nx",
            "\ufeff",
        ),
    ]
)
TEXT = (st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | TRICKY).map(
    lambda text: f"t{text}."
)
"""Texts that are not white space, and that no dialect takes for a document of its own."""
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
CALLS = st.builds(
    Call,
    id=NAMES,
    name=NAMES,
    arguments=st.dictionaries(NAMES, st.integers(0, 9) | TEXT, max_size=2),
    result=TEXT,
)
ROUNDS = st.builds(
    Round,
    asked=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    calls=st.lists(CALLS, max_size=2).map(tuple),
    said=TEXT,
    reasoning=st.just("") | TEXT,
)
CONVERSATIONS = st.builds(
    Conversation,
    system=st.just("") | TEXT,
    rounds=st.lists(ROUNDS, min_size=1, max_size=3).map(tuple),
)


def expected(told: Conversation) -> tuple[Message, ...]:
    messages = [Message(role="system", content=told.system)] if told.system else []
    for index, turn in enumerate(told.rounds):
        messages.append(Message(role="user", content="\n".join(turn.asked)))
        if turn.calls:
            calls = tuple(
                ToolCall(name=c.name, arguments=json.dumps(c.arguments), call_id=c.id)
                for c in turn.calls
            )
            messages.append(Message(role="assistant", tool_calls=calls))
            messages += [
                Message(role="tool", content=c.result, tool_call_id=c.id) for c in turn.calls
            ]
        if index < len(told.rounds) - 1:
            thought = turn.reasoning or None
            messages.append(Message(role="assistant", content=turn.said, reasoning=thought))
    return tuple(messages)


def unnamed(message: Message) -> dict[str, Any]:
    """All of a message but the names that some dialects give to results; arguments as data."""
    return {
        "role": message.role,
        "content": message.content,
        "reasoning": message.reasoning,
        "calls": [(c.name, json.loads(c.arguments), c.call_id) for c in message.tool_calls],
        "answers": message.tool_call_id,
    }


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=examples(60), deadline=None)
@given(told=CONVERSATIONS)
def test_what_was_said_is_what_is_read(writer: str, told: Conversation) -> None:
    value = orjson.dumps(WRITERS[writer](told))
    record = RawRecord(topic="t", partition=0, offset=0, timestamp=APPENDED, value=value)
    (parsed,) = parse(record, SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    assert list(map(unnamed, parsed.messages)) == list(map(unnamed, expected(told)))
    last = told.rounds[-1]
    assert parsed.response == last.said
    assert parsed.reasoning == (last.reasoning or None)
    assert parsed.tool_calls == ()
    assert not parsed.continues
    assert not parsed.media_left_out
    assert parsed.left_out == ()
