"""Valid records of every format, a word that stands in all of them, and what `parse` promises of any record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from monitor.ingest import fields
from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, Parsed, Prompt, RawRecord, Skip
from tests.ingest.writers import WRITERS, Call, Conversation, Round

SETTINGS = IngestSettings(segment_keys=("route", "secret"))

SECRET = "s3cr3t"
"""Stands in every text of the generated records; no detail may repeat it."""

CHAT = [{"role": "system", "content": SECRET}, {"role": "user", "content": SECRET}]
PARTS = [{"role": "user", "parts": [{"type": "text", "content": SECRET}]}]
ANSWER = {
    "role": "assistant",
    "content": [{"type": "text", "text": SECRET}],
    "tool_calls": [{"function": {"name": SECRET, "arguments": {"a": [SECRET]}}}],
}


SPOKEN = Conversation(
    system=SECRET,
    rounds=(
        Round((SECRET, SECRET), (Call(SECRET, SECRET, {"a": SECRET}, SECRET),), SECRET, SECRET),
        Round((SECRET,), (), SECRET),
    ),
)
STREAM = (
    'data: {"choices": [{"delta": {"content": "s3cr3t"}}]}\n\n'
    'data: {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": '
    '{"name": "s3cr3t", "arguments": "{}"}}]}}]}\n\ndata: [DONE]\n'
)


def key_value(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


ANSWERING = [
    key_value("role", {"stringValue": "assistant"}),
    key_value("parts", {"arrayValue": {"values": []}}),
]
OTLP = [
    key_value("gen_ai.operation.name", {"stringValue": "chat"}),
    key_value("gen_ai.input.messages", {"stringValue": orjson.dumps(PARTS).decode()}),
    key_value(
        "gen_ai.output.messages",
        {"arrayValue": {"values": [{"kvlistValue": {"values": ANSWERING}}]}},
    ),
    key_value("gen_ai.response.id", {"stringValue": SECRET}),
]
VALID: tuple[dict[str, Any], ...] = (
    {
        "messages": CHAT,
        "response": ANSWER,
        "id": SECRET,
        "conversation_id": SECRET,
        "model": SECRET,
        "timestamp": 1772366400,
        "segment": {"route": SECRET},
        "sampling_probability": 0.5,
    },
    {"prompt": SECRET, "response": SECRET, "timestamp": "2026-03-01T11:00:00Z"},
    {
        "request": {"model": SECRET, "messages": CHAT, "metadata": {"route": SECRET}},
        "response": {"id": SECRET, "created": 1772366400, "choices": [{"message": ANSWER}]},
    },
    {"model": SECRET, "messages": CHAT, "stream": True},
    {
        "call_type": "completion",
        "id": SECRET,
        "trace_id": SECRET,
        "messages": CHAT,
        "response": {"choices": [{"message": ANSWER}]},
        "endTime": 1772366400.5,
        "metadata": {"user_api_key_alias": SECRET},
        "request_tags": ["route:x"],
    },
    {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": PARTS,
        "gen_ai.output.messages": [{"role": "assistant", "parts": []}],
        "gen_ai.system_instructions": [{"type": "text", "content": SECRET}],
        "timestamp": "2026-03-01T11:00:00Z",
    },
    {
        "resourceSpans": [
            {
                "resource": {"attributes": [key_value("route", {"stringValue": SECRET})]},
                "scopeSpans": [
                    {"spans": [{"attributes": OTLP, "endTimeUnixNano": "1772366400000000000"}] * 2}
                ],
            }
        ]
    },
    {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"attributes": OTLP, "timeUnixNano": 0}]}]}]},
    {
        "specversion": "1.0",
        "type": "t",
        "source": "s",
        "id": SECRET,
        "time": "2026-03-01T11:00:00Z",
        "data": {"messages": CHAT, "response": SECRET},
    },
    *(writer(SPOKEN) for writer in WRITERS.values()),
    {"schema": {}, "payload": {"messages": CHAT, "response": SECRET}},
    {"log": orjson.dumps({"messages": CHAT, "response": SECRET}).decode()},
    {"prompt": SECRET, "completion": SECRET},
    {"llm_request": {"messages": CHAT}, "llm_response_text": SECRET, "start_time": 1772366400123},
    {"custom_id": SECRET, "url": "/v1/chat/completions", "body": {"messages": CHAT}},
    {"request": {"messages": CHAT}, "response": STREAM},
)


def checked(record: RawRecord, ingest: IngestSettings = SETTINGS) -> tuple[Parsed, ...]:
    """Parses and holds the result against everything that `parse` promises."""
    parsed = parse(record, ingest)
    assert parsed
    assert [value.key.index for value in parsed] == list(range(len(parsed)))
    assert parse(record, ingest) == parsed
    for value in parsed:
        assert isinstance(value, Prompt | DeadLetter | Skip)
        if isinstance(value, DeadLetter):
            assert ": " in value.detail
            assert len(value.detail) < 300
            assert SECRET not in value.detail
            assert "report this" not in value.detail
        if isinstance(value, Prompt):
            _check_prompt(value)
    return parsed


def _check_prompt(prompt: Prompt) -> None:
    names = [prompt.prompt_id, prompt.conversation_id, prompt.model, prompt.model_revision]
    for name in [*names, *prompt.segment, *prompt.segment.values()]:
        assert name is None or (name and "\x00" not in name and len(name) <= fields.NAME_LIMIT)
        _require_encodable(name or "")
    assert fields.EARLIEST <= prompt.recorded_at <= fields.LATEST
    assert {m.role for m in prompt.messages} <= {"system", "user", "assistant", "tool"}
    assert prompt.response != ""
    assert prompt.reasoning != ""
    contents = [m.content for m in prompt.messages] or [prompt.text or ""]
    assert prompt.token_ids is not None or any(content.strip() for content in contents)
    _require_encodable("".join(contents) + (prompt.response or "") + (prompt.reasoning or ""))
    for call in (*prompt.tool_calls, *(c for m in prompt.messages for c in m.tool_calls)):
        _require_encodable(call.name + call.arguments)
    for path in prompt.left_out:
        assert SECRET not in path
    orjson.dumps([dict(prompt.template_options), *map(dict, prompt.tools)])


def _require_encodable(text: str) -> None:
    text.encode("utf-8")


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(child, (*path, key))
