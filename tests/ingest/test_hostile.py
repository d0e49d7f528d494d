"""Whatever arrives: a prompt, a dead letter with a reason, or a skip. Never an exception."""

from __future__ import annotations

import base64
import copy
import gzip
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.ingest.dialects.telling import DIALECTS
from monitor.ingest.formats import native_schema, parse
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    DeadLetter,
    DeadReason,
    Message,
    Prompt,
    RawRecord,
    SkipReason,
)
from tests.ingest.hostile import (
    ANSWER,
    CHAT,
    OTLP,
    PARTS,
    SECRET,
    VALID,
    checked,
    key_value,
    paths,
)
from tests.scenes.examples import examples

APPENDED = datetime(2026, 3, 1, 12, tzinfo=UTC)
Build = Callable[..., RawRecord]

HOSTILE_TEXT = st.sampled_from(
    [
        *(
            "",
            " ",
            "\x00",
            "a\x00b",
            "\ufeff",
            "\u202e",
            "\n",
            "🥚" * 300,
            "x" * 10_000,
            "0",
            "1.0",
        ),
        *("{{ 7*7 }}", "{% for a in b %}", "<|im_start|>system", "</s>", "[INST]", "assistant"),
        *("[", "{", '{"a":', "[" * 500, "null", "-1", "1e30", "0000-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59-23:59", "redacted-by-litellm", "tool", "model", "chat"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | HOSTILE_TEXT
    | st.text(max_size=20).map(lambda text: SECRET + text)
)
KNOWN_KEYS = st.sampled_from(
    [
        *("messages", "prompt", "request", "response", "role", "content", "type", "text", "parts"),
        *("choices", "message", "tool_calls", "function", "name", "arguments", "attributes"),
        *("key", "value", "stringValue", "arrayValue", "kvlistValue", "values", "intValue"),
        *("resourceSpans", "scopeSpans", "spans", "resourceLogs", "scopeLogs", "logRecords"),
        *("gen_ai.input.messages", "gen_ai.operation.name", "events", "body", "eventName"),
        *("specversion", "data", "data_base64", "source", "time", "timestamp", "call_type", "id"),
        *("segment", "sampling_probability", "metadata", "request_tags", "error", "resource"),
        *("input", "output", "inputs", "outputs", "contents", "candidates", "system", "tools"),
        *("instructions", "usage", "index", "delta", "thinking", "tool_use", "tool_result"),
        *("call_id", "reasoning", "tool_call_id", "input_schema", "body", "url", "schema"),
        *("payload", "log", "captureData", "ai", "proxy", "llm_request", "full_request"),
        *("run_type", "generations", "kwargs", "custom_id", "conversations", "custom"),
        *("gen_ai.prompt.0.content", "gen_ai.prompt.99999999.role", "gen_ai.event.content"),
        *("openinference.span.kind", "llm.input_messages.0.message.role", "ai.operationId"),
        *("mlflow.spanType", "databricks_request_id", "schemaType", "continue_final_message"),
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KNOWN_KEYS | st.text(max_size=5).map(SECRET.__add__), inner, max_size=5)
    ),
    max_leaves=20,
)
HEADERS = st.dictionaries(
    st.sampled_from(["ce_specversion", "ce_id", "ce_time", "content-type", "Content-Type", SECRET]),
    st.binary(max_size=8)
    | st.sampled_from([b"1.0", b"application/cloudevents+json", b"application/json", b"\xff"]),
    max_size=3,
)
THOROUGH = settings(
    max_examples=examples(250),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid record of some format in which one to three places hold something else, or nothing."""
    document = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in paths(document) if p] or [("messages",)]))
        parent: Any = document
        for step in path[:-1]:
            parent = parent[step]
        if draw(st.booleans()) and draw(st.booleans()) and isinstance(parent, dict):
            parent.pop(path[-1], None)
        else:
            parent[path[-1]] = draw(JSON)
    return document


@THOROUGH
@given(value=st.binary(max_size=200), headers=HEADERS)
def test_any_bytes(record: Build, value: bytes, headers: dict[str, bytes]) -> None:
    checked(record(value, headers))


@THOROUGH
@given(value=JSON, headers=HEADERS)
def test_any_json(record: Build, value: Any, headers: dict[str, bytes]) -> None:
    checked(record(value, headers))


@THOROUGH
@given(value=mutated(), headers=st.just({}) | HEADERS)
def test_any_mutation(record: Build, value: Any, headers: dict[str, bytes]) -> None:
    checked(record(value, headers))


@THOROUGH
@given(
    value=mutated(),
    forced=st.sampled_from([*DIALECTS, "cloudevents"]),
)
def test_any_mutation_under_a_forced_format(record: Build, value: Any, forced: Any) -> None:
    checked(record(value), IngestSettings(format=forced, segment_keys=("route",)))


@THOROUGH
@given(
    document=st.sampled_from(VALID),
    at=st.floats(0, 1),
    how=st.integers(0, 3),
    byte=st.binary(min_size=1, max_size=1),
)
def test_any_damage_to_the_bytes(
    record: Build, document: dict[str, Any], at: float, how: int, byte: bytes
) -> None:
    whole = orjson.dumps(document)
    place = int(at * (len(whole) - 1))
    damaged = [
        whole[:place],
        whole[:place] + byte + whole[place + 1 :],
        whole[:place] + byte + whole[place:],
        whole[place:],
    ][how]
    parsed = checked(record(damaged))
    if how == 0:
        assert isinstance(parsed[0], DeadLetter)


@pytest.mark.parametrize("document", VALID)
def test_the_undamaged_records_are_prompts(record: Build, document: dict[str, Any]) -> None:
    """Without this the mutations could all fail for a reason of the test's own."""
    assert {type(value) for value in checked(record(document))} == {Prompt}


SCHEMA = jsonschema.Draft202012Validator(native_schema())
NEAR_NATIVE = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "role": st.sampled_from(["user", "assistant", "model", "tool", "root", 1]),
                    "content": SCALARS
                    | st.lists(
                        st.fixed_dictionaries(
                            {},
                            optional={
                                "type": st.sampled_from(["text", "refusal", "image_url", 3]),
                                "text": SCALARS,
                                "refusal": SCALARS,
                            },
                        )
                        | SCALARS,
                        max_size=2,
                    ),
                    "tool_calls": st.none()
                    | st.lists(
                        st.fixed_dictionaries(
                            {},
                            optional={
                                "function": st.fixed_dictionaries(
                                    {}, optional={"name": SCALARS, "arguments": JSON}
                                )
                            },
                        ),
                        max_size=2,
                    ),
                    "function_call": st.none() | st.just({"name": "f"}) | SCALARS,
                    "refusal": SCALARS,
                },
            ),
            max_size=3,
        )
        | SCALARS,
        "prompt": SCALARS,
        "response": SCALARS | st.just(ANSWER) | st.just({"role": "user"}),
        **dict.fromkeys(["id", "conversation_id", "model", "model_revision"], SCALARS),
        "timestamp": st.just(1772366400) | st.just("2026-03-01") | st.none() | JSON,
        "segment": st.none() | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2) | SCALARS,
        "sampling_probability": st.sampled_from([None, 1, 0.5, 0, 2, True, "1"]),
    },
)


def _only_some(document: dict[str, Any], keep: list[str]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key in keep}


@THOROUGH
@given(
    document=st.builds(
        _only_some,
        NEAR_NATIVE,
        st.lists(st.sampled_from(["id", "model", "response", "segment", "timestamp"])).map(
            lambda keys: [*keys, "messages", "prompt"]
        ),
    )
    | NEAR_NATIVE
)
def test_the_published_schema_and_the_reader_agree(record: Build, document: dict[str, Any]) -> None:
    """Emptiness and the plausibility of times are beyond a schema; everything else is not."""
    (parsed,) = checked(record(document), IngestSettings(format="native"))
    if SCHEMA.is_valid(document):
        allowed = (DeadReason.EMPTY, DeadReason.BAD_TIMESTAMP, SkipReason.ONLY_MEDIA)
        assert isinstance(parsed, Prompt) or parsed.reason in allowed
    else:
        assert isinstance(parsed, DeadLetter)


def nested(depth: int) -> Any:
    value: Any = SECRET
    for level in range(depth):
        value = [value] if level % 2 else {SECRET: value}
    return value


def any_value(depth: int) -> Any:
    value: Any = {"stringValue": SECRET}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


def spans(*attributes: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": list(attributes)}]}]}]}


def zipped(times: int) -> bytes:
    value = b'{"prompt": "x"}'
    for _ in range(times):
        value = gzip.compress(value)
    return value


def quoted(times: int) -> bytes:
    value = b'{"prompt": "x"}'
    for _ in range(times):
        value = orjson.dumps(value.decode())
    return value


def connected(depth: int) -> Any:
    value: Any = {"prompt": "x"}
    for _ in range(depth):
        value = {"schema": None, "payload": value}
    return value


CHATTING = key_value("gen_ai.operation.name", {"stringValue": "chat"})
BY_HAND: dict[str, tuple[Any, DeadReason | SkipReason | type[Prompt]]] = {
    "50 MB string": (b'{"prompt": "' + b"x" * 50_000_000 + b'"}', DeadReason.OVERSIZE),
    "50 MB of brackets": (b"[" * 50_000_000, DeadReason.OVERSIZE),
    "4 MB of brackets": (b"[" * 4_000_000, DeadReason.TOO_DEEP),
    "4 MB of objects": (b'{"a":' * 800_000, DeadReason.TOO_DEEP),
    "4 MB of empty arrays": (b"[" + b"[]," * 1_300_000 + b"[]]", DeadReason.OVERSIZE),
    "4 MB of whitespace": (b" " * 4_000_000, DeadReason.EMPTY),
    "4 MB string": (b'{"prompt": "' + b"x" * 4_000_000 + b'"}', Prompt),
    "4 MB of newlines as prompt": (b'{"prompt": "' + b"\\n" * 2_000_000 + b'"}', DeadReason.EMPTY),
    "nesting in a field nobody reads": ({"prompt": "x", "y": nested(200)}, DeadReason.TOO_DEEP),
    "nesting in content": (
        {"messages": [{"role": "user", "content": nested(30)}]},
        DeadReason.INVALID_FIELD,
    ),
    "nesting in arguments kept as a string": (
        {
            "messages": [
                *CHAT,
                {"role": "assistant", "function_call": {"name": "f", "arguments": "[" * 9999}},
            ]
        },
        Prompt,
    ),
    "nesting in OTLP values": (
        spans(CHATTING, key_value("gen_ai.input.messages", any_value(60))),
        DeadReason.TOO_DEEP,
    ),
    "nesting in an OTLP JSON string": (
        spans(CHATTING, key_value("gen_ai.input.messages", {"stringValue": "[" * 100_000})),
        DeadReason.TOO_DEEP,
    ),
    "lone high surrogate": (b'{"prompt": "a\\ud83d"}', DeadReason.NOT_JSON),
    "lone low surrogate": (b'{"prompt": "\\udc00a"}', DeadReason.NOT_JSON),
    "reversed surrogates": (b'{"prompt": "\\ude00\\ud83d"}', DeadReason.NOT_JSON),
    "surrogate pair": (b'{"prompt": "\\ud83d\\ude00"}', Prompt),
    "surrogate in raw bytes": (b'{"prompt": "\xed\xa0\xbd"}', DeadReason.NOT_UTF8),
    "lone surrogate in an OTLP JSON string": (
        spans(CHATTING, key_value("gen_ai.input.messages", {"stringValue": '["\\ud800"]'})),
        DeadReason.INVALID_FIELD,
    ),
    "NUL in content": ({"prompt": "a\x00b"}, Prompt),
    "NUL in an id": ({"prompt": "x", "id": "\x00"}, DeadReason.INVALID_FIELD),
    "NUL in a model": ({"prompt": "x", "model": "a\x00"}, DeadReason.INVALID_FIELD),
    "NUL in a segment key": ({"prompt": "x", "segment": {"a\x00": "b"}}, DeadReason.INVALID_FIELD),
    "NUL in a segment": ({"prompt": "x", "segment": {"a": "b\x00"}}, DeadReason.INVALID_FIELD),
    "NUL bytes": (b"\x00" * 100, DeadReason.NOT_JSON),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), DeadReason.NOT_UTF8),
    "UTF-16 without a mark": ('{"prompt": "x"}'.encode("utf-16-le"), DeadReason.NOT_JSON),
    "UTF-32": ('{"prompt": "x"}'.encode("utf-32"), DeadReason.NOT_UTF8),
    "Latin-1": ('{"prompt": "é"}'.encode("latin-1"), DeadReason.NOT_UTF8),
    "overlong UTF-8": (b'{"prompt": "\xc0\xaf"}', DeadReason.NOT_UTF8),
    "gzip without its end": (b"\x1f\x8b\x08\x00abc", DeadReason.TRUNCATED),
    "gzip of nothing known": (b"\x1f\x8bxxxxxxxxxxxxxxxx", DeadReason.NOT_UTF8),
    "Avro with a registry header": (
        b"\x00\x00\x00\x00\x01\x02x",
        DeadReason.DIALECT_NOT_READ,
    ),
    "truncated": (b'{"messages": [{"role": "us', DeadReason.NOT_JSON),
    "two documents": (b'{"prompt": "x"}{"prompt": "y"}', DeadReason.NOT_JSON),
    "trailing comma": (b'{"prompt": "x",}', DeadReason.NOT_JSON),
    "single quotes": (b"{'prompt': 'x'}", DeadReason.NOT_JSON),
    "NaN": (b'{"prompt": "x", "sampling_probability": NaN}', DeadReason.NOT_JSON),
    "infinite number": (b'{"prompt": "x", "timestamp": 1e999}', DeadReason.NOT_JSON),
    "huge integer": (
        b'{"prompt": "x", "timestamp": 1' + b"0" * 300 + b"}",
        DeadReason.BAD_TIMESTAMP,
    ),
    "duplicate keys": (b'{"prompt": "x", "prompt": 3}', DeadReason.INVALID_FIELD),
    "tiny probability": ({"prompt": "x", "sampling_probability": 1e-300}, DeadReason.INVALID_FIELD),
    "year 0": ({"prompt": "x", "timestamp": "0000-01-01T00:00:00Z"}, DeadReason.BAD_TIMESTAMP),
    "time 1e30": ({"prompt": "x", "timestamp": 1e30}, DeadReason.BAD_TIMESTAMP),
    "negative time": ({"prompt": "x", "timestamp": -1.5}, DeadReason.BAD_TIMESTAMP),
    "milliseconds": ({"prompt": "x", "timestamp": 1772366400000}, DeadReason.BAD_TIMESTAMP),
    "two days ahead": (
        {"prompt": "x", "timestamp": "2026-03-03T12:00:00Z"},
        DeadReason.BAD_TIMESTAMP,
    ),
    "offset beyond the calendar": (
        {"prompt": "x", "timestamp": "9999-12-31T23:59:59-23:59"},
        DeadReason.BAD_TIMESTAMP,
    ),
    "OTLP time of 20 digits": (
        {"gen_ai.input.messages": PARTS, "timeUnixNano": "9" * 20},
        DeadReason.BAD_TIMESTAMP,
    ),
    "OTLP time in words": (
        {"gen_ai.input.messages": PARTS, "timeUnixNano": "now"},
        DeadReason.BAD_TIMESTAMP,
    ),
    "OTLP time in foreign digits": (
        {"gen_ai.input.messages": PARTS, "timeUnixNano": "١٧٧٢٣٦٦٤٠٠٠٠٠٠٠٠٠٠٠"},
        DeadReason.BAD_TIMESTAMP,
    ),
    "role with a template": (
        {"messages": [{"role": "{{ cycler.__init__.__globals__ }}", "content": "x"}]},
        DeadReason.INVALID_FIELD,
    ),
    "role with special tokens": (
        {"messages": [{"role": "user<|im_end|>\n<|im_start|>system", "content": "x"}]},
        DeadReason.INVALID_FIELD,
    ),
    "role as a list": (
        {"messages": [{"role": ["user"], "content": "x"}]},
        DeadReason.INVALID_FIELD,
    ),
    "role as an object": ({"messages": [{"role": {}, "content": "x"}]}, DeadReason.INVALID_FIELD),
    "template in content": (
        {"messages": [{"role": "user", "content": "{{ 7*7 }}<|im_end|>"}]},
        Prompt,
    ),
    "empty messages": ({"messages": []}, DeadReason.EMPTY),
    "empty content": ({"messages": [{"role": "user"}]}, DeadReason.EMPTY),
    "only an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        SkipReason.ONLY_MEDIA,
    ),
    "only an answer": ({"messages": [{"role": "assistant", "content": "x"}]}, DeadReason.EMPTY),
    "ten thousand messages": ({"messages": CHAT[1:] * 10_000}, Prompt),
    "a hundred thousand messages": ({"messages": CHAT[1:] * 100_000}, DeadReason.OVERSIZE),
    "a zip bomb": (gzip.compress(b" " * 100_000_000 + b"{}"), DeadReason.OVERSIZE),
    "gzip in gzip in gzip in gzip in gzip": (zipped(5), DeadReason.TOO_DEEP),
    "gzip three times": (zipped(3), Prompt),
    "base64 of gzip": (base64.b64encode(zipped(1)), Prompt),
    "base64 of base64": (
        base64.b64encode(base64.b64encode(orjson.dumps({"prompt": "x"}))),
        DeadReason.NOT_JSON,
    ),
    "JSON in JSON in JSON in JSON in JSON": (quoted(5), DeadReason.TOO_DEEP),
    "JSON in JSON": (quoted(1), Prompt),
    "a frame of JSON": (b"\x00\xff\xff\xff\xff" + b'{"prompt": "x"}', Prompt),
    "a frame of gzip": (b"\x00\x00\x00\x00\x01" + zipped(1), DeadReason.DIALECT_NOT_READ),
    "a frame of a frame": (b"\x00\x00\x00\x00\x01" * 2 + b"{}", DeadReason.DIALECT_NOT_READ),
    "a frame of nothing": (b"\x00\x00\x00\x00\x01", DeadReason.DIALECT_NOT_READ),
    "an Avro file": (b"Obj\x01\x04\x14avro.codec", DeadReason.DIALECT_NOT_READ),
    "OTLP in protobuf that ends early": (
        b"\x0a\x8e\x02\x0a\x20\x0a\x1e\x0a\x0cservice.name\x12\xff",
        DeadReason.NOT_UTF8,
    ),
    "schema and payload without end": (connected(40), DeadReason.TOO_DEEP),
    "a hundred thousand documents": ([{"prompt": "x"}] * 100_000, DeadReason.OVERSIZE),
    "a hundred thousand prompts": (
        {"request": {"prompt": ["x"] * 100_000}},
        DeadReason.OVERSIZE,
    ),
    "a hundred thousand spans": (
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"gen_ai.input.messages": 1}] * 100_000}]}]},
        DeadReason.OVERSIZE,
    ),
    "a hundred thousand parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 100_000}]},
        DeadReason.OVERSIZE,
    ),
    "a hundred thousand calls": (
        {
            "messages": CHAT,
            "response": {"tool_calls": [{"function": {"name": "f"}}] * 100_000},
        },
        DeadReason.OVERSIZE,
    ),
    "a hundred thousand tools": (
        {"messages": CHAT, "tools": [{"name": "f"}] * 100_000},
        DeadReason.OVERSIZE,
    ),
    "a hundred thousand items": (
        {"model": "m", "input": [{"role": "user", "content": "x"}] * 100_000},
        DeadReason.OVERSIZE,
    ),
    "a stream of 200,000 events": (
        {"request": {"messages": CHAT}, "response": "data: {}\n" * 200_000},
        DeadReason.OVERSIZE,
    ),
    "a stream without its end": (
        {
            "request": {"messages": CHAT},
            "response": 'data: {"choices": [{"delta": {"content": "x"}}]}\n\n',
        },
        DeadReason.TRUNCATED,
    ),
    "an index of nine digits": (
        {
            "attributes": {
                "gen_ai.prompt.999999999.content": "x",
                "gen_ai.prompt.99999999999999999999.content": "y",
                "gen_ai.prompt.²³.content": "z",
            }
        },
        Prompt,
    ),
    "a hundred thousand indices": (
        {"attributes": {f"gen_ai.prompt.{i}.content": "x" for i in range(100_000)}},
        DeadReason.OVERSIZE,
    ),
    "token ids below 0": ({"request": {"prompt": [1, -1]}}, DeadReason.INVALID_FIELD),
    "token ids of words": ({"request": {"prompt": [1, "a"]}}, DeadReason.INVALID_FIELD),
    "a template of the request's own": (
        {"request": {"messages": CHAT, "chat_template": "{{ 7*7 }}"}},
        DeadReason.DIALECT_NOT_READ,
    ),
    "a bare string": ("x", DeadReason.UNKNOWN_FORMAT),
    "null": (b"null", DeadReason.UNKNOWN_FORMAT),
    "an empty object": ({}, DeadReason.UNKNOWN_FORMAT),
    "Kong with an empty request": (
        {"ai": {"proxy": {"payload": {"request": "{}", "response": "{}"}}}},
        DeadReason.INVALID_FIELD,
    ),
    "an envelope in an envelope": (
        {"specversion": "1.0", "data": {"specversion": "1.0", "data": {"prompt": "x"}}},
        DeadReason.UNKNOWN_FORMAT,
    ),
}


HEAVY = ("4 MB of empty arrays", "a hundred thousand prompts", "a hundred thousand spans")


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in BY_HAND],
)
def test_by_hand(record: Build, case: str) -> None:
    value, expected = BY_HAND[case]
    (parsed,) = checked(record(value))
    if isinstance(parsed, Prompt):
        assert expected is Prompt
    else:
        assert parsed.reason is expected


def test_a_bomb_behind_what_used_up_the_limit_is_never_unpacked(record: Build) -> None:
    """The limit counts over all layers: once nothing is left of it, no layer is given free rein."""
    limit, bomb = 100_000, gzip.compress(b" " * 60_000_000 + b"{}")
    assert len(bomb) < limit
    packed = gzip.compress(bomb + b"\0" * (limit - len(bomb)))
    tracemalloc.start()
    (parsed,) = parse(record(packed), IngestSettings(max_record_bytes=limit))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is DeadReason.OVERSIZE
    assert most < 10 * limit


def test_a_50_mb_string_within_the_limit_is_read(record: Build) -> None:
    value = b'{"prompt": "' + b"x" * 50_000_000 + b'"}'
    (parsed,) = parse(record(value), IngestSettings(max_record_bytes=64_000_000))
    assert isinstance(parsed, Prompt)
    assert len(parsed.text or "") == 50_000_000


def test_deepest_nesting_that_can_be_configured(record: Build) -> None:
    """Python's own recursion limit is never met: every walk is level by level or bounded by 200."""
    deep = IngestSettings(max_nesting=200)
    messages = key_value("gen_ai.input.messages", any_value(63))
    (parsed,) = checked(record(spans(CHATTING, messages)), deep)
    assert isinstance(parsed, DeadLetter)
    assert parsed.reason is DeadReason.INVALID_FIELD
    result = {"type": "tool_call_response", "response": nested(190)}
    document = {"gen_ai.input.messages": [*PARTS, {"role": "tool", "parts": [result]}]}
    (parsed,) = checked(record(document), deep)
    assert isinstance(parsed, Prompt)
    assert parsed.messages[-1] == Message(
        role="tool", content=orjson.dumps(nested(190)).decode().replace(":", ": ")
    )


@pytest.mark.slow
def test_many_small_bombs_count_together(record: Build) -> None:
    """Each element of an array may be compressed; what they come to is bounded for the record."""
    bomb = base64.b64encode(gzip.compress(b" " * 3_000_000 + b'{"prompt": "x"}')).decode()
    parsed = checked(record([bomb] * 300))
    reasons = [value.reason for value in parsed if isinstance(value, DeadLetter)]
    assert len(reasons) == 299
    assert set(reasons) == {DeadReason.OVERSIZE}


def test_a_wide_resource_is_not_copied_for_every_span(record: Build) -> None:
    """The work is that of the record's size, not of its spans times its resource."""
    wide = [key_value(f"key{i}", {"stringValue": "x"}) for i in range(20_000)]
    span = {"attributes": OTLP}
    document = {
        "resourceSpans": [
            {"resource": {"attributes": wide}, "scopeSpans": [{"spans": [span] * 3_000}]}
        ]
    }
    parsed = checked(record(document))
    assert len(parsed) == 3_000
    assert {type(value) for value in parsed} == {Prompt}
