"""OTLP in protobuf, the default of the collector's Kafka exporter, as the same document in JSON's form.

One message is one ExportTraceServiceRequest or ExportLogsServiceRequest. Nothing says which, and bytes of
any other protocol may decode as either: they are told by what the specification demands of every entry
(ids of 16 and 8 bytes, times). What the entries mean is read by the dialects, from the document alone.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from monitor.ingest import fields
from monitor.ingest.dialects.otlp import ENTRIES

VALUES: Final = 200_000
"""Most attributes and values inside them of one message."""
_ENTRIES_AT: Final = (1, 2, 2)
"""Numbers of the fields that lead to a span and to a log record: resources, scopes, entries."""
_TRACE_BYTES: Final = 16
_SPAN_BYTES: Final = 8
_VARINT: Final = 0
_LENGTH: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of the kinds of fields that have a fixed length."""
_LONGEST_VARINT: Final = 70


def document(body: bytes) -> dict[str, Any] | None:
    """The request in ``body`` in the form of OTLP/JSON; None for bytes that are none.

    The export requests and these ``…Data`` messages are the same on the wire. Metrics come as a list
    without content, since none of them is an exchange. Raises `fields.Unreadable` beyond `ENTRIES`.
    """
    if body[:1] != b"\x0a":
        return None
    _count(memoryview(body), _ENTRIES_AT, 0)
    for read in (_traces, _logs, _metrics):
        try:
            found = read(body)
        except DecodeError:
            continue
        if found is not None:
            return found
    return None


def _count(body: memoryview, path: Sequence[int], found: int) -> int:
    """How many messages lie on ``path``, before anything is made of them: empty ones take two bytes
    here and a hundred times as much once they are decoded. Stops where the bytes are no protobuf."""
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        kind = tag & 7
        if kind == _LENGTH:
            size, at = _varint(body, at)
            if tag >> 3 == path[0]:
                found += 1
                fields.within(found, ENTRIES, "record", "spans or log records")
                if path[1:]:
                    found = _count(body[at : at + size], path[1:], found)
            at += size
        elif kind == _VARINT:
            _, at = _varint(body, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            break
    return found


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends; of a number that does not end, the end of the bytes."""
    value = shift = 0
    while at < len(body) and shift < _LONGEST_VARINT:
        value |= (body[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if body[at - 1] < 0x80:
            return value, at
    return value, len(body)


def _traces(body: bytes) -> dict[str, Any] | None:
    told = TracesData.FromString(body).resource_spans
    spans = [span for group in told for scope in group.scope_spans for span in scope.spans]
    if not spans or not all(map(_is_span, spans)):
        return None
    fields.within(sum(len(span.events) for span in spans), ENTRIES, "resourceSpans", "events")
    reading = _Reading()
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": reading.attributes(group.resource.attributes)},
                "scopeSpans": [
                    {"spans": list(map(reading.span, one.spans))} for one in group.scope_spans
                ],
            }
            for group in told
        ]
    }


def _logs(body: bytes) -> dict[str, Any] | None:
    told = LogsData.FromString(body).resource_logs
    records = [one for group in told for scope in group.scope_logs for one in scope.log_records]
    if not records or not all(map(_is_record, records)):
        return None
    reading = _Reading()
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": reading.attributes(group.resource.attributes)},
                "scopeLogs": [
                    {"logRecords": list(map(reading.record, one.log_records))}
                    for one in group.scope_logs
                ],
            }
            for group in told
        ]
    }


def _metrics(body: bytes) -> dict[str, Any] | None:
    told = MetricsData.FromString(body).resource_metrics
    metrics = [one for group in told for scope in group.scope_metrics for one in scope.metrics]
    if not metrics or not all(map(_is_metric, metrics)):
        return None
    return {"resourceMetrics": []}


def _is_span(span: Span) -> bool:
    return len(span.trace_id) == _TRACE_BYTES and len(span.span_id) == _SPAN_BYTES


def _is_record(record: LogRecord) -> bool:
    ids = len(record.trace_id) in (0, _TRACE_BYTES) and len(record.span_id) in (0, _SPAN_BYTES)
    return ids and bool(record.time_unix_nano or record.observed_time_unix_nano)


def _is_metric(metric: Metric) -> bool:
    kind = metric.WhichOneof("data")
    points = getattr(metric, kind).data_points if kind else ()
    return bool(metric.name and points and points[0].time_unix_nano)


class _Reading:
    """Makes plain objects of one message, and counts the values in them."""

    def __init__(self) -> None:
        self._values = 0

    def span(self, span: Span) -> dict[str, Any]:
        return {
            "traceId": span.trace_id.hex(),
            "spanId": span.span_id.hex(),
            "name": span.name,
            "startTimeUnixNano": span.start_time_unix_nano,
            "endTimeUnixNano": span.end_time_unix_nano,
            "attributes": self.attributes(span.attributes),
            "events": [
                {
                    "name": event.name,
                    "timeUnixNano": event.time_unix_nano,
                    "attributes": self.attributes(event.attributes),
                }
                for event in span.events
            ],
        }

    def record(self, record: LogRecord) -> dict[str, Any]:
        found: dict[str, Any] = {
            "traceId": record.trace_id.hex(),
            "spanId": record.span_id.hex(),
            "timeUnixNano": record.time_unix_nano,
            "observedTimeUnixNano": record.observed_time_unix_nano,
            "attributes": self.attributes(record.attributes),
        }
        if record.event_name:
            found["eventName"] = record.event_name
        if record.HasField("body"):
            found["body"] = self._value(record.body)
        return found

    def attributes(self, given: Sequence[KeyValue]) -> list[dict[str, Any]]:
        self._add(len(given))
        return [{"key": one.key, "value": self._value(one.value)} for one in given]

    def _value(self, value: AnyValue) -> dict[str, Any] | None:
        """An AnyValue as JSON writes it. The parser has bounded how deep they lie in each other."""
        match value.WhichOneof("value"):
            case "string_value":
                return {"stringValue": value.string_value}
            case "bool_value":
                return {"boolValue": value.bool_value}
            case "int_value":
                return {"intValue": value.int_value}
            case "double_value":
                finite = math.isfinite(value.double_value)
                return {"doubleValue": value.double_value if finite else None}
            case "array_value":
                self._add(len(value.array_value.values))
                return {"arrayValue": {"values": list(map(self._value, value.array_value.values))}}
            case "kvlist_value":
                return {"kvlistValue": {"values": self.attributes(value.kvlist_value.values)}}
            case "bytes_value":
                return {"bytesValue": base64.b64encode(value.bytes_value).decode()}
        return None

    def _add(self, values: int) -> None:
        self._values += values
        fields.within(self._values, VALUES, "record", "attributes")
