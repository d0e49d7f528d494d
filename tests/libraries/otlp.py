"""Finished spans and log records as the collector's Kafka exporter hands them on, in both encodings."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.libraries.cases import Document
from tests.libraries.reading import Written

_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})


@dataclass
class Telemetry:
    """Providers of its own for every library: none sees another's spans."""

    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    logs: InMemoryLogRecordExporter = field(default_factory=InMemoryLogRecordExporter)

    def __post_init__(self) -> None:
        self.tracing = TracerProvider()
        self.tracing.add_span_processor(SimpleSpanProcessor(self.spans))
        self.logging = LoggerProvider()
        self.logging.add_log_record_processor(SimpleLogRecordProcessor(self.logs))

    def taken(self) -> tuple[Document, Written]:
        """The spans since the last time: one message of the collector, as JSON and as protobuf."""
        spans = self.spans.get_finished_spans()
        self.spans.clear()
        return both(encode_spans(spans))

    def taken_logs(self) -> tuple[Document, Written]:
        records = self.logs.get_finished_logs()
        self.logs.clear()
        return both(encode_logs(records))


def both(message: Any) -> tuple[Document, Written]:
    return as_collector(message), Written(value=message.SerializeToString())


@contextlib.contextmanager
def instrumented(instrumentor: Any, telemetry: Telemetry, **options: Any) -> Iterator[None]:
    instrumentor.instrument(
        tracer_provider=telemetry.tracing, logger_provider=telemetry.logging, **options
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()


def as_collector(message: Any) -> Document:
    """OTLP/JSON has ids as hexadecimal digits and enumerations as numbers, unlike protobuf's JSON."""
    document = MessageToDict(message, use_integers_for_enums=True)
    return _hexadecimal(document)


def _hexadecimal(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).hex() if key in _IDS else _hexadecimal(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_hexadecimal(inner) for inner in value]
    return value
