"""What is stored of a record: hashes that must not change, since they are compared over years."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.outcomes import keyed_hash
from monitor.values.prompts import Message, Prompt, RecordKey, ToolCall, identity

ASKED = Message(role="user", content="Which pän?")
CALLED = Message(
    role="assistant",
    reasoning="hm",
    tool_calls=(ToolCall(name="look", arguments="{}", call_id="1"),),
)
ANSWERED = Message(role="tool", content="iron", tool_call_id="1", name="look")


@pytest.mark.parametrize(
    ("given", "digest"),
    [
        (
            {"messages": (ASKED,), "response": "Iron."},
            "639bc205577d377539442eac4b8617b7b5f4c5a1b20b20537f6f6816139d0c62",
        ),
        (
            {"text": "Which pan?"},
            "ef70f7070c8e34c97d772e5d7fc4d7f55f19147fa120bff3a3b89907b82a3f3f",
        ),
        (
            {"token_ids": (1, 2, 3)},
            "ae97d942b5601e57293666d097e97276abb0e944e77eec76b83229bce20afe9f",
        ),
        (
            {
                "messages": (Message(role="user", content="Which pan?"), CALLED, ANSWERED),
                "response": "Iron \ud800",
                "reasoning": "so",
                "tool_calls": (ToolCall(name="buy", arguments='{"n": 1}'),),
                "continues": True,
                "tools": ({"type": "function", "function": {"name": "look"}},),
                "tools_forbidden": True,
                "template_options": {"b": 1, "a": [{"c": None}]},
                "special_tokens": True,
            },
            "a0733bf611be43ffc33fad531d2de8e99ba2300aaf5de805bde51ca94bf2eabb",
        ),
        (
            {"messages": (Message(role="user", content="x", name="anna"),)},
            "90ac9f26afb3ee4bd15b3ffe3a0a3c6f546d4ce5302604699360b99135f7ed43",
        ),
        (
            {"messages": (Message(role="user", content="x"),), "tools_forbidden": True},
            "ed14a6179488115418b4b24acd3e6fd280ba3eb28d2be13617a7673e9e98d6b7",
        ),
    ],
    ids=["chat", "text", "token_ids", "all", "named", "tools_forbidden"],
)
def test_the_content_hash_is_the_one_of_earlier_releases(given: Any, digest: str) -> None:
    prompt = Prompt(
        key=RecordKey(topic="t", partition=0, offset=0),
        recorded_at=datetime(2026, 7, 1, tzinfo=UTC),
        **given,
    )

    assert keyed_hash(b"key", *identity(prompt)).hex() == digest
