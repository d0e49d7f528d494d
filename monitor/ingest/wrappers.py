"""What a record may be wrapped in, taken off before its dialect is told.

Bytes: gzip, base64, the 5-byte frame of Confluent's serializers, OTLP in protobuf. Documents: JSON in a string, Kafka
Connect's ``{schema, payload}``, Fluent Bit's ``log``, CloudEvents, lines, and arrays, of which every
element is a document of its own. All is bounded: what comes out of compression is no larger in all than
a record may be, wrappers lie at most `LAYERS` deep, and a record holds at most `DOCUMENTS` documents.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from typing import Any, Final

from monitor.ingest import cloudevents, fields, otlp_proto
from monitor.ingest.cloudevents import Envelope
from monitor.ingest.fields import Unreadable
from monitor.ingest.frames.registry import ReadFrame, no_registry
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason

LAYERS: Final = 4
DOCUMENTS: Final = 10_000
_GZIP: Final = b"\x1f\x8b"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}\s*")
_JSON_STARTS: Final = (b"{", b"[", b'"')
_FRAME_BYTES: Final = 5
_WRAPPING: Final = frozenset({"schema", "payload", "log", "specversion"})
_EVENT_HEADERS: Final = frozenset({"ce_specversion", "content-type"})
_LOG_KEYS: Final = 32
"""A log line has a few keys beside ``log``; a wider object is a document."""
_OWN_CONTENT: Final = frozenset({"messages", "prompt", "request", "call_type", "input", "contents"})


def documents(
    value: bytes,
    headers: Mapping[str, bytes],
    settings: IngestSettings,
    *,
    events: bool,
    read_frame: ReadFrame = no_registry,
) -> list[Envelope | Unreadable]:
    """The documents of a record, each with what an envelope said of it, or why it is refused.

    ``events``: take off CloudEvents envelopes too. Raises Unreadable for the record as a whole, and
    `RegistryUnavailable` where ``read_frame`` does.
    """
    if value[:1] == b"{" and headers.keys().isdisjoint(_EVENT_HEADERS):
        try:
            document = fields.decode(value, "record", settings.max_nesting)
        except Unreadable:
            pass  # what it is instead is found out below
        else:
            if document.keys().isdisjoint(_WRAPPING):  # the commonest record: one bare object
                return [Envelope(data=document)]
    if events and value[:5] == b"data:" and cloudevents.is_binary(headers):
        text = fields.text_of(value, "record")  # a streamed response, as KServe logs it
        return [cloudevents.from_headers(headers, text)]
    opening = _Opening(settings, read_frame)
    found: list[Envelope | Unreadable] = []
    for element in opening.elements(value):
        try:
            found.append(_opened(opening.unwrapped(element), headers, settings, events=events))
        except Unreadable as refusal:
            found.append(refusal)
    return found


def _opened(
    document: Any, headers: Mapping[str, bytes], settings: IngestSettings, *, events: bool
) -> Envelope:
    if not events:
        return Envelope(data=document)
    if cloudevents.is_binary(headers):
        return cloudevents.from_headers(headers, document)
    if not cloudevents.is_structured(headers, document):
        return Envelope(data=document)
    return cloudevents.from_document(document, settings.max_nesting)


class _Opening:
    """Opens one record; what its compressed bodies come to is counted together."""

    def __init__(self, settings: IngestSettings, read_frame: ReadFrame) -> None:
        self._read_frame = read_frame
        self._nesting = settings.max_nesting
        self._limit = settings.max_record_bytes
        self._left = settings.max_record_bytes
        self._structures = 0

    def elements(self, value: bytes) -> list[Any]:
        """The elements of an array of documents; anything else is one document."""
        document = self.unwrapped(self._content(value))
        if not isinstance(document, list):
            return [document]
        if not document or not isinstance(document[0], dict | str):
            return [document]
        if isinstance(document[0], dict) and "role" in document[0]:
            raise fields.not_read("a list of messages by itself", 'send {"messages": […]}')
        fields.within(len(document), DOCUMENTS, "record", "documents")
        return document

    def unwrapped(self, document: Any) -> Any:
        for _ in range(LAYERS):
            if isinstance(document, str):
                inner = document.encode()
                body = _from_base64(inner)
                if body is None and inner.lstrip()[:1] not in _JSON_STARTS:
                    return document
                document = self._decoded(inner) if body is None else self._content(body)
            elif not isinstance(document, dict) or len(document) > _LOG_KEYS:
                return document
            elif document.keys() == {"schema", "payload"}:
                document = document["payload"]
            elif _is_log_line(document):
                document = document["log"]
            else:
                return document
        raise _too_many_layers()

    def _content(self, value: bytes) -> Any:
        """The document in the bytes, behind what they are packed in."""
        for _ in range(LAYERS):
            if value[:1] in _JSON_STARTS:
                break
            if value[:2] == _GZIP:
                value = self._inflated(value)
            elif value[:1] == b"\x00" and value.strip(b"\x00"):
                schema, value = value[1:_FRAME_BYTES], value[_FRAME_BYTES:]
                if value.lstrip()[:1] not in _JSON_STARTS:
                    return self._read_frame(int.from_bytes(schema), value)
            elif (inner := _from_base64(value)) is not None:
                value = inner
            else:
                break
        else:
            raise _too_many_layers()
        return self._decoded(value)

    def _inflated(self, value: bytes) -> bytes:
        """The content of a gzip body; never more than what is left of the limit is made of it."""
        machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            content = machine.decompress(value, self._left + 1)
        except zlib.error:
            raise Unreadable(DeadReason.NOT_UTF8, "record: gzip that does not decompress") from None
        if len(content) > self._left:
            raise Unreadable(
                DeadReason.OVERSIZE,
                f"record: more than {self._limit} bytes when decompressed; shorten it or raise ingest.max_record_bytes",
            )
        if not machine.eof:
            raise fields.truncated("record", "its gzip body does not end")
        self._left -= len(content)
        return content

    def _decoded(self, body: bytes) -> Any:
        """The JSON in the bytes; several documents on lines of their own are a list of them."""
        try:
            return self._counted(body)
        except Unreadable as refusal:
            if refusal.reason in (DeadReason.TOO_DEEP, DeadReason.OVERSIZE):
                raise
            if (telemetry := otlp_proto.document(body)) is not None:
                return telemetry
            lines = [line for line in body.split(b"\n", DOCUMENTS + 1) if line.strip()]
            if len(lines) < 2 or not all(line.lstrip()[:1] == b"{" for line in lines):
                raise _named(body) or refusal from None
            return [self._counted(line) for line in lines]

    def _counted(self, body: bytes) -> Any:
        """One document; all of a record's together are made of at most `fields.STRUCTURES`."""
        document = fields.decode(body, "record", self._nesting)
        self._structures += fields.structures(document, "record", self._nesting)
        fields.within(self._structures, fields.STRUCTURES, "record", "arrays and objects")
        return document


def _too_many_layers() -> Unreadable:
    return Unreadable(
        DeadReason.TOO_DEEP, f"record: more than {LAYERS} wrappers inside each other; send it bare"
    )


def _from_base64(value: bytes) -> bytes | None:
    """The content of a base64 body, when it is JSON or gzip: other letters are not taken for base64."""
    if value[:1] in _JSON_STARTS or not _BASE64.fullmatch(value):
        return None
    try:
        inner = base64.b64decode(value.strip(), altchars=b"-_" if _is_url_safe(value) else None)
    except (binascii.Error, ValueError):
        return None
    return inner if inner.lstrip()[:1] in _JSON_STARTS or inner[:2] == _GZIP else None


def _is_url_safe(value: bytes) -> bool:
    return b"-" in value or b"_" in value


def _named(body: bytes) -> Unreadable | None:
    """What a body is that is not JSON, where that can be told."""
    if body[:2] == b"{'" or body[:3] == b"[{'":
        return Unreadable(DeadReason.NOT_JSON, "record: a Python repr, not JSON; send JSON")
    if body[:4] == b"Obj\x01":
        return fields.not_read("an Avro file", "send JSON")
    return None


def _is_log_line(document: dict[str, Any]) -> bool:
    """Fluent Bit's ``log``: a line of a container's output that holds a document."""
    line = document.get("log")
    if isinstance(line, str):
        return fields.looks_like_json(line) and _OWN_CONTENT.isdisjoint(document)
    return isinstance(line, dict) and _OWN_CONTENT.isdisjoint(document)
