"""Vertex AI's request-response logging: rows of its BigQuery table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason


def read(document: Document, settings: IngestSettings) -> Exchange:
    """``full_request`` and ``full_response``: Gemini's objects, or those of the model's own API."""
    opened = fields.opened(
        document.get("full_request"), "full_request", settings.max_nesting, "log whole requests"
    )
    if not opened:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    request = fields.mapping(opened, "full_request")
    foreign = Foreign()
    return api.exchange(
        "vertex",
        api.Pair(
            request=request,
            response=document.get("full_response"),
            request_at="full_request.",
            response_at="full_response",
            continues=api.is_anthropic(request, document.get("full_response")),
        ),
        foreign,
        settings.max_nesting,
        prompt_id=foreign.identifier(document.get("request_id"), "request_id"),
        model=foreign.name(document.get("model"), "model"),
        model_revision=foreign.name(document.get("model_version"), "model_version"),
        segment=fields.chosen_labels(document, settings.segment_keys) or None,
        timestamp=foreign.database_time(document.get("logging_time"), "logging_time"),
    )


def told(document: Mapping[str, Any]) -> bool:
    return "full_request" in document


VERTEX: Final = Dialect(name="vertex", told=told, read=read)
