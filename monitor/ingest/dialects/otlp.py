"""OTLP/JSON and its plain relatives: spans and log records, wherever they stand in a document.

Source: the OTLP/JSON encoding (camel-case keys, AnyValue objects, times in nanoseconds), the console
exporter's spans, and flat events with attributes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.fields import Unreadable
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason

ENVELOPES: Final = (
    ("resourceSpans", "scopeSpans", "spans"),
    ("resourceLogs", "scopeLogs", "logRecords"),
)
ENTRIES: Final = 10_000
"""Most spans or log records of one document, with what they are grouped in; and most events of a span."""
_Object = tuple[str, dict[str, Any]]
"""With its path, which ends in a dot."""
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One span or log record. ``own`` are its attributes as plain values, ``shared`` its resource's."""

    where: str
    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    body: Any
    document: Mapping[str, Any]


def is_enveloped(document: Mapping[str, Any]) -> bool:
    return any(outer in document for outer, _, _ in ENVELOPES) or "resourceMetrics" in document


def entries(document: dict[str, Any]) -> Iterator[Entry]:
    if not is_enveloped(document):
        yield _entry(document, {}, "")
        return
    counted = _Counted()
    for outer, middle, inner in ENVELOPES:
        for at, group in counted(_objects(document, outer, "")):
            resource = fields.mapping(group.get("resource") or {}, f"{at}resource")
            shared = attributes(resource.get("attributes"))
            for inside, scope in counted(_objects(group, middle, at)):
                for where, entry in counted(_objects(scope, inner, inside)):
                    yield _entry(entry, shared, where)


class _Counted:
    """Passes objects on, and refuses a document in which they are more than `ENTRIES` together."""

    def __init__(self) -> None:
        self._found = 0

    def __call__(self, objects: Iterator[_Object]) -> Iterator[_Object]:
        for one in objects:
            self._found += 1
            fields.within(self._found, ENTRIES, "record", "spans or log records")
            yield one


def _entry(document: dict[str, Any], shared: Mapping[str, Any], where: str) -> Entry:
    own = {key: value for key, value in document.items() if key.startswith("gen_ai.")}
    own |= attributes(document.get("attributes"))
    body = plain(document.get("body"))
    if isinstance(body, dict):
        own = {key: value for key, value in body.items() if key.startswith("gen_ai.")} | own
    return Entry(where=where, own=own, shared=shared, body=body, document=document)


def _objects(parent: dict[str, Any], key: str, where: str) -> Iterator[_Object]:
    """The objects of the list under ``key``."""
    listed = parent.get(key)
    if listed is None:
        return
    for index, entry in enumerate(fields.sequence(listed, where + key)):
        path = f"{where}{key}[{index}]"
        yield f"{path}.", fields.mapping(entry, path)


def events(entry: Entry) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events inside of a span: their names and attributes."""
    listed = entry.document.get("events")
    given = listed if isinstance(listed, list) else []
    fields.within(len(given), ENTRIES, f"{entry.where}events", "events")
    for event in given:
        if isinstance(event, dict) and isinstance(event.get("name"), str):
            yield event["name"], attributes(event.get("attributes"))


def attributes(value: object) -> dict[str, Any]:
    """OTLP's list of ``{key, value: AnyValue}``, or a plain map; anything else holds none."""
    match value:
        case dict():
            return value
        case list():
            return {
                item["key"]: plain(item.get("value"))
                for item in value
                if isinstance(item, dict) and isinstance(item.get("key"), str)
            }
    return {}


def plain(value: Any) -> Any:
    """An OTLP AnyValue as the plain value it stands for; what is no AnyValue stays as it is."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "stringValue" | "boolValue" | "doubleValue" | "bytesValue":
            return inner
        case "intValue":
            return integer(inner)
        case "arrayValue" if isinstance(inner, dict):
            values = inner.get("values", [])
            return [plain(item) for item in values] if isinstance(values, list) else values
        case "kvlistValue" if isinstance(inner, dict):
            return attributes(inner.get("values", []))
    return value


def integer(value: Any) -> Any:
    """OTLP/JSON writes 64-bit integers as decimal strings, and takes numbers too."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value


def indexed(given: Mapping[str, Any], prefix: str, limit: int) -> list[dict[str, Any]]:
    """Attributes ``prefix.N.rest`` as a list of maps of ``rest``, in the order of N.

    The numbers are names here: a record may not make us count to its largest.
    """
    found: dict[int, dict[str, Any]] = {}
    for key, value in given.items():
        if not key.startswith(prefix):
            continue
        number, _, rest = key[len(prefix) :].partition(".")
        if number.isascii() and number.isdigit() and len(number) <= 9:
            found.setdefault(int(number), {})[rest] = value
    fields.within(len(found), limit, prefix.rstrip("."), "entries")
    return [found[number] for number in sorted(found)]


def span_id(entry: Entry) -> str | None:
    """``trace/span``, where the entry names both."""
    return None if (found := ids(entry)) is None else "/".join(found)


def ids(entry: Entry) -> tuple[str, str] | None:
    """The trace and the span of the entry, where it names both."""
    about: Mapping[str, Any] = entry.document
    context = about.get("context")
    if isinstance(context, dict):
        about = context
    trace = about.get("traceId", about.get("trace_id"))
    span = about.get("spanId", about.get("span_id"))
    if not (isinstance(trace, str) and isinstance(span, str) and trace and span):
        return None
    return trace, span


def time(entry: Entry) -> datetime | None:
    """When the operation ended, or was observed; 0 means unknown in OTLP."""
    for key in ("endTimeUnixNano", "timeUnixNano", "startTimeUnixNano", "observedTimeUnixNano"):
        value = integer(entry.document.get(key))
        if value in (None, 0, ""):
            continue
        where = entry.where + key
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(DeadReason.BAD_TIMESTAMP, f"{where}: expected nanoseconds since 1970")
        return fields.from_unix(value / 1e9, where)
    for key in ("end_time", "timestamp", "start_time"):
        if entry.document.get(key) is not None:
            return fields.timestamp(entry.document[key], entry.where + key)
    return None


def labels(entry: Entry, settings: IngestSettings) -> dict[str, str]:
    """Segments from the resource and from the span, whose own win."""
    shared = fields.chosen_labels(entry.shared, settings.segment_keys)
    return shared | fields.chosen_labels(entry.own, settings.segment_keys)
