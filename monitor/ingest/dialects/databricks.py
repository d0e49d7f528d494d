"""Databricks inference tables: request and response as JSON strings."""

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
    """``sampling_fraction`` is the sampling probability. Tabular models are NOT_A_PROMPT."""
    if document.get("request") in (None, ""):
        raise Skipped(SkipReason.CONTENT_REDACTED)
    help = "the table holds payloads up to 1 MiB"
    request = fields.mapping(
        fields.opened(document["request"], "request", settings.max_nesting, help), "request"
    )
    if all(request.get(key) is None for key in api.REQUEST_KEYS):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    foreign = Foreign()
    metadata = document.get("request_metadata")
    named: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    fraction = document.get("sampling_fraction")
    return api.exchange(
        "databricks",
        api.Pair(request=request, response=document.get("response"), request_at="request."),
        foreign,
        settings.max_nesting,
        prompt_id=foreign.first_name(document, "", "databricks_request_id", "client_request_id"),
        model=foreign.name(named.get("model_name"), "request_metadata.model_name"),
        model_revision=foreign.name(named.get("model_version"), "request_metadata.model_version"),
        inclusion_probability=None
        if fraction is None
        else fields.probability(fraction, "sampling_fraction"),
        segment=fields.chosen_labels(document, settings.segment_keys) or None,
        timestamp=foreign.database_time(document.get("request_time"), "request_time")
        or foreign.milliseconds(document.get("timestamp_ms"), "timestamp_ms"),
    )


def told(document: Mapping[str, Any]) -> bool:
    return "databricks_request_id" in document


DATABRICKS: Final = Dialect(name="databricks", told=told, read=read)
