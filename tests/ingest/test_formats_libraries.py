"""Shapes that the real libraries write, found by the round trips in tests/libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import Prompt, RawRecord

SETTINGS = IngestSettings()
Build = Callable[..., RawRecord]
EGGS = {"role": "user", "content": "How do I boil an egg?"}


def read(record: RawRecord) -> Prompt:
    (parsed,) = parse(record, SETTINGS)
    assert isinstance(parsed, Prompt), parsed
    return parsed


def responses_events(ending: str, **ended: Any) -> list[dict[str, Any]]:
    text = {"type": "output_text", "text": "Ten minutes."}
    said = [{"type": "message", "role": "assistant", "content": [text]}]
    usage = {"input_tokens": 14, "output_tokens": 6}
    last = {"object": "response", "model": "m", "output": said, "usage": usage, **ended}
    return [
        {"type": "response.created", "response": {"object": "response", "output": []}},
        {"type": "response.output_text.delta", "delta": "Ten minutes."},
        {"type": f"response.{ending}", "response": last},
    ]


CHUNKS = [
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": "Ten "}}]},
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": "minutes."}}]},
    {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "c1", "choices": [], "usage": {"prompt_tokens": 14, "completion_tokens": 6}},
]
BLOCKS = [
    {"type": "message_start", "message": {"id": "c1", "model": "m", "usage": {"input_tokens": 14}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"text": "Ten minutes."}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 6}},
    {"type": "message_stop"},
]


@pytest.mark.parametrize("written", ["text", "array"])
@pytest.mark.parametrize(
    ("request_", "events"),
    [
        ({"messages": [EGGS]}, CHUNKS),
        ({"system": "Be brief.", "messages": [EGGS]}, BLOCKS),
        ({"input": "How do I boil an egg?"}, responses_events("completed")),
    ],
    ids=["chunks", "blocks", "items"],
)
def test_a_stream_of_events_is_the_answer_that_it_amounts_to(
    record: Build, request_: dict[str, Any], events: list[dict[str, Any]], written: str
) -> None:
    response: Any = events
    if written == "text":
        response = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    prompt = read(record({"request": request_, "response": response}))
    assert (prompt.response, prompt.model) == ("Ten minutes.", "m")
    assert prompt.served is not None
    assert (prompt.served.prompt_tokens, prompt.served.completion_tokens) == (14, 6)


@pytest.mark.parametrize(
    ("ending", "ended", "finish"),
    [
        ("completed", {"status": "completed"}, "completed"),
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
    ],
)
def test_a_streamed_response_ends_in_several_ways(
    record: Build, ending: str, ended: dict[str, Any], finish: str
) -> None:
    events = responses_events(ending, **ended)
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    prompt = read(record({"request": {"input": "Eggs?"}, "response": text}))
    assert prompt.response == "Ten minutes."
    assert prompt.sampling is not None
    assert prompt.sampling.finish_reason == finish


def test_a_streamed_response_that_failed_is_no_answer(record: Build) -> None:
    events = responses_events("failed", output=[], error={"message": "out of eggs"})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert not read(record({"request": {"input": "Eggs?"}, "response": text})).answered


@pytest.mark.parametrize(
    "events",
    [
        [CHUNKS[0], {"error": {"message": "out of eggs"}}],
        [*BLOCKS[:3], {"type": "error", "error": {"message": "out of eggs"}}],
        [responses_events("completed")[0], {"type": "error", "message": "out of eggs"}],
    ],
    ids=["chunks", "blocks", "items"],
)
def test_a_stream_that_broke_off_in_an_error_is_no_answer(
    record: Build, events: list[dict[str, Any]]
) -> None:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert not read(record({"request": {"messages": [EGGS]}, "response": text})).answered
