"""MLflow traces: spans of type CHAT_MODEL or LLM, with inputs and outputs as JSON in attributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import api, otlp, stream
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.dialects.langsmith import messages_of
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

TYPE: Final = "mlflow.spanType"
_TYPES: Final = frozenset({"CHAT_MODEL", "LLM"})
_CHUNK: Final = "mlflow.chunk.item."
_CUT_HELP: Final = "export the whole trace"


def split(document: Document, settings: IngestSettings) -> Sequence[Document]:
    """The spans that are calls of a model; those that enclose them are passed over."""
    data = document.get("data")
    at = "data.spans" if isinstance(data, dict) else "spans"
    listed = fields.sequence((data if isinstance(data, dict) else document).get("spans"), at)
    found = []
    for index, entry in enumerate(listed):
        span = fields.mapping(entry, f"{at}[{index}]")
        given = span.get("attributes")
        own: dict[str, Any] = given if isinstance(given, dict) else {}
        if is_exchange({TYPE: own.get(TYPE, span.get("span_type"))}):
            found.append({"info": document.get("info"), "span": span, "at": f"{at}[{index}]"})
    if not found:
        raise Skipped(SkipReason.NOT_A_PROMPT)
    return found


def read(item: Document, settings: IngestSettings) -> Exchange:
    span, at = item["span"], f"{item['at']}.attributes"
    own, nesting = fields.mapping(span.get("attributes") or {}, at), settings.max_nesting
    given = own.get("mlflow.spanInputs", span.get("inputs"))
    if given in (None, "", "null"):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    where = f"{at}.mlflow.spanInputs"
    request: Any = fields.opened(given, where, nesting, _CUT_HELP)
    if isinstance(request, list):
        request = {"messages": request}
    request = fields.mapping(request, where)
    if request.get("messages") is not None:
        request = {**request, "messages": messages_of(request["messages"], f"{where}.messages")}
    served = own.get("mlflow.spanOutputs", span.get("outputs"))
    response = (
        fields.opened(served, f"{at}.mlflow.spanOutputs", nesting, _CUT_HELP)
        if isinstance(served, str) and served[:1] in ('"', "{", "[", "n")
        else served
    )
    response = _streamed(span, nesting) or response
    about = item["info"] if isinstance(item["info"], dict) else {}
    metadata = about.get("trace_metadata")
    session = metadata.get("mlflow.trace.session") if isinstance(metadata, dict) else None
    tags, foreign = about.get("tags"), Foreign()
    return api.exchange(
        "mlflow",
        api.Pair(
            request=request,
            response=response,
            request_at=f"{where}.",
            response_at=f"{at}.mlflow.spanOutputs",
            spoken=True,
            continues=api.is_anthropic(request, response),
        ),
        foreign,
        nesting,
        conversation_id=foreign.identifier(session, "info.trace_metadata"),
        segment=fields.chosen_labels(tags if isinstance(tags, dict) else {}, settings.segment_keys)
        or None,
        timestamp=_nanoseconds(span, foreign)
        or foreign.time(about.get("request_time"), "info.request_time"),
    )


def is_exchange(own: Mapping[str, Any]) -> bool:
    """Whether a span, by its attributes, is a call of a model."""
    kind = own.get(TYPE)
    return isinstance(kind, str) and kind.strip('"') in _TYPES


def read_span(entry: Entry, settings: IngestSettings) -> Exchange:
    """A span that MLflow's SDK sent to a collector, where the trace around it is not at hand."""
    at = entry.where.rstrip(".") or "record"
    span = {"attributes": entry.own, "events": entry.document.get("events")}
    exchange = read({"info": None, "span": span, "at": at}, settings)
    return dataclasses.replace(
        exchange,
        prompt_id=exchange.prompt_id or otlp.span_id(entry),
        segment=otlp.labels(entry, settings),
        timestamp=otlp.time(entry),
    )


def _streamed(span: Mapping[str, Any], nesting: int) -> Any:
    """The response in a span's chunks, which are events; None where there are none, or not all.

    The output that MLflow makes of a stream leaves out its calls and its reasoning.
    """
    chunks = []
    listed = span.get("events")
    try:
        for event in listed if isinstance(listed, list) else ():
            name = event.get("name") if isinstance(event, dict) else None
            if isinstance(name, str) and name.startswith(_CHUNK):
                given = otlp.attributes(event.get("attributes")).get("mlflow.chunk.value")
                chunks.append(fields.opened(given, name, nesting, _CUT_HELP))
        return stream.assembled(chunks, "events") if stream.is_events(chunks) else None
    except Unreadable:
        return None


def _nanoseconds(span: Mapping[str, Any], foreign: Foreign) -> Any:
    for key in ("end_time_unix_nano", "end_time_ns", "start_time_unix_nano"):
        value = span.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return foreign.time(value / 1e9, key)
    return None


def told(document: Mapping[str, Any]) -> bool:
    data = document.get("data")
    return "info" in document and isinstance(data, dict) and "spans" in data


MLFLOW: Final = Dialect(name="mlflow", told=told, read=read, split=split)
