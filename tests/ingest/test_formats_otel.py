"""OpenTelemetry GenAI as JSON: OTLP spans, OTLP logs and flat events."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    DeadLetter,
    DeadReason,
    Message,
    Prompt,
    RawRecord,
    Skip,
    SkipReason,
    ToolCall,
)

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
ENDED = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
NANOSECONDS = str(int(ENDED.timestamp()) * 10**9)

INPUT = [
    {"role": "user", "parts": [{"type": "text", "content": "Weather in Oslo?"}]},
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "I should look."},
            {"type": "tool_call", "id": "1", "name": "weather", "arguments": {"city": "Oslo"}},
        ],
    },
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "result": {"c": 4}}]},
]
OUTPUT = [
    {
        "role": "assistant",
        "parts": [{"type": "text", "content": "Four degrees."}],
        "finish_reason": "stop",
    }
]
SYSTEM = [{"type": "text", "content": "Be brief."}]
MESSAGES = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Weather in Oslo?"),
    Message(
        role="assistant",
        reasoning="I should look.",
        tool_calls=(ToolCall(name="weather", arguments='{"city": "Oslo"}', call_id="1"),),
    ),
    Message(role="tool", content='{"c": 4}', tool_call_id="1"),
)


def any_value(value: Any) -> dict[str, Any]:
    match value:
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue": str(value)}
        case list():
            return {"arrayValue": {"values": [any_value(item) for item in value]}}
        case _:
            return {"kvlistValue": {"values": key_values(value)}}


def key_values(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in attributes.items()]


def attributes(*, as_json: bool = False, **more: Any) -> dict[str, Any]:
    def shown(content: Any) -> Any:
        return json.dumps(content) if as_json else content

    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "chat",
        "gen_ai.response.model": "chat-7b",
        "gen_ai.response.id": "resp-1",
        "gen_ai.conversation.id": "conv-1",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.system_instructions": shown(SYSTEM),
        "gen_ai.input.messages": shown(INPUT),
        "gen_ai.output.messages": shown(OUTPUT),
        **more,
    }


def spans(*entries: dict[str, Any], resource: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": key_values(resource or {})},
                "scopeSpans": [{"scope": {"name": "x"}, "spans": list(entries)}],
            }
        ]
    }


def span(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "traceId": "0af7",
        "spanId": "b7ad",
        "name": "gen_ai.chat chat",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": NANOSECONDS,
        "attributes": key_values(given),
        **more,
    }


def logs(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": list(entries)}]}]}


EVENT = "gen_ai.client.inference.operation.details"


@pytest.mark.parametrize(
    "document",
    [
        spans(span(attributes())),
        spans(span(attributes(as_json=True))),
        spans(span({}, events=[{"name": EVENT, "attributes": key_values(attributes())}])),
        logs(
            {
                "eventName": EVENT,
                "timeUnixNano": NANOSECONDS,
                "attributes": key_values(attributes()),
            }
        ),
        logs(
            {
                "timeUnixNano": 0,
                "observedTimeUnixNano": int(NANOSECONDS),
                "attributes": key_values({"event.name": EVENT} | attributes(as_json=True)),
            }
        ),
        logs({"eventName": EVENT, "timeUnixNano": NANOSECONDS, "body": any_value(attributes())}),
        {"event_name": EVENT, "timestamp": "2026-03-01T11:59:30Z", "attributes": attributes()},
        {
            "name": "chat",
            "end_time": "2026-03-01T11:59:30Z",
            "attributes": attributes(as_json=True),
        },
        {"timestamp": ENDED.timestamp(), **attributes()},
    ],
    ids=[
        *("span", "span-json", "span-event", "log", "log-json", "log-body"),
        *("flat-event", "flat-span", "flat-attributes"),
    ],
)
def test_every_carrier_gives_the_same_prompt(record: Build, document: dict[str, Any]) -> None:
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    assert parsed.messages == MESSAGES
    assert parsed.response == "Four degrees."
    assert (parsed.model, parsed.conversation_id) == ("chat-7b", "conv-1")
    assert parsed.prompt_id == "resp-1"
    assert parsed.recorded_at == ENDED
    assert parsed.source_format == "otel"


def test_one_message_carries_many_and_each_stands_alone(record: Build) -> None:
    """The index counts the exchanges; other spans are passed over, a bad one costs itself only."""
    document = spans(
        span(attributes(**{"gen_ai.response.id": "a"})),
        span({"http.route": "/"}),
        span(attributes(**{"gen_ai.operation.name": "invoke_agent"})),
        span(attributes(**{"gen_ai.input.messages": "[{"})),
        span({"gen_ai.operation.name": "chat", "gen_ai.request.model": "chat"}),
        span(attributes(**{"gen_ai.operation.name": "embeddings"})),
        span(attributes(**{"gen_ai.response.id": "b"})),
    )
    first, broken, empty, last = parse(record(document), SETTINGS)
    assert isinstance(first, Prompt)
    assert isinstance(last, Prompt)
    assert (first.prompt_id, last.prompt_id) == ("a", "b")
    assert isinstance(broken, DeadLetter)
    assert broken.reason is DeadReason.TRUNCATED
    assert broken.detail == (
        "resourceSpans[0].scopeSpans[0].spans[3].gen_ai.input.messages: cut off by the sender; "
        "raise the attribute length limit of the SDK or collector"
    )
    assert isinstance(empty, Skip)
    assert empty.reason is SkipReason.CONTENT_REDACTED
    assert [parsed.key.index for parsed in (first, broken, empty, last)] == [0, 1, 2, 3]


def test_thousands_in_one_message(record: Build) -> None:
    document = logs(*[{"attributes": key_values(attributes())}] * 1_000)
    parsed = parse(record(document), SETTINGS)
    assert len(parsed) == 1_000
    assert {type(one) for one in parsed} == {Prompt}
    assert parsed[-1].key.index == 999


def test_segments_come_from_resource_and_span(record: Build) -> None:
    document = spans(
        span(attributes(**{"app.route": "/chat", "retries": 2})),
        resource={"service.name": "gateway", "app.route": "/"},
    )
    settings = IngestSettings(segment_keys=("service.name", "app.route", "retries", "absent"))
    (parsed,) = parse(record(document), settings)
    assert isinstance(parsed, Prompt)
    assert parsed.segment == {"service.name": "gateway", "app.route": "/chat", "retries": "2"}


def test_text_completion_is_a_raw_prompt(record: Build) -> None:
    given = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "Once"}]}],
    }
    (parsed,) = parse(record(spans(span(given))), SETTINGS)
    assert isinstance(parsed, Prompt)
    assert (parsed.text, parsed.messages) == ("Once", ())
    assert parsed.prompt_id == "0af7/b7ad"


def test_bare_system_instructions(record: Build) -> None:
    given = attributes(**{"gen_ai.system_instructions": "Be kind."})
    (parsed,) = parse(record(spans(span(given))), SETTINGS)
    assert isinstance(parsed, Prompt)
    assert parsed.messages[0] == Message(role="system", content="Be kind.")


@pytest.mark.parametrize(
    "document",
    [
        spans(),
        spans(span({"http.route": "/"})),
        {"resourceLogs": []},
        {"name": "gen_ai.evaluation.result", "attributes": {"gen_ai.evaluation.name": "x"}},
        {"eventName": "gen_ai.evaluation.result", **attributes()},
        {"attributes": attributes(**{"gen_ai.operation.name": "execute_tool"})},
    ],
)
def test_other_telemetry_is_skipped_once(record: Build, document: dict[str, Any]) -> None:
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.NOT_A_PROMPT


@pytest.mark.parametrize(
    ("document", "reason", "named"),
    [
        ({"resourceSpans": 3}, DeadReason.INVALID_FIELD, "resourceSpans: expected an array"),
        ({"resourceSpans": [3]}, DeadReason.INVALID_FIELD, "resourceSpans[0]"),
        (
            {"resourceLogs": [{"scopeLogs": [{"logRecords": ["x"]}]}]},
            DeadReason.INVALID_FIELD,
            "resourceLogs[0].scopeLogs[0].logRecords[0]",
        ),
        (
            attributes(**{"gen_ai.input.messages": [{"role": "user", "parts": 1}]}),
            DeadReason.INVALID_FIELD,
            "[0].parts",
        ),
        (
            attributes(
                **{
                    "gen_ai.input.messages": [
                        {"role": "user", "parts": [{"type": "text", "content": 3}]}
                    ]
                }
            ),
            DeadReason.INVALID_FIELD,
            "parts[0].content",
        ),
        (
            attributes(**{"gen_ai.input.messages": [{"role": "{{x}}", "parts": []}]}),
            DeadReason.INVALID_FIELD,
            "messages[0].role",
        ),
        (
            attributes(**{"gen_ai.input.messages": "[" * 300 + "]" * 300}),
            DeadReason.TOO_DEEP,
            "gen_ai.input.messages",
        ),
        (
            spans(span(attributes(), endTimeUnixNano="soon")),
            DeadReason.BAD_TIMESTAMP,
            "endTimeUnixNano",
        ),
        (
            spans(span(attributes(), endTimeUnixNano="9" * 20)),
            DeadReason.BAD_TIMESTAMP,
            "endTimeUnixNano",
        ),
        (
            spans(span(attributes(), endTimeUnixNano=-5)),
            DeadReason.BAD_TIMESTAMP,
            "endTimeUnixNano",
        ),
    ],
)
def test_unreadable_telemetry_says_where(
    record: Build, document: dict[str, Any], reason: DeadReason, named: str
) -> None:
    (parsed,) = parse(record(document), SETTINGS)
    assert isinstance(parsed, DeadLetter), parsed
    assert parsed.reason is reason
    assert named in parsed.detail
