"""Kinds of records that a dialect tells apart: by a key's absence, an id's half, a part's type."""

from __future__ import annotations

from collections.abc import Callable
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
    ToolCall,
)

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
ASKED = {"role": "user", "content": "Which pan?"}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "A clean one."}}]}


def read(record: Build, document: Any, settings: IngestSettings = SETTINGS) -> Prompt:
    (parsed,) = parse(record(document), settings)
    assert isinstance(parsed, Prompt), parsed
    return parsed


VECTOR = {"object": "embedding", "index": 0, "embedding": [0.1]}
OTHER_CALLS: dict[str, tuple[dict[str, Any], Any]] = {
    "embeddings": ({"input": "Which pan?"}, {"object": "list", "data": [VECTOR]}),
    "embeddings of no object": ({"input": "Which pan?"}, {"data": [VECTOR]}),
    "no embeddings": ({"input": "Which pan?"}, {"object": "list", "data": []}),
    "scores": ({"input": "Which pan?"}, {"object": "list", "data": [{"score": 0.5}]}),
    "an image": ({"prompt": "A pan"}, {"created": 1, "data": [{"url": "https://x"}]}),
    "an image in itself": ({"prompt": "A pan"}, {"created": 1, "data": [{"b64_json": "eA=="}]}),
    "moderation": ({"input": "Which pan?"}, {"results": [{"flagged": False}]}),
    "ranks": ({"prompt": "pans"}, {"results": [{"index": 0, "relevance_score": 0.5}]}),
    "several texts": ({"input": ["Which pan?", "Which pot?"]}, None),
    "tokens": ({"input": [1, 2, 3]}, None),
    "several lists of tokens": ({"input": [[1, 2], [3]]}, None),
    "an encoding": ({"input": "Which pan?", "encoding_format": "float"}, None),
    "dimensions": ({"input": "Which pan?", "dimensions": 256}, None),
    "speech": ({"input": "Which pan?", "voice": "alloy"}, None),
    "a model of embeddings": ({"input": "Which pan?", "model": "text-Embedding-3"}, None),
    "a model of moderation": ({"input": "Which pan?", "model": "omni-moderation"}, None),
    "a model of ranks": ({"input": "Which pan?", "model": "Rerank-v3"}, None),
}


@pytest.mark.parametrize("case", OTHER_CALLS)
def test_other_calls_of_a_mixed_log_are_skipped(record: Build, case: str) -> None:
    request, response = OTHER_CALLS[case]
    (parsed,) = parse(record({"request": request, "response": response}), SETTINGS)
    assert isinstance(parsed, Skip), parsed
    assert parsed.reason is SkipReason.NOT_A_PROMPT


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        ({"messages": [ASKED], "input": ["a"], "model": "embed"}, ANSWER),
        ({"messages": [ASKED], "dimensions": 1}, ANSWER),
        ({"messages": [ASKED]}, {**ANSWER, "object": "list", "data": [VECTOR]}),
        ({"messages": [ASKED]}, {**ANSWER, "results": []}),
        ({"messages": [ASKED]}, {**ANSWER, "results": [{"title": "pans"}]}),
        ({"input": [ASKED], "model": "chat"}, {"output": [{"content": "A clean one."}]}),
    ],
)
def test_a_chat_that_resembles_another_call_is_read(
    record: Build, request_: dict[str, Any], response: dict[str, Any]
) -> None:
    parsed = read(record, {"request": request_, "response": response})
    assert parsed.messages == (Message(role="user", content="Which pan?"),)
    assert parsed.response == "A clean one."


@pytest.mark.parametrize(
    "more",
    [
        {"input": "x"},
        {"input": ["x"]},
        {"input": ["x"], "output": None},
        {"inputs": "x"},
        {"contents": [{"parts": [{"text": "x"}]}]},
        {"data": [VECTOR]},
        {"voice": "x"},
        {"text": "x"},
        {"index": 3},
    ],
)
@pytest.mark.parametrize("asked", [{"messages": [ASKED]}, {"prompt": "Which pan?"}])
def test_unknown_keys_of_the_native_format_change_nothing(
    record: Build, asked: dict[str, Any], more: dict[str, Any]
) -> None:
    native = IngestSettings(format="native")
    own = {**asked, "response": "A clean one.", "id": "r-1"}
    assert read(record, {**own, **more}, native) == read(record, own, native)


INPUT = {"gen_ai.input.messages": [ASKED], "gen_ai.operation.name": "chat"}
OWN_PLACE = "prompts/2/40/0"


@pytest.mark.parametrize(
    ("ids", "prompt_id"),
    [
        ({"traceId": "0af7", "spanId": "b7ad"}, "0af7/b7ad"),
        ({"trace_id": "0af7", "span_id": "b7ad"}, "0af7/b7ad"),
        ({"context": {"trace_id": "0af7", "span_id": "b7ad"}}, "0af7/b7ad"),
        ({"traceId": "0af7"}, OWN_PLACE),
        ({"spanId": "b7ad"}, OWN_PLACE),
        ({"traceId": "0af7", "spanId": ""}, OWN_PLACE),
        ({"traceId": "", "spanId": "b7ad"}, OWN_PLACE),
        ({"traceId": "0af7", "spanId": 7}, OWN_PLACE),
        ({"traceId": 7, "spanId": "b7ad"}, OWN_PLACE),
        ({"traceId": None, "spanId": None}, OWN_PLACE),
        ({}, OWN_PLACE),
    ],
)
def test_a_span_has_a_name_where_both_halves_of_it_are_given(
    record: Build, ids: dict[str, Any], prompt_id: str
) -> None:
    assert read(record, {"name": "chat", "attributes": INPUT, **ids}).prompt_id == prompt_id


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("said", ["by its name", "by itself"])
def test_a_message_event_says_whose_it_is_by_its_name(record: Build, role: str, said: str) -> None:
    own = {"role": role} if said == "by itself" else {}
    told = [
        ("gen_ai.user.message", {"content": "Which pan?"}),
        (f"gen_ai.{role}.message", {"content": "Blue.", "id": "call-0", **own}),
        ("gen_ai.user.message", {"content": "Why?"}),
        ("gen_ai.choice", {"index": 0, "message": {"content": "A clean one."}}),
    ]
    events = [{"name": name, "attributes": given} for name, given in told]
    span = {"name": "chat", "attributes": {"gen_ai.operation.name": "chat"}, "events": events}
    parsed = read(record, span)
    expected = Message(
        role=role,  # type: ignore[arg-type]
        content="Blue.",
        tool_call_id="call-0" if role == "tool" else None,
    )
    assert parsed.messages == (
        Message(role="user", content="Which pan?"),
        expected,
        Message(role="user", content="Why?"),
    )
    assert parsed.response == "A clean one."


INDEXED = {
    "openinference.span.kind": "LLM",
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "Which pan?",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "A clean one.",
}
REQUEST = {"messages": [{"role": "system", "content": "You talk of kitchens only."}, ASKED]}


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        ({"messages": [{"role": "nobody", "content": "x"}]}, ANSWER),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ANSWER),
        ({"messages": [ASKED], "chat_template": "{{ x }}"}, ANSWER),
        ({"prompt": [1, -2]}, ANSWER),
        ({"input": ["x"], "model": "embed"}, {"output": []}),
        ({"messages": [ASKED]}, {"choices": [3]}),
        (REQUEST, {"no": "choices"}),
        ({"question": "x"}, ANSWER),
        ([], []),
    ],
)
def test_a_body_that_is_not_read_leaves_the_spans_own_messages(
    record: Build, request_: Any, response: Any
) -> None:
    bodies = {"input.value": request_, "output.value": response}
    given = INDEXED | {key: orjson.dumps(body).decode() for key, body in bodies.items()}
    parsed = read(record, {"name": "ChatCompletion", "attributes": given})
    assert parsed.source_format == "openinference"
    assert parsed.messages == (Message(role="user", content="Which pan?"),)
    assert parsed.response == "A clean one."


def test_a_body_that_is_read_wins(record: Build) -> None:
    bodies = {
        "input.value": orjson.dumps(REQUEST).decode(),
        "output.value": orjson.dumps(ANSWER).decode(),
    }
    parsed = read(record, {"name": "ChatCompletion", "attributes": INDEXED | bodies})
    assert [message.role for message in parsed.messages] == ["system", "user"]


CALL = {"type": "tool_use", "id": "1", "name": "get_pan", "input": {"size": 20}}
PARTS: dict[str, tuple[list[Any], str, bool]] = {
    "text": ([{"type": "text", "text": "A manual."}], "A manual.", False),
    "bare text": (["A manual."], "A manual.", False),
    "a document of text": (
        [{"type": "document", "source": {"type": "text", "data": "A manual."}}],
        "A manual.",
        False,
    ),
    "a document of parts": (
        [
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "A manual."}]},
            }
        ],
        "A manual.",
        False,
    ),
    "a document of bare content": (
        [{"type": "document", "source": {"type": "content", "content": "A manual."}}],
        "A manual.",
        False,
    ),
    "a file": (
        [{"type": "document", "source": {"type": "base64", "data": "eA=="}}],
        "",
        True,
    ),
    "a file elsewhere": ([{"type": "document", "source": {"type": "url", "url": "x"}}], "", True),
    "a document without a source": ([{"type": "document"}], "", True),
    "an image": ([{"type": "image_url", "image_url": {"url": "data:…"}}], "", True),
}


@pytest.mark.parametrize("case", PARTS)
def test_what_a_part_says(record: Build, case: str) -> None:
    parts, text, media = PARTS[case]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "Sum it up."}]}
    parsed = read(record, {"messages": [asked], "response": "Pans."})
    assert parsed.messages[0].content == "\n".join(filter(None, [text, "Sum it up."]))
    assert parsed.media_left_out is media


def test_a_document_whose_text_is_none_is_refused(record: Build) -> None:
    source = {"type": "text", "data": {"secret": 1}}
    asked = {"role": "user", "content": [{"type": "document", "source": source}]}
    (parsed,) = parse(record({"messages": [asked], "response": "Pans."}), SETTINGS)
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is DeadReason.INVALID_FIELD
    assert "messages[0].content[0].source.data" in parsed.detail


def test_a_call_of_a_part_is_the_answers(record: Build) -> None:
    answer = {"type": "message", "role": "assistant", "content": [CALL]}
    parsed = read(record, {"messages": [ASKED], "response": answer})
    call = ToolCall(name="get_pan", arguments='{"size": 20}', call_id="1")
    assert parsed.tool_calls == (call,)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("around", ["{}", "[{}]", '{{"prompt": {}}}', '{{"a": [1, {}, 2]}}'])
def test_what_is_no_number_in_json_is_named_wherever_it_stands(
    record: Build, number: str, around: str
) -> None:
    (parsed,) = parse(record(around.format(number).encode()), SETTINGS)
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is DeadReason.NOT_JSON
    assert "NaN or Infinity" in parsed.detail
