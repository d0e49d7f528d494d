"""SageMaker's data capture: the bodies that went in and out of an endpoint."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.dialects import api
from monitor.ingest.dialects.dialect import Dialect, Document
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.foreign import Foreign
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason, SkipReason


def read(document: Document, settings: IngestSettings) -> Exchange:
    """Bodies are JSON as text, or base64 of it. A model that takes no prompt is NOT_A_PROMPT."""
    capture = fields.mapping(document.get("captureData"), "captureData")
    sent = _body(capture, "endpointInput")
    if sent is None:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    at = "captureData.endpointInput.data"
    if not fields.looks_like_json(sent):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    opened = fields.opened(sent, at, settings.max_nesting, "capture whole bodies")
    request = fields.mapping(opened, at)
    if all(request.get(key) is None for key in api.REQUEST_KEYS):
        raise Skipped(SkipReason.NOT_A_PROMPT)
    response: Any = _body(capture, "endpointOutput")
    if isinstance(response, str) and response.lstrip()[:1] == "[":
        response = fields.opened(
            response,
            "captureData.endpointOutput.data",
            settings.max_nesting,
            "capture whole bodies",
        )
    about = document.get("eventMetadata")
    event: dict[str, Any] = about if isinstance(about, dict) else {}
    foreign = Foreign()
    return api.exchange(
        "sagemaker",
        api.Pair(
            request=request,
            response=response,
            request_at=f"{at}.",
            response_at="captureData.endpointOutput.data",
        ),
        foreign,
        settings.max_nesting,
        prompt_id=foreign.first_name(event, "eventMetadata.", "inferenceId", "eventId"),
        timestamp=foreign.time(event.get("inferenceTime"), "eventMetadata.inferenceTime"),
    )


def _body(capture: Mapping[str, Any], key: str) -> str | None:
    side = capture.get(key)
    if side is None:
        return None
    inner = fields.mapping(side, f"captureData.{key}")
    at = f"captureData.{key}.data"
    data = inner.get("data")
    if data is None:
        return None
    text = fields.text(data, at)
    if inner.get("encoding") == "BASE64":
        try:
            return base64.b64decode(text, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise Unreadable(
                DeadReason.INVALID_FIELD, f"{at}: expected base64 of text in UTF-8"
            ) from None
    return text


def told(document: Mapping[str, Any]) -> bool:
    return "captureData" in document


SAGEMAKER: Final = Dialect(name="sagemaker", told=told, read=read)
