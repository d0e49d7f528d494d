"""Records of allowed size that are made of as many small things as fit: the work for each is bounded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from monitor.ingest.fields import STRUCTURES
from monitor.ingest.formats import parse
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadLetter, DeadReason, Prompt, RawRecord
from tests.ingest.counting import counted

SETTINGS = IngestSettings()
BYTES = SETTINGS.max_record_bytes - 200
CALLS = 2_000_000
"""Calls of Python and C functions for one record, at most: a second or so."""
CHAT = [{"role": "user", "content": "x"}]


def full_of(item: Any) -> list[Any]:
    return [item] * (BYTES // (len(orjson.dumps(item)) + 1))


def spans(of: list[Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": of}]}]}


def span(**fields: Any) -> dict[str, Any]:
    operation = {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}
    return {"attributes": [operation], **fields}


LINE = orjson.dumps(spans([{}] * 100))
BOMBS: dict[str, Callable[[], bytes]] = {
    "spans": lambda: orjson.dumps(spans(full_of({}))),
    "spans below the count of values": lambda: orjson.dumps(spans([{}] * 150_000)),
    "resources": lambda: orjson.dumps({"resourceSpans": full_of({})}),
    "resources below the count of values": lambda: orjson.dumps({"resourceSpans": [{}] * 150_000}),
    "scopes": lambda: orjson.dumps({"resourceSpans": [{"scopeSpans": full_of({})}]}),
    "log records": lambda: orjson.dumps(
        {"resourceLogs": [{"scopeLogs": [{"logRecords": full_of({})}]}]}
    ),
    "events of a span": lambda: orjson.dumps(spans([span(events=full_of({"name": "a"}))])),
    "attributes": lambda: orjson.dumps(spans([{"attributes": full_of({"key": "a", "value": {}})}])),
    "lines of spans": lambda: LINE + (b"\n" + LINE) * (BYTES // (len(LINE) + 1) - 1),
    "spans in strings": lambda: orjson.dumps([LINE.decode()] * (BYTES // (len(LINE) + 40))),
    "calls": lambda: orjson.dumps(
        {
            "messages": [
                *CHAT,
                *[{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 12}] * 9_000,
            ],
            "response": "a",
        }
    ),
    "empty arrays": lambda: orjson.dumps([[[[]] * 900_000]]),
}


def record(value: bytes) -> RawRecord:
    assert len(value) <= SETTINGS.max_record_bytes
    return RawRecord(
        topic="t",
        partition=0,
        offset=0,
        key=None,
        value=value,
        headers=(),
        timestamp=datetime(2026, 3, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_record_of_many_small_things_is_refused_before_it_is_read(
    bomb: Callable[[], bytes],
) -> None:
    made = record(bomb())
    with counted() as calls:
        found = parse(made, SETTINGS)
    (letter,) = found
    assert isinstance(letter, DeadLetter)
    assert letter.reason is DeadReason.OVERSIZE
    assert calls[0] < CALLS


def test_a_large_record_of_real_things_is_read() -> None:
    """An answer of 8,000 tokens with their five likeliest, as vLLM logs it."""
    top = [{"token": "tok", "logprob": -1.5, "bytes": [116]}] * 5
    token = {"token": "tok", "logprob": -1.5, "bytes": [116], "top_logprobs": top}
    choice = {
        "message": {"role": "assistant", "content": "yes"},
        "logprobs": {"content": [token] * 8_000},
    }
    value = orjson.dumps({"request": {"messages": CHAT}, "response": {"choices": [choice]}})
    (prompt,) = parse(record(value), SETTINGS)
    assert isinstance(prompt, Prompt)
    assert STRUCTURES > 12 * 8_000
