"""Apache APISIX loggers (``kafka-logger`` …) behind its AI proxy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings


def read(document: Document, settings: IngestSettings) -> Exchange:
    """``llm_request`` is the request object, ``llm_response_text`` the answer's text."""
    opened = fields.opened(
        document.get("llm_request"), "llm_request", settings.max_nesting, "log the whole request"
    )
    request = fields.mapping(opened, "llm_request")
    summary = document.get("llm_summary")
    about: dict[str, Any] = summary if isinstance(summary, dict) else {}
    foreign = Foreign()
    return api.exchange(
        "apisix",
        api.Pair(
            request=request,
            response=document.get("llm_response_text"),
            request_at="llm_request.",
            response_at="llm_response_text",
            spoken=True,
        ),
        foreign,
        settings.max_nesting,
        counts=parameters.counts(about),
        model=foreign.name(about.get("model"), "llm_summary.model"),
        segment=fields.chosen_labels(document, settings.segment_keys) or None,
        timestamp=foreign.milliseconds(document.get("start_time"), "start_time"),
    )


def told(document: Mapping[str, Any]) -> bool:
    return "llm_request" in document


APISIX: Final = Dialect(name="apisix", told=told, read=read)
