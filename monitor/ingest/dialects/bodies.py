"""Gateways that keep the bodies of request and response apart: Helicone's and Portkey's exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

_HELP: Final = "log the whole body"


def read_helicone(document: Document, settings: IngestSettings) -> Exchange:
    foreign = Foreign()
    about = document.get("request_properties", document.get("properties"))
    properties: dict[str, Any] = about if isinstance(about, dict) else {}
    return _exchange(
        "helicone",
        _Bodies(
            document.get("request_body"),
            document.get("response_body"),
            "request_body",
            "response_body",
        ),
        document,
        foreign,
        settings,
        prompt_id=foreign.first_name(document, "", "request_id", "id"),
        conversation_id=foreign.identifier(
            properties.get("Helicone-Session-Id"), "request_properties.Helicone-Session-Id"
        ),
        counts=parameters.counts(document),
        model=foreign.first_name(document, "", "response_model", "request_model", "model"),
        segment=fields.chosen_labels(properties, settings.segment_keys) or None,
        timestamp=foreign.database_time(document.get("request_created_at"), "request_created_at")
        or foreign.database_time(document.get("created_at"), "created_at"),
    )


def read_portkey(document: Document, settings: IngestSettings) -> Exchange:
    foreign = Foreign()
    request = fields.mapping(document.get("request"), "request")
    response = document.get("response")
    served = fields.mapping(response, "response").get("body") if response is not None else None
    metadata = document.get("metadata")
    if api.is_other_route(request.get("url")):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    return _exchange(
        "portkey",
        _Bodies(request.get("body"), served, "request.body", "response.body"),
        document,
        foreign,
        settings,
        prompt_id=foreign.identifier(document.get("id"), "id"),
        conversation_id=foreign.identifier(document.get("trace_id"), "trace_id"),
        segment=fields.chosen_labels(
            metadata if isinstance(metadata, dict) else {}, settings.segment_keys
        )
        or None,
        timestamp=foreign.database_time(document.get("created_at"), "created_at"),
    )


class _Bodies:
    def __init__(self, request: Any, response: Any, request_at: str, response_at: str) -> None:
        self.request, self.response = request, response
        self.request_at, self.response_at = request_at, response_at


def _exchange(
    name: str,
    bodies: _Bodies,
    document: Document,
    foreign: Foreign,
    settings: IngestSettings,
    **more: Any,
) -> Exchange:
    if bodies.request in (None, "", {}):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    opened = fields.opened(bodies.request, bodies.request_at, settings.max_nesting, _HELP)
    request = fields.mapping(opened, bodies.request_at)
    return api.exchange(
        name,
        api.Pair(
            request=request,
            response=bodies.response,
            request_at=f"{bodies.request_at}.",
            response_at=bodies.response_at,
            continues=api.is_anthropic(request, bodies.response),
        ),
        foreign,
        settings.max_nesting,
        **more,
    )


def told_helicone(document: Mapping[str, Any]) -> bool:
    return "request_body" in document


def told_portkey(document: Mapping[str, Any]) -> bool:
    request = document.get("request")
    return isinstance(request, dict) and "body" in request


HELICONE: Final = Dialect(name="helicone", told=told_helicone, read=read_helicone)
PORTKEY: Final = Dialect(name="portkey", told=told_portkey, read=read_portkey)
