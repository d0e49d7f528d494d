"""Langfuse's generations: as its API and its exports give them, and as spans of its SDK.

The SDK writes OpenTelemetry spans with attributes of its own (``langfuse.observation.*``), which reach a
collector like any other span. They hold the same fields, each as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api, flat, otlp
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

TYPE: Final = "langfuse.observation.type"
_HELP: Final = "export whole fields"
_SPAN_FIELDS: Final = {
    "input": "langfuse.observation.input",
    "output": "langfuse.observation.output",
    "model": "langfuse.observation.model.name",
    "modelParameters": "langfuse.observation.model.parameters",
    "usageDetails": "langfuse.observation.usage_details",
    "level": "langfuse.observation.level",
    "sessionId": "session.id",
}
_METADATA: Final = "langfuse.observation.metadata."


def read(document: Document, settings: IngestSettings) -> Exchange:
    """A generation; other observations are NOT_A_PROMPT. One of level ERROR has no answer."""
    if str(document.get("type")).upper() != "GENERATION":
        raise Skipped(SkipReason.NOT_A_PROMPT)
    if document.get("input") in (None, ""):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    nesting, foreign = settings.max_nesting, Foreign()
    given = _either(document, "modelParameters", "model_parameters")
    drawn = fields.opened(given, "modelParameters", nesting, _HELP)
    request = flat.request_of(document["input"], {}, settings)
    if isinstance(drawn, dict):
        request = {**drawn, **request}
    metadata = fields.opened(document.get("metadata"), "metadata", nesting, _HELP)
    failed = str(document.get("level")).upper() == "ERROR"
    exchange = api.exchange(
        "langfuse",
        api.Pair(
            request=request,
            response={"error": {}} if failed else document.get("output"),
            request_at="input.",
            response_at="output",
            spoken=True,
        ),
        foreign,
        nesting,
        counts=_counts(document, nesting),
        prompt_id=foreign.identifier(document.get("id"), "id"),
        conversation_id=foreign.identifier(
            _either(document, "sessionId", "session_id", "traceId", "trace_id"), "traceId"
        ),
        model=foreign.name(_either(document, "model", "provided_model_name"), "model"),
        segment=fields.chosen_labels(
            metadata if isinstance(metadata, dict) else {}, settings.segment_keys
        )
        or None,
        timestamp=foreign.database_time(_either(document, "endTime", "end_time"), "endTime")
        or foreign.database_time(_either(document, "startTime", "start_time"), "startTime"),
    )
    return _finished(exchange, metadata)


def _counts(document: Document, nesting: int) -> Any:
    """Langfuse's own names, or those of the API that was called."""
    usage = _either(document, "usageDetails", "usage_details", "usage")
    counted = fields.opened(usage, "usageDetails", nesting, _HELP)
    if not isinstance(counted, dict):
        return None
    return parameters.counts(counted) or parameters.served(
        counted.get("input"), counted.get("output")
    )


def _finished(exchange: Exchange, metadata: object) -> Exchange:
    """Why the answer ended is among the metadata, where the output is a bare message."""
    reason = metadata.get("finish_reason") if isinstance(metadata, dict) else None
    known = exchange.sampling is not None and exchange.sampling.finish_reason
    if reason is None or known:
        return exchange
    drawn = parameters.sampling(exchange.asked.parameters, parameters.label(reason))
    return dataclasses.replace(exchange, sampling=drawn)


def _either(document: Document, *keys: str) -> Any:
    return next((document[key] for key in keys if document.get(key) is not None), None)


def is_exchange(own: Mapping[str, Any]) -> bool:
    """Whether a span of the SDK is a generation."""
    return str(own.get(TYPE)).upper() == "GENERATION"


def read_span(entry: Entry, settings: IngestSettings) -> Exchange:
    own = entry.own
    metadata = {
        key.removeprefix(_METADATA): _plain(value)
        for key, value in own.items()
        if key.startswith(_METADATA)
    }
    named = otlp.span_id(entry)
    document: Document = {name: own.get(key) for name, key in _SPAN_FIELDS.items()}
    document |= {"type": "GENERATION", "id": named, "metadata": metadata}
    document["traceId"] = named.partition("/")[0] if named else None
    exchange = read(document, settings)
    return dataclasses.replace(
        exchange, timestamp=otlp.time(entry), segment=otlp.labels(entry, settings)
    )


def _plain(value: Any) -> Any:
    """A value of the metadata, which the SDK writes as JSON."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def told(document: Mapping[str, Any]) -> bool:
    return (
        "type" in document
        and "input" in document
        and ("traceId" in document or "trace_id" in document)
    )


LANGFUSE: Final = Dialect(name="langfuse", told=told, read=read)
