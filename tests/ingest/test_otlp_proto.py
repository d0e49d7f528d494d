"""OTLP in protobuf is read as the same message in JSON is, and other bytes are not taken for it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from monitor.ingest import otlp_proto
from monitor.ingest.formats import parse
from monitor.ingest.joining import Joins
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    Chunk,
    DeadLetter,
    DeadReason,
    Prompt,
    RawRecord,
    Skip,
    SkipReason,
)
from tests.ingest.conftest import APPENDED
from tests.ingest.halves import ANSWER, QUESTION, raw

Build = Callable[..., RawRecord]
SETTINGS = IngestSettings(segment_keys=("service.name",))
NANOS = 1_772_366_400_000_000_000


def any_value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=key_values(value)))
    return AnyValue()


def key_values(given: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in given.items()]


def traces(*spans: Span) -> bytes:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(key_values({"service.name": "kitchen"}))
    group.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def span(attributes: dict[str, Any], number: int = 1, **more: Any) -> Span:
    return Span(
        trace_id=number.to_bytes(16),
        span_id=number.to_bytes(8),
        name="chat m",
        end_time_unix_nano=NANOS,
        attributes=key_values(attributes),
        **more,
    )


def said(role: str, content: str) -> list[dict[str, Any]]:
    return [{"role": role, "parts": [{"type": "text", "content": content}]}]


CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.usage.input_tokens": 14,
    "gen_ai.input.messages": said("user", QUESTION),
    "gen_ai.output.messages": said("assistant", ANSWER),
}


def in_json(attributes: dict[str, Any]) -> dict[str, Any]:
    """The same span as OTLP/JSON writes it, by the specification's own rules."""

    def value(given: Any) -> dict[str, Any]:
        match given:
            case str():
                return {"stringValue": given}
            case int():
                return {"intValue": str(given)}
            case float():
                return {"doubleValue": given}
            case list():
                return {"arrayValue": {"values": [value(one) for one in given]}}
        return {"kvlistValue": {"values": [pair(*one) for one in given.items()]}}

    def pair(key: str, given: Any) -> dict[str, Any]:
        return {"key": key, "value": value(given)}

    one = {
        "traceId": f"{1:032x}",
        "spanId": f"{1:016x}",
        "name": "chat m",
        "endTimeUnixNano": str(NANOS),
        "attributes": [pair(*item) for item in attributes.items()],
    }
    resource = {"attributes": [pair("service.name", "kitchen")]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [one]}]}]}


def test_a_span_is_read_as_its_json_form_is(record: Build) -> None:
    (prompt,) = parse(record(traces(span(CHAT))), SETTINGS)
    assert isinstance(prompt, Prompt), prompt
    assert (prompt.messages[0].content, prompt.response) == (QUESTION, ANSWER)
    assert prompt.segment == {"service.name": "kitchen"}
    assert (prompt,) == parse(record(in_json(CHAT)), SETTINGS)


@pytest.mark.parametrize("format", ["auto", "otel"])
def test_several_spans_and_what_is_none_of_ours(record: Build, format: str) -> None:
    body = traces(span(CHAT), span({"http.route": "/"}, 2), span(CHAT, 3))
    prompts = parse(record(body), IngestSettings.model_validate({"format": format}))
    assert [type(one) for one in prompts] == [Prompt, Prompt]


def test_events_inside_of_a_span(record: Build) -> None:
    events = [
        Span.Event(name="gen_ai.user.message", attributes=key_values({"content": QUESTION})),
        Span.Event(
            name="gen_ai.choice",
            attributes=key_values(
                {"gen_ai.event.content": f'{{"message": {{"content": "{ANSWER}"}}}}'}
            ),
        ),
    ]
    body = traces(span({"gen_ai.operation.name": "chat"}, events=events))
    (prompt,) = parse(record(body), SETTINGS)
    assert isinstance(prompt, Prompt), prompt
    assert (prompt.messages[0].content, prompt.response) == (QUESTION, ANSWER)


def logs(*records: LogRecord) -> bytes:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.extend(records)
    return request.SerializeToString()


def log_record(event: str, body: dict[str, Any]) -> LogRecord:
    return LogRecord(
        observed_time_unix_nano=NANOS,
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        event_name=event,
        body=any_value(body),
    )


def test_an_event_per_message_is_joined() -> None:
    body = logs(
        log_record("gen_ai.user.message", {"content": QUESTION}),
        log_record("gen_ai.choice", {"index": 0, "message": {"content": ANSWER}}),
    )
    joined = Joins(SETTINGS).read(Chunk(records=(raw(body),), spans=()), now=APPENDED)
    (prompt,) = joined.outcomes
    assert isinstance(prompt, Prompt), prompt
    assert (prompt.messages[0].content, prompt.response) == (QUESTION, ANSWER)
    assert prompt.prompt_id == f"{(b't' * 16).hex()}/{(b's' * 8).hex()}"


def test_the_inference_event_as_a_log_record(record: Build) -> None:
    one = log_record("gen_ai.client.inference.operation.details", CHAT)
    (prompt,) = parse(record(logs(one)), SETTINGS)
    assert isinstance(prompt, Prompt), prompt
    assert prompt.response == ANSWER


def test_metrics_and_other_telemetry_are_no_prompts(record: Build) -> None:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="tokens", unit="1")
    metric.sum.data_points.add(as_int=3, time_unix_nano=NANOS)
    for body in (request.SerializeToString(), traces(span({"http.route": "/"}))):
        (skip,) = parse(record(body), SETTINGS)
        assert isinstance(skip, Skip), skip
        assert skip.reason is SkipReason.NOT_A_PROMPT


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        b"\x00\xff",
        [1, [True, {"a": [0.5, "x"]}]],
        None,
        2**63 - 1,
    ],
)
def test_every_kind_of_value_is_carried(record: Build, value: Any) -> None:
    (prompt,) = parse(record(traces(span(CHAT | {"gen_ai.other": value}))), SETTINGS)
    assert isinstance(prompt, Prompt), prompt


def test_bytes_are_base64_as_in_json() -> None:
    told = otlp_proto.document(traces(span({"a": b"\x00\xff"})))
    assert told is not None
    (one,) = told["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]
    assert base64.b64decode(one["value"]["bytesValue"]) == b"\x00\xff"


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


MANY = b"\x12\x00" * 1_500_000


@pytest.mark.parametrize(
    "body",
    [
        field(1, field(2, MANY)),
        field(1, MANY),
        b"\x0a\x00" * 1_500_000,
        traces(span({}, events=[Span.Event(name="e")] * 20_000)),
        traces(span({str(n): 1 for n in range(201_000)})),
        traces(span({"a": [1] * 201_000})),
    ],
    ids=["spans", "scopes", "resources", "events", "attributes", "values"],
)
def test_more_than_a_message_may_hold_is_refused_before_it_is_made(
    record: Build, body: bytes
) -> None:
    (letter,) = parse(record(body), SETTINGS)
    assert isinstance(letter, DeadLetter)
    assert letter.reason is DeadReason.OVERSIZE


def test_values_nested_without_end_do_not_exhaust_the_stack(record: Build) -> None:
    inner = field(1, b"x")
    for _ in range(5_000):
        inner = field(5, field(1, inner))
    body = field(
        1, field(2, field(2, field(1, b"t" * 16) + field(2, b"s" * 8) + field(9, field(2, inner))))
    )
    (letter,) = parse(record(body), SETTINGS)
    assert isinstance(letter, DeadLetter)


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_message_that_was_cut_off_is_refused(record: Build, cut: int) -> None:
    (letter,) = parse(record(traces(span(CHAT))[:-cut]), SETTINGS)
    assert isinstance(letter, DeadLetter)


def test_an_id_of_another_length_is_not_taken_for_one() -> None:
    one = span(CHAT)
    one.trace_id = b"short"
    assert otlp_proto.document(traces(one)) is None


def test_json_behind_a_line_break_stays_json(record: Build) -> None:
    (prompt,) = parse(record(b'\n{"prompt": "x"}'), SETTINGS)
    assert isinstance(prompt, Prompt)


@given(st.binary(max_size=200))
def test_other_bytes_are_no_telemetry(noise: bytes) -> None:
    for body in (noise, b"\x0a" + noise, field(1, field(2, field(2, noise)))):
        assert otlp_proto.document(body) is None
