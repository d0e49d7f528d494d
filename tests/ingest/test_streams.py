"""An answer logged as it was streamed is read as the whole answer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, DeadReason, Prompt, RawRecord

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
CHAT = {"messages": [{"role": "user", "content": "Which pan?"}]}
RAW = {"prompt": "The best pan is"}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3}
Event = dict[str, Any]


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> Event:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c-1", "model": "m", "object": "chat.completion.chunk", "choices": [choice]}


def calling(place: int, **function: Any) -> Event:
    named = {"id": f"call-{place}"} if "name" in function else {}
    return chunk(tool_calls=[{"index": place, **named, "function": function}])


def block(index: int, kind: str, **of: Any) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **of}}


def delta(index: int, **of: Any) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": of}


def completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> Event:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c-1", "model": "m", "choices": [choice], **more}


CALLS = [
    {"id": "call-0", "function": {"name": "get_pan", "arguments": '{"size": 20}'}},
    {"id": "call-1", "function": {"name": "heat", "arguments": "{}"}},
]
ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "id": "c-1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "usage": {"input_tokens": 12, "output_tokens": 1},
    },
}
ANTHROPIC_END: list[Event] = [
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use"},
        "usage": {"output_tokens": 3},
    },
    {"type": "message_stop"},
]
RESPONSE = {
    "id": "c-1",
    "model": "m",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "A clean one."}]}],
}

STREAMS: dict[str, tuple[dict[str, Any], list[Event], dict[str, Any]]] = {
    "chat": (
        CHAT,
        [
            chunk(role="assistant", content=""),
            chunk(content="A clean"),
            chunk(content=" one."),
            chunk(finish="stop"),
            {"choices": [], "usage": USAGE},
        ],
        completion({"content": "A clean one."}, usage=USAGE),
    ),
    "chat with reasoning": (
        CHAT,
        [
            chunk(reasoning_content="Pans"),
            chunk(reasoning_content=" …"),
            chunk(content="A clean one."),
            chunk(finish="length"),
        ],
        completion({"content": "A clean one.", "reasoning_content": "Pans …"}, "length"),
    ),
    "chat with two choices in turns": (
        CHAT,
        [
            chunk(1, content="A dirty"),
            chunk(0, content="A clean"),
            chunk(1, content=" two.", finish="length"),
            chunk(0, content=" one.", finish="stop"),
        ],
        completion({"content": "A clean one."}),
    ),
    "chat with calls bit by bit": (
        CHAT,
        [
            calling(0, name="get_pan", arguments=""),
            calling(1, name="heat", arguments="{"),
            calling(0, arguments='{"size"'),
            calling(1, arguments="}"),
            calling(0, arguments=": 20}"),
            chunk(finish="tool_calls"),
        ],
        completion({"content": None, "tool_calls": CALLS}, "tool_calls"),
    ),
    "legacy completion": (
        RAW,
        [
            {"id": "c-1", "model": "m", "choices": [{"index": 0, "text": " a clean"}]},
            {"id": "c-1", "model": "m", "choices": [{"index": 1, "text": " a dirty"}]},
            {"choices": [{"index": 0, "text": " one.", "finish_reason": "stop"}], "usage": USAGE},
        ],
        {
            "id": "c-1",
            "model": "m",
            "choices": [{"index": 0, "text": " a clean one.", "finish_reason": "stop"}],
            "usage": USAGE,
        },
    ),
    "Anthropic": (
        {"system": "You talk of kitchens only.", **CHAT},
        [
            ANTHROPIC_START,
            block(0, "thinking", thinking=""),
            delta(0, type="thinking_delta", thinking="Pans"),
            delta(0, type="thinking_delta", thinking=" …"),
            delta(0, type="signature_delta", signature="x"),
            block(1, "text", text="A"),
            delta(1, type="text_delta", text=" clean"),
            {"type": "ping"},
            delta(1, type="text_delta", text=" one."),
            block(2, "tool_use", id="call-0", name="get_pan", input={}),
            delta(2, type="input_json_delta", partial_json='{"size"'),
            delta(2, type="input_json_delta", partial_json=": 20}"),
            *ANTHROPIC_END,
        ],
        {
            "id": "c-1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "stop_reason": "tool_use",
            "content": [
                {"type": "thinking", "thinking": "Pans …"},
                {"type": "text", "text": "A clean one."},
                {"type": "tool_use", "id": "call-0", "name": "get_pan", "input": {"size": 20}},
            ],
            "usage": {"input_tokens": 12, "output_tokens": 3},
        },
    ),
    "Responses": (
        {"input": "Which pan?"},
        [
            {"type": "response.created", "response": {"id": "c-1", "output": []}},
            {"type": "response.output_text.delta", "delta": "A clean"},
            {"type": "response.completed", "response": RESPONSE},
        ],
        RESPONSE,
    ),
}


def sent(events: list[Event], *, named: bool = False, end: str = "") -> str:
    lines = [
        (f"event: {event.get('type', 'chunk')}\n" if named else "")
        + f"data: {orjson.dumps(event).decode()}\n\n"
        for event in events
    ]
    return "".join(lines) + end


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_is_read_as_its_whole_answer(record: Build, case: str, named: bool) -> None:
    request, events, whole = STREAMS[case]
    response = sent(events, named=named, end="data: [DONE]\n\n" if "choices" in whole else "")
    (streamed,) = parse(record({"request": request, "response": response}), SETTINGS)
    (expected,) = parse(record({"request": request, "response": whole}), SETTINGS)
    assert isinstance(expected, Prompt), expected
    assert expected.answered
    assert streamed == expected


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_cut_off_is_never_an_answer(record: Build, case: str) -> None:
    """Whatever is missing at its end: what is not finished is refused, not read by half."""
    request, events, _ = STREAMS[case]
    ends = [at for at, event in enumerate(events) if ends_the_answer(event)]
    for kept in range(1, ends[-1] + 1):
        response = sent(events[:kept])
        (parsed,) = parse(record({"request": request, "response": response}), SETTINGS)
        assert isinstance(parsed, DeadLetter), (kept, parsed)
        assert parsed.reason in (DeadReason.TRUNCATED, DeadReason.INVALID_FIELD)
        assert parsed.detail.startswith("response: ")


def ends_the_answer(event: Event) -> bool:
    first = any(
        choice.get("finish_reason") and choice["index"] == 0 for choice in event.get("choices", ())
    )
    return first or event.get("type") in ("message_stop", "response.completed")
