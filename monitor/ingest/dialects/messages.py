"""OpenTelemetry's event per message: log records that are one exchange together, by trace and span.

Source: the semantic conventions for GenAI events before 1.37, as opentelemetry-instrumentation-openai-v2
and Azure's SDK write them: ``gen_ai.system.message`` and so on with the message as body (or as JSON in
``gen_ai.event.content``), then ``gen_ai.choice``. Nothing in them counts the messages. So that half a
chat never passes for a whole one, they are joined only in the order in which one exporter writes them,
in one partition, and the choice closes the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import genai, otlp
from monitor.ingest.dialects.otlp import Entry
from monitor.ingest.exchange import Exchange, Piece
from monitor.ingest.fields import Skipped
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_SYSTEM: Final = "gen_ai.system.message"
_CONTENT: Final = "gen_ai.event.content"
_TIMES: Final = ("timeUnixNano", "observedTimeUnixNano", "timestamp")


def is_read(entry: Entry) -> bool:
    """Of several choices the first is read; the others are passed over."""
    if genai.event_of(entry) != genai.CHOICE:
        return True
    body = entry.body if isinstance(entry.body, dict) else {}
    return body.get("index", entry.own.get("index")) in (None, 0, "0")


def piece(entry: Entry, settings: IngestSettings) -> Piece:
    span = otlp.ids(entry)
    if span is None:
        raise fields.not_read(
            "an event per message without trace and span",
            "send the content on spans: OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental",
            entry.where.rstrip(".") or "record",
        )
    event = genai.event_of(entry)
    own = {key: value for key, value in entry.own.items() if _is_kept(key, settings)}
    given = entry.body if isinstance(entry.body, dict) else {}
    if _CONTENT in entry.own:
        given = {_CONTENT: entry.own[_CONTENT]}
    return Piece(
        dialect="otel",
        name=span,
        side="message",
        ordered=True,
        last=event == genai.CHOICE,
        content={
            "event": {"name": event, "attributes": given},
            "own": own,
            "shared": fields.chosen_labels(entry.shared, settings.segment_keys),
            "about": {
                "traceId": span[0],
                "spanId": span[1],
                **{key: entry.document[key] for key in _TIMES if key in entry.document},
            },
        },
    )


def _is_kept(key: str, settings: IngestSettings) -> bool:
    if key == _CONTENT:
        return False
    return key.startswith("gen_ai.") or key == "session.id" or key in settings.segment_keys


def joined(contents: Sequence[Mapping[str, Any]], settings: IngestSettings) -> Exchange:
    """The exchange in the messages and the choice of one span, in their order: a span with events.

    Nothing but a system prompt before the choice is a chat whose other messages were lost: `Skipped`.
    """
    if all(content["event"]["name"] in (_SYSTEM, genai.CHOICE) for content in contents):
        raise Skipped(SkipReason.UNPAIRED)
    own: dict[str, Any] = {}
    for content in contents:
        own |= content["own"]
    closing = contents[-1]
    span = Entry(
        where="",
        own=own,
        shared=closing["shared"],
        body=None,
        document={**closing["about"], "events": [content["event"] for content in contents]},
    )
    return genai.read(span, settings)
