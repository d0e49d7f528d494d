"""CloudEvents 1.0 on Kafka: the envelope is taken off, its data is any of the other formats.

Binary mode: attributes in ``ce_*`` headers, data in the value. Structured mode: ``content-type``
begins with ``application/cloudevents`` (or the value looks like an envelope), data inside it. A batch
is an array of structured events.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.ingest.foreign import Foreign
from monitor.values.making import quickly_made
from monitor.values.prompts import DeadReason

_STRUCTURED: Final = "application/cloudevents"


@quickly_made
@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What the envelope says of its data; the data's own id and time win over it."""

    data: Any
    event_id: str | None = None
    time: datetime | None = None
    left_out: tuple[str, ...] = ()
    kind: str = ""
    """The event's type."""
    origin: tuple[str, ...] = ()
    """What tells the event's sender from others: its source, and KServe's attributes of the model."""


_ORIGIN: Final = ("source", "namespace", "inferenceservicename", "component", "endpoint")


def is_binary(headers: Mapping[str, bytes]) -> bool:
    return "ce_specversion" in headers


def is_structured(headers: Mapping[str, bytes], document: object) -> bool:
    content_type = headers.get("content-type", b"").lower()
    return content_type.startswith(_STRUCTURED.encode()) or (
        isinstance(document, dict)
        and "specversion" in document
        and ("data" in document or "data_base64" in document or "source" in document)
    )


def from_headers(headers: Mapping[str, bytes], document: Any) -> Envelope:
    """The binary mode: ``document`` is the data already."""
    named = ("specversion", "id", "time", "type", *_ORIGIN)
    read = {key: _header(headers, f"ce_{key}") for key in named}
    _require_version(read["specversion"], "header ce_specversion")
    foreign = Foreign()
    return Envelope(
        data=document,
        event_id=foreign.identifier(read["id"], "header ce_id"),
        left_out=foreign.left_out,
        time=fields.timestamp(read["time"] or None, "header ce_time"),
        kind=read["type"] or "",
        origin=tuple(read[key] or "" for key in _ORIGIN),
    )


def from_document(document: Any, max_nesting: int) -> Envelope:
    """The structured mode. Data may also be base64 (``data_base64``) or a string holding JSON."""
    event = fields.mapping(document, "record")
    _require_version(event.get("specversion"), "specversion")
    foreign = Foreign()
    return Envelope(
        data=_data(event, max_nesting),
        event_id=foreign.identifier(event.get("id"), "id"),
        left_out=foreign.left_out,
        time=fields.timestamp(event.get("time"), "time"),
        kind=_text(event.get("type")),
        origin=tuple(_text(event.get(key)) for key in _ORIGIN),
    )


def _data(event: dict[str, Any], max_nesting: int) -> Any:
    data = event.get("data")
    if data is None and "data_base64" in event:
        encoded = fields.text(event["data_base64"], "data_base64")
        try:
            return fields.decode(
                base64.b64decode(encoded, validate=True), "data_base64", max_nesting
            )
        except (binascii.Error, ValueError):
            raise fields.Unreadable(
                DeadReason.INVALID_FIELD, "data_base64: expected base64 of a JSON document"
            ) from None
    if data is None:
        raise Unreadable(DeadReason.EMPTY, "data: the event carries none")
    if isinstance(data, str) and not data.startswith("data:"):  # which is a streamed response
        return fields.decode(data, "data", max_nesting)
    return data


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _header(headers: Mapping[str, bytes], key: str) -> str | None:
    if key not in headers:
        return None
    try:
        return headers[key].decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable(DeadReason.NOT_UTF8, f"header {key}: not UTF-8") from None


def _require_version(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.startswith("1."):
        raise Unreadable(DeadReason.INVALID_FIELD, f"{where}: expected CloudEvents 1.0")
