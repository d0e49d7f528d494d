"""The identity of an exchange: what reaches the replay changes it, what does not, does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.values.prompts import Message, Prompt, RecordKey, ServedCounts, ToolCall, identity

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = ToolCall(name="look", arguments='{"at": 1}', call_id="a")
CHAT = Prompt(
    key=RecordKey(topic="prompts", partition=0, offset=0),
    recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
    messages=(
        Message(role="user", content="a heron?"),
        Message(role="assistant", content="yes"),
        Message(role="user", content="where?"),
    ),
    response="there",
)


def test_plain_chat_is_its_texts_in_order() -> None:
    """Rows that are stored keep their hash."""
    assert list(identity(CHAT)) == [
        *("", "user", "a heron?", "assistant", "yes", "user", "where?", "there"),
    ]


def message(**changes: Any) -> Prompt:
    return replace(CHAT, messages=(CHAT.messages[0], replace(CHAT.messages[1], **changes)))


CHANGED = {
    "tools": replace(CHAT, tools=(TOOL,)),
    "other tool": replace(CHAT, tools=(TOOL | {"type": "custom"},)),
    "tools forbidden": replace(CHAT, tools=(TOOL,), tools_forbidden=True),
    "order of keys": replace(CHAT, tools=(dict(reversed(TOOL.items())),)),
    "calls": replace(CHAT, tool_calls=(CALL,)),
    "other arguments": replace(CHAT, tool_calls=(replace(CALL, arguments="{}"),)),
    "other id": replace(CHAT, tool_calls=(replace(CALL, call_id="b"),)),
    "reasoning": replace(CHAT, reasoning="hm"),
    "options": replace(CHAT, template_options={"enable_thinking": False}),
    "prefill": replace(CHAT, continues=True),
    "rendered": replace(CHAT, messages=(), text="x", special_tokens=True),
    "raw": replace(CHAT, messages=(), text="x"),
    "ids": replace(CHAT, messages=(), token_ids=(1, 2)),
    "other ids": replace(CHAT, messages=(), token_ids=(1, 3)),
    "shorter": message(),
    "reasoning before": message(reasoning="hm"),
    "calls before": message(tool_calls=(CALL,)),
    "result of": message(tool_call_id="a"),
    "name": message(name="a"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_whatever_changes_the_replay_changes_the_identity(kind: str) -> None:
    others = {name: tuple(identity(prompt)) for name, prompt in CHANGED.items() if name != kind}
    mine = tuple(identity(CHANGED[kind]))
    assert mine != tuple(identity(CHAT))
    assert mine not in others.values()
    assert mine == tuple(identity(replace(CHANGED[kind])))


def test_what_a_record_says_beside_its_content_does_not() -> None:
    other = replace(
        CHAT,
        key=RecordKey(topic="prompts", partition=1, offset=9),
        model="m",
        served=ServedCounts(prompt_tokens=3),
        segment={"route": "a"},
    )
    assert tuple(identity(other)) == tuple(identity(CHAT))
