"""OpenTelemetry GenAI as JSON: spans and events of the collector's ``otlp_json``, or one flat event.

Source: OpenTelemetry semantic conventions for generative AI (the event
``gen_ai.client.inference.operation.details`` and the ``gen_ai.*`` span attributes, content opted in)
and the OTLP/JSON encoding of the protocol (camel-case keys, AnyValue objects, times in nanoseconds).
One message may carry many operations, and among them much that is no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from monitor.ingest import chat, fields
from monitor.ingest.fields import Exchange, Skipped, Unreadable
from monitor.settings import IngestSettings
from monitor.values.prompts import DeadReason, Message, SkipReason

INFERENCE_EVENT: Final = "gen_ai.client.inference.operation.details"
OPERATIONS: Final = frozenset({"chat", "text_completion", "generate_content"})
"""Operations that are one exchange with the model. Others (agents, tools, embeddings) enclose or
follow these and would count their content twice."""

_OPERATION: Final = "gen_ai.operation.name"
_INPUT: Final = "gen_ai.input.messages"
_OUTPUT: Final = "gen_ai.output.messages"
_SYSTEM: Final = "gen_ai.system_instructions"
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_ENVELOPES: Final = (
    ("resourceSpans", "scopeSpans", "spans"),
    ("resourceLogs", "scopeLogs", "logRecords"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One inference as it stands in the document. ``attributes`` are plain values, later sources
    (span, its inference event, a log's body) over earlier ones (resource)."""

    where: str
    attributes: Mapping[str, Any]
    entry: Mapping[str, Any]


def is_otel(document: Mapping[str, Any]) -> bool:
    if any(outer in document for outer, _, _ in _ENVELOPES) or _event_name(document) is not None:
        return True
    return any(
        key.startswith("gen_ai.") for key in (*document, *_attributes(document.get("attributes")))
    )


def operations(document: dict[str, Any]) -> tuple[Operation, ...]:
    """The inferences of a message, in order. None at all is NOT_A_PROMPT."""
    if any(outer in document for outer, _, _ in _ENVELOPES):
        found = tuple(_walk(document))
    else:
        found = tuple(_candidates(document, {}, ""))
    if not found:
        raise Skipped(SkipReason.NOT_A_PROMPT)
    return found


def read(operation: Operation, settings: IngestSettings) -> Exchange:
    """One inference. Content is opt-in: without it the operation is CONTENT_REDACTED.

    Of several output messages the first is read. Reasoning parts are left out. An operation
    ``text_completion`` with one user message is a raw prompt.
    """
    attributes, at = operation.attributes, operation.where
    given = _content(attributes.get(_INPUT), at + _INPUT, settings)
    if given is None:
        raise Skipped(SkipReason.CONTENT_REDACTED)
    outputs = _messages(_content(attributes.get(_OUTPUT), at + _OUTPUT, settings), at + _OUTPUT)
    instructions = _instructions(attributes.get(_SYSTEM), at + _SYSTEM, settings)
    messages, response = chat.turns(
        instructions + _messages(given, at + _INPUT),
        outputs[0].content if outputs else None,
        at + _INPUT,
    )
    text = None
    if (
        attributes.get(_OPERATION) == "text_completion"
        and len(messages) == 1
        and messages[0].role == "user"
    ):
        text, messages = messages[0].content, ()

    def named(key: str) -> str | None:
        return fields.name(attributes.get(key), at + key)

    return Exchange(
        source_format="otel",
        messages=messages,
        text=text,
        response=response,
        prompt_id=named("gen_ai.response.id") or _span_name(operation),
        conversation_id=named("gen_ai.conversation.id"),
        model=named("gen_ai.response.model") or named("gen_ai.request.model"),
        segment=fields.chosen_labels(attributes, settings.segment_keys),
        timestamp=_time(operation),
    )


def _walk(document: dict[str, Any]) -> Iterator[Operation]:
    for outer, middle, inner in _ENVELOPES:
        for at, group in _objects(document, outer, ""):
            resource = fields.mapping(group.get("resource") or {}, f"{at}resource")
            shared = _attributes(resource.get("attributes"))
            for inside, scope in _objects(group, middle, at):
                for where, entry in _objects(scope, inner, inside):
                    yield from _candidates(entry, shared, where)


def _objects(parent: dict[str, Any], key: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list under ``key``, each with its path, which ends in a dot."""
    listed = parent.get(key)
    if listed is None:
        return
    for index, entry in enumerate(fields.sequence(listed, where + key)):
        path = f"{where}{key}[{index}]"
        yield f"{path}.", fields.mapping(entry, path)


def _candidates(
    entry: dict[str, Any], shared: Mapping[str, Any], where: str
) -> Iterator[Operation]:
    """The entry as an operation, if it is one we read; anything else is passed over."""
    own = {key: value for key, value in entry.items() if key.startswith("gen_ai.")}
    own |= _attributes(entry.get("attributes"))
    body = _plain(entry.get("body"))
    if isinstance(body, dict):
        own = {key: value for key, value in body.items() if key.startswith("gen_ai.")} | own
    event = _event_name(entry) or own.get("event.name")
    events = entry.get("events")
    for inner in events if isinstance(events, list) else ():
        if isinstance(inner, dict) and inner.get("name") == INFERENCE_EVENT:
            own |= _attributes(inner.get("attributes"))
            event = INFERENCE_EVENT
    operation = own.get(_OPERATION)
    wanted = (
        operation in OPERATIONS
        if isinstance(operation, str)
        else event == INFERENCE_EVENT or _INPUT in own
    )
    if wanted and event in (None, INFERENCE_EVENT):
        yield Operation(where=where, attributes={**shared, **own}, entry=entry)


def _event_name(entry: Mapping[str, Any]) -> str | None:
    """The name of a GenAI event. ``name`` is free text on spans: it counts only in full."""
    for key in ("eventName", "event_name", "event.name"):
        value = entry.get(key)
        if isinstance(value, str) and value.startswith("gen_ai."):
            return value
    return INFERENCE_EVENT if entry.get("name") == INFERENCE_EVENT else None


def _attributes(value: object) -> dict[str, Any]:
    """OTLP's list of ``{key, value: AnyValue}``, or a plain map; anything else holds none."""
    match value:
        case dict():
            return value
        case list():
            return {
                item["key"]: _plain(item.get("value"))
                for item in value
                if isinstance(item, dict) and isinstance(item.get("key"), str)
            }
    return {}


def _plain(value: Any) -> Any:
    """An OTLP AnyValue as the plain value it stands for; what is no AnyValue stays as it is."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "stringValue" | "boolValue" | "doubleValue" | "bytesValue":
            return inner
        case "intValue":
            return _integer(inner)
        case "arrayValue" if isinstance(inner, dict):
            values = inner.get("values", [])
            return [_plain(item) for item in values] if isinstance(values, list) else values
        case "kvlistValue" if isinstance(inner, dict):
            return _attributes(inner.get("values", []))
    return value


def _integer(value: Any) -> Any:
    """OTLP/JSON writes 64-bit integers as decimal strings, and takes numbers too."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value


def _content(value: Any, where: str, settings: IngestSettings) -> Any:
    """Content is structured on events and may be a JSON string on spans."""
    if not isinstance(value, str):
        return value
    try:
        return fields.decode(value, where, settings.max_nesting)
    except Unreadable as error:
        if error.reason is not DeadReason.NOT_JSON:
            raise
        raise Unreadable(
            DeadReason.INVALID_FIELD,
            f"{where}: not whole JSON; raise the attribute length limit of the SDK or collector",
        ) from None


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if value is None:
        return ()
    return tuple(
        _message(entry, f"{where}[{index}]")
        for index, entry in enumerate(fields.sequence(value, where))
    )


def _message(value: object, where: str) -> Message:
    entry = fields.mapping(value, where)
    if "parts" not in entry:
        return chat.message(entry, where)
    return Message(
        role=chat.role(entry.get("role"), f"{where}.role"),
        content=_parts(entry["parts"], f"{where}.parts"),
    )


def _parts(value: object, where: str) -> str:
    parts = (
        _part(part, f"{where}[{index}]") for index, part in enumerate(fields.sequence(value, where))
    )
    return "\n".join(part for part in parts if part)


def _part(value: object, where: str) -> str:
    part = fields.mapping(value, where)
    match part.get("type"):
        case "text":
            return fields.text(part.get("content"), f"{where}.content")
        case "tool_call":
            called = fields.text(part.get("name"), f"{where}.name")
            return chat.tool_call(called, part.get("arguments"))
        case "tool_call_response":
            result = part.get("response", part.get("result"))
            return result if isinstance(result, str) else chat.plain(result)
        case str():
            return ""
    raise fields.invalid(f"{where}.type", "a string", part.get("type"))


def _instructions(value: Any, where: str, settings: IngestSettings) -> tuple[Message, ...]:
    """System instructions: a list of parts, the same as a JSON string, or bare text."""
    if value is None:
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        content = value
    else:
        content = _parts(_content(value, where, settings), where)
    return (Message(role="system", content=content),) if content else ()


def _span_name(operation: Operation) -> str | None:
    entry = operation.entry
    trace, span = (
        entry.get("traceId", entry.get("trace_id")),
        entry.get("spanId", entry.get("span_id")),
    )
    if not (isinstance(trace, str) and isinstance(span, str) and trace and span):
        return None
    return fields.name(f"{trace}/{span}", f"{operation.where}traceId")


def _time(operation: Operation) -> datetime | None:
    """When the operation ended, or was observed; 0 means unknown in OTLP."""
    for key in ("endTimeUnixNano", "timeUnixNano", "startTimeUnixNano", "observedTimeUnixNano"):
        value = _integer(operation.entry.get(key))
        if value in (None, 0, ""):
            continue
        where = operation.where + key
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(DeadReason.BAD_TIMESTAMP, f"{where}: expected nanoseconds since 1970")
        return fields.from_unix(value / 1e9, where)
    for key in ("end_time", "timestamp", "start_time"):
        if operation.entry.get(key) is not None:
            return fields.timestamp(operation.entry[key], operation.where + key)
    return None
