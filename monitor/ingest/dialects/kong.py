"""Kong's log plugins (``kafka-log`` …) with the AI proxy's payload logging turned on."""

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

_HELP: Final = "raise the plugin's limit on the size of a payload"


def read(document: Document, settings: IngestSettings) -> Exchange:
    """``ai.proxy.payload.request`` and ``.response``; without them CONTENT_REDACTED."""
    ai = fields.mapping(document.get("ai"), "ai")
    proxy = _object(ai.get("proxy")) or _object(ai.get("ai-proxy"))
    payload = {**_object(ai.get("payload")), **_object(proxy.get("payload"))}
    if not payload.get("request"):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    at = "ai.proxy.payload"
    request = fields.mapping(
        fields.opened(payload["request"], f"{at}.request", settings.max_nesting, _HELP),
        f"{at}.request",
    )
    meta, foreign = _object(proxy.get("meta")), Foreign()
    outer = _object(document.get("request"))
    headers = _object(outer.get("headers"))
    return api.exchange(
        "kong",
        api.Pair(
            request=request,
            response=payload.get("response"),
            request_at=f"{at}.request.",
            response_at=f"{at}.response",
            continues=api.is_anthropic(request, None),
        ),
        foreign,
        settings.max_nesting,
        counts=parameters.counts(proxy.get("usage")),
        model=foreign.first_name(meta, "ai.proxy.meta.", "response_model", "request_model"),
        prompt_id=foreign.identifier(headers.get("kong-request-id"), "request.headers"),
        segment=fields.chosen_labels({**meta, **_route(document)}, settings.segment_keys) or None,
        timestamp=foreign.milliseconds(document.get("started_at"), "started_at"),
    )


def _route(document: Document) -> dict[str, Any]:
    """The names of Kong's own route, service and consumer, for segments."""
    return {
        key: inner["name" if key != "consumer" else "username"]
        for key in ("route", "service", "consumer")
        if ("name" if key != "consumer" else "username") in (inner := _object(document.get(key)))
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def told(document: Mapping[str, Any]) -> bool:
    ai = document.get("ai")
    return isinstance(ai, dict) and not {"proxy", "ai-proxy", "payload"}.isdisjoint(ai)


KONG: Final = Dialect(name="kong", told=told, read=read)
