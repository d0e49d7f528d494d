"""``{"request": …, "response": …}`` and requests alone, in any of the APIs that `api` knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import api, openai
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import SkipReason

MERGED: Final = ("choices", "completion", "outputs", "generated_text", "candidates", "output")
"""Keys of an answer in one object with its request."""


def read(document: Document, settings: IngestSettings) -> Exchange:
    """Beside request and response, ``id``, ``conversation_id`` and ``timestamp`` are looked for on the
    outer object. The segment is taken from the request's ``metadata``."""
    nesting = settings.max_nesting
    inside = "request" in document
    at = "request." if inside else ""
    request: Any = document.get("request") if inside else document
    request = fields.mapping(
        fields.opened(request, "request", nesting, "log the whole request"), "request"
    )
    if api.is_other_route(document.get("url")) or api.is_other_route(document.get("path")):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    merged = not inside and any(document.get(key) is not None for key in MERGED)
    response = document if merged else document.get("response")
    at_response = "record" if merged else "response"
    response = api.opened_response(response, at_response, nesting)
    foreign = Foreign()
    metadata = request.get("metadata")
    name = api.name_of(request, response)
    return api.exchange(
        name,
        api.Pair(
            request=request,
            response=response,
            request_at=at,
            response_at=at_response,
            logged=inside or merged or document.get("response") is not None,
            continues=name in ("anthropic", "bedrock"),
        ),
        foreign,
        nesting,
        prompt_id=foreign.identifier(document.get("id"), "id"),
        conversation_id=foreign.identifier(document.get("conversation_id"), "conversation_id"),
        segment=fields.chosen_labels(
            metadata if isinstance(metadata, dict) else {}, settings.segment_keys
        ),
        timestamp=foreign.time(document.get("timestamp"), "timestamp"),
    )


def split(document: Document, settings: IngestSettings) -> Sequence[Document]:
    """A completion with several prompts is several exchanges."""
    request = document.get("request", document)
    if not isinstance(request, dict):
        return (document,)
    inside = "request" in document
    response = document.get("response") if inside else document
    pairs = openai.prompts_of(request, response)
    if pairs is None:
        return (document,)
    if inside:
        return [{**document, "request": ask, "response": told} for ask, told in pairs]
    return [{**ask, **told} if isinstance(told, dict) else ask for ask, told in pairs]


def told(document: Mapping[str, Any]) -> bool:
    return "request" in document


OPENAI: Final = Dialect(name="openai", told=told, read=read, split=split)


def of_api(name: str) -> Dialect:
    """The same records where the setting names the API: nothing else is looked at."""

    def read_as(document: Document, settings: IngestSettings) -> Exchange:
        found = read(document, settings)
        if found.source_format != name:
            raise fields.invalid("record", f"a request or response of {name}", document)
        return found

    return Dialect(name=name, told=told, read=read_as, split=split)
