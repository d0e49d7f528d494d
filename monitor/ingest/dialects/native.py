"""Our own record format; its JSON Schema is `NATIVE_SCHEMA_PATH`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from monitor.ingest import fields, parameters
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Unreadable
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason

NATIVE_SCHEMA_PATH: Final = Path(__file__).parent.with_name("native.schema.json")
OWN_KEYS: Final = frozenset(
    {
        *("response", "id", "conversation_id", "model_revision", "timestamp", "segment"),
        "sampling_probability",
    }
)
"""Keys that an OpenAI request does not have: with any of them a record with messages is ours."""
_OF_OTHERS: Final = frozenset(api.REQUEST_KEYS) - {"messages", "prompt"}
"""Keys that hold what was asked in other APIs. Here they are unknown, hence passed over."""


def native_schema() -> dict[str, Any]:
    """The published JSON Schema (draft 2020-12) of the native format."""
    schema: dict[str, Any] = json.loads(NATIVE_SCHEMA_PATH.read_text(encoding="utf-8"))
    return schema


def read(document: Document, settings: IngestSettings) -> Exchange:
    """``messages`` or ``prompt``, and everything else optional; unknown keys are passed over.

    Names and times are strict here: the format is ours. Null is absent: a chat without a response ends
    with its answer. A response may be the object of any API; its id and names are taken where the record
    has none.
    """
    given, prompt = document.get("messages"), document.get("prompt")
    if (given is None) == (prompt is None):
        raise Unreadable(
            DeadReason.INVALID_FIELD, "messages: expected either messages or prompt, and not both"
        )
    request = document
    if not document.keys().isdisjoint(_OF_OTHERS):
        request = {key: value for key, value in document.items() if key not in _OF_OTHERS}
    if given is None:
        fields.text(prompt, "prompt")
    else:
        fields.sequence(given, "messages")
    served = document.get("response")
    asked, answer, response = api.read(
        api.Pair(
            request=request,
            response=served,
            logged=served is not None,
            continues=api.is_anthropic(document, served),
            spoken=True,
        ),
        settings.max_nesting,
    )
    foreign = Foreign()
    return Exchange(
        source_format="native",
        asked=asked,
        answer=answer,
        counts=answer.counts or parameters.counts(document.get("usage")),
        sampling=parameters.sampling(asked.parameters, answer.finish_reason),
        prompt_id=fields.name(document.get("id"), "id")
        or foreign.identifier(response.get("id"), "response.id"),
        conversation_id=fields.name(document.get("conversation_id"), "conversation_id"),
        model=fields.name(document.get("model"), "model")
        or foreign.name(response.get("model"), "response.model"),
        model_revision=fields.name(document.get("model_revision"), "model_revision")
        or foreign.name(response.get("system_fingerprint"), "response.system_fingerprint"),
        segment=fields.segment(document.get("segment"), "segment"),
        inclusion_probability=fields.probability(
            document.get("sampling_probability"), "sampling_probability"
        ),
        timestamp=fields.timestamp(document.get("timestamp"), "timestamp"),
        left_out=foreign.left_out,
    )


def told(document: Mapping[str, Any]) -> bool:
    return "messages" in document or "prompt" in document


NATIVE: Final = Dialect(name="native", told=told, read=read)
