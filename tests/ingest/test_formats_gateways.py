"""LiteLLM's payload, and CloudEvents envelopes around every other format."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
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
)

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
ASKED = {"role": "user", "content": "Hello?"}


def payload(**fields: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "trace_id": "trace-1",
        "call_type": "acompletion",
        "status": "success",
        "model": "chat",
        "model_id": "deployment-3",
        "model_group": "chat-pool",
        "messages": [ASKED],
        "response": {"choices": [{"message": {"role": "assistant", "content": "Hi."}}]},
        "startTime": 1772366300.5,
        "endTime": 1772366399.5,
        "end_user": "u",
        "metadata": {"user_api_key_team_alias": "search", "user_api_key_hash": None},
        "request_tags": ["route:/chat", "tier=gold", "plain"],
        **fields,
    }


def test_litellm(record: Build) -> None:
    keys = ("model_group", "user_api_key_team_alias", "route", "tier", "plain")
    (parsed,) = parse(record(payload()), IngestSettings(segment_keys=keys))
    assert isinstance(parsed, Prompt)
    assert parsed.messages == (Message(role="user", content="Hello?"),)
    assert parsed.response == "Hi."
    assert (parsed.prompt_id, parsed.conversation_id) == ("chatcmpl-1", "trace-1")
    assert (parsed.model, parsed.model_revision) == ("chat", "deployment-3")
    assert parsed.recorded_at == datetime(2026, 3, 1, 11, 59, 59, 500_000, tzinfo=UTC)
    assert parsed.segment == {
        "model_group": "chat-pool",
        "user_api_key_team_alias": "search",
        "route": "/chat",
        "tier": "gold",
    }


def test_an_empty_entry_of_metadata_is_no_segment(record: Build) -> None:
    settings = IngestSettings(segment_keys=("end_user", "route", "tier", "long"))
    given = payload(end_user="", request_tags=["route:", "tier:g"], metadata={"long": "x" * 257})
    (parsed,) = parse(record(given), settings)
    assert isinstance(parsed, Prompt)
    assert parsed.segment == {"tier": "g"}


@pytest.mark.parametrize(
    ("messages", "call_type", "text", "roles"),
    [
        ("Once", "text_completion", "Once", []),
        ([{"role": "user", "content": "Once"}], "atext_completion", "Once", []),
        ({"messages": [ASKED]}, "completion", None, ["user"]),
        (ASKED, "completion", None, ["user"]),
    ],
)
def test_litellm_shapes_of_messages(
    record: Build, messages: Any, call_type: str, text: str | None, roles: list[str]
) -> None:
    (parsed,) = parse(record(payload(messages=messages, call_type=call_type)), SETTINGS)
    assert isinstance(parsed, Prompt)
    assert parsed.text == text
    assert [message.role for message in parsed.messages] == roles


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Hi.", "Hi."),
        ({"role": "assistant", "content": "Hi."}, "Hi."),
        ({"choices": [{"text": "Hi."}]}, "Hi."),
        ({"text": "Hi."}, "Hi."),
        ({"text": "redacted-by-litellm"}, None),
        ({"error": "timeout"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_litellm_shapes_of_the_response(record: Build, response: Any, expected: Any) -> None:
    (parsed,) = parse(record(payload(response=response)), SETTINGS)
    assert isinstance(parsed, Prompt)
    assert parsed.response == expected


@pytest.mark.parametrize(
    "messages",
    [None, {}, "redacted-by-litellm", [{"role": "user", "content": "redacted-by-litellm"}]],
)
def test_litellm_redacted_content_is_no_error(record: Build, messages: Any) -> None:
    (parsed,) = parse(record(payload(messages=messages)), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.CONTENT_REDACTED


def test_litellm_other_calls_are_no_prompts(record: Build) -> None:
    (parsed,) = parse(record(payload(call_type="aembedding", messages="x")), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.NOT_A_PROMPT


@pytest.mark.parametrize(
    ("fields", "reason", "named"),
    [
        ({"messages": []}, DeadReason.EMPTY, "messages"),
        ({"messages": [], "call_type": "text_completion"}, DeadReason.EMPTY, "messages"),
        ({"messages": ""}, DeadReason.EMPTY, "messages"),
        ({"messages": 3}, DeadReason.INVALID_FIELD, "messages"),
        ({"call_type": None}, DeadReason.INVALID_FIELD, "call_type"),
        ({"response": [1]}, DeadReason.INVALID_FIELD, "response"),
        ({"endTime": "later"}, DeadReason.BAD_TIMESTAMP, "endTime"),
    ],
)
def test_litellm_unreadable(
    record: Build, fields: dict[str, Any], reason: DeadReason, named: str
) -> None:
    (parsed,) = parse(record(payload(**fields)), SETTINGS)
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is reason
    assert named in parsed.detail


FORMATS = {
    "native": {"messages": [ASKED], "response": "Hi."},
    "openai": {
        "request": {"messages": [ASKED]},
        "response": {"choices": [{"message": {"content": "Hi."}}]},
    },
    "litellm": payload(id=None, endTime=None, startTime=None),
    "otel": {
        "gen_ai.input.messages": [ASKED],
        "gen_ai.output.messages": [{"role": "assistant", "content": "Hi."}],
    },
}
ATTRIBUTES = {"specversion": "1.0", "type": "prompt", "source": "/gateway", "id": "event-1"}
TIME = "2026-03-01T11:00:00Z"
STRUCTURED = {"Content-Type": b"Application/CloudEvents+JSON; charset=utf-8"}


@pytest.mark.parametrize("forced", ["auto", "cloudevents"])
@pytest.mark.parametrize("inner", FORMATS)
@pytest.mark.parametrize("mode", ["binary", "structured", "shape", "base64", "string"])
def test_cloudevents_around_every_format(record: Build, mode: str, inner: str, forced: str) -> None:
    data = FORMATS[inner]
    headers = {"content-type": b"application/json", "ce_time": TIME.encode()}
    headers |= {f"ce_{key}": value.encode() for key, value in ATTRIBUTES.items()}
    event: dict[str, Any] = ATTRIBUTES | {"time": TIME, "data": data}
    sent = {
        "binary": (data, headers),
        "structured": (event, STRUCTURED),
        "shape": (event, {}),
        "string": (event | {"data": orjson.dumps(data).decode()}, STRUCTURED),
        "base64": (
            event | {"data": None, "data_base64": base64.b64encode(orjson.dumps(data)).decode()},
            STRUCTURED,
        ),
    }[mode]
    (parsed,) = parse(record(*sent), IngestSettings(format=forced))
    assert isinstance(parsed, Prompt), parsed
    assert parsed.source_format == inner
    assert parsed.messages == (Message(role="user", content="Hello?"),)
    assert parsed.response == "Hi."
    assert parsed.prompt_id == "event-1"
    assert parsed.recorded_at == datetime(2026, 3, 1, 11, tzinfo=UTC)


def test_the_datas_own_id_and_time_win(record: Build) -> None:
    data = {"prompt": "x", "id": "own", "timestamp": "2026-03-01T10:00:00Z"}
    (parsed,) = parse(record(ATTRIBUTES | {"time": TIME, "data": data}), SETTINGS)
    assert isinstance(parsed, Prompt)
    assert parsed.prompt_id == "own"
    assert parsed.recorded_at == datetime(2026, 3, 1, 10, tzinfo=UTC)


def test_an_events_id_names_no_one_of_several(record: Build) -> None:
    inside = {
        "attributes": [
            {
                "key": "gen_ai.input.messages",
                "value": {"stringValue": '[{"role":"user","content":"x"}]'},
            }
        ]
    }
    data = {"resourceLogs": [{"scopeLogs": [{"logRecords": [inside, inside]}]}]}
    parsed = parse(record(ATTRIBUTES | {"data": data}), SETTINGS)
    assert [one.prompt_id for one in parsed if isinstance(one, Prompt)] == [
        "prompts/2/40/0",
        "prompts/2/40/1",
    ]


def test_cloudevents_tombstone(record: Build) -> None:
    (parsed,) = parse(record(None, {"ce_specversion": b"1.0"}), SETTINGS)
    assert isinstance(parsed, Skip)
    assert parsed.reason is SkipReason.TOMBSTONE


@pytest.mark.parametrize(
    ("document", "headers", "reason", "named"),
    [
        (ATTRIBUTES, {}, DeadReason.EMPTY, "data"),
        (
            ATTRIBUTES | {"specversion": "0.3", "data": {}},
            {},
            DeadReason.INVALID_FIELD,
            "specversion",
        ),
        (ATTRIBUTES | {"data": 3}, {}, DeadReason.UNKNOWN_FORMAT, "a number"),
        (ATTRIBUTES | {"data": "{"}, {}, DeadReason.NOT_JSON, "data"),
        (ATTRIBUTES | {"data_base64": "*"}, {}, DeadReason.INVALID_FIELD, "data_base64"),
        (ATTRIBUTES | {"data": ATTRIBUTES | {"data": {}}}, {}, DeadReason.UNKNOWN_FORMAT, "record"),
        (ATTRIBUTES | {"data": {"prompt": "x"}, "time": "0"}, {}, DeadReason.BAD_TIMESTAMP, "time"),
        ([], STRUCTURED, DeadReason.INVALID_FIELD, "record: expected an object"),
        ({"prompt": "x"}, {"ce_specversion": b"\xff"}, DeadReason.NOT_UTF8, "ce_specversion"),
        ({"prompt": "x"}, {"ce_specversion": b"2"}, DeadReason.INVALID_FIELD, "ce_specversion"),
    ],
)
def test_cloudevents_unreadable(
    record: Build, document: Any, headers: dict[str, bytes], reason: DeadReason, named: str
) -> None:
    (parsed,) = parse(record(document, headers), SETTINGS)
    assert isinstance(parsed, DeadLetter), parsed
    assert parsed.reason is reason
    assert named in parsed.detail


@pytest.mark.parametrize(
    ("document", "headers"),
    [
        (ATTRIBUTES | {"data": {"prompt": "x"}, "id": "a\x00"}, {}),
        ({"prompt": "x"}, {"ce_specversion": b"1.0", "ce_id": b"a\x00"}),
    ],
)
def test_a_worthless_event_id_does_not_lose_the_prompt(
    record: Build, document: Any, headers: dict[str, bytes]
) -> None:
    (parsed,) = parse(record(document, headers), SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    assert parsed.prompt_id.startswith("sha256:")
    assert len(parsed.left_out) == 1


def test_a_batch_of_events_is_as_many_prompts(record: Build) -> None:
    events = [ATTRIBUTES | {"id": f"e{i}", "data": {"prompt": f"x{i}"}} for i in range(3)]
    batch = {"content-type": b"Application/CloudEvents-Batch+json"}
    parsed = parse(record(events, batch), SETTINGS)
    assert [(one.prompt_id, one.text) for one in parsed if isinstance(one, Prompt)] == [
        ("e0", "x0"),
        ("e1", "x1"),
        ("e2", "x2"),
    ]
    assert [one.key.index for one in parsed] == [0, 1, 2]
