"""Record formats → prompts. The one way in: Kafka records and lines of files alike.

The format is told from the Kafka headers first, then from the shape of the document:

    headers ce_specversion or content-type application/cloudevents  → cloudevents
    specversion with data or source                                 → cloudevents (structured)
    resourceSpans, resourceLogs, gen_ai.* attributes or events      → otel
    call_type                                                       → litellm
    request, or messages/prompt with OpenAI's own keys and none of ours → openai
    messages or prompt                                              → native
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

from monitor.ingest import cloudevents, fields, litellm, native, openai, otel
from monitor.ingest.cloudevents import Envelope
from monitor.ingest.fields import Exchange, Skipped, Unreadable
from monitor.ingest.native import NATIVE_SCHEMA_PATH, native_schema
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    DeadLetter,
    DeadReason,
    Parsed,
    Prompt,
    RawRecord,
    RecordKey,
    Skip,
    SkipReason,
)

__all__ = ["NATIVE_SCHEMA_PATH", "native_schema", "parse"]

LARGEST_LEAD: Final = timedelta(days=1)
"""How far a record's own timestamp may lie ahead of the time at which it was appended."""

_OPENAI_PARAMETERS: Final = frozenset(
    {
        *("temperature", "top_p", "n", "stream", "stream_options", "stop", "max_tokens"),
        *("max_completion_tokens", "presence_penalty", "frequency_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "user", "seed", "tools", "tool_choice", "response_format"),
        *("parallel_tool_calls", "metadata", "service_tier", "store", "reasoning_effort"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """``split`` finds the prompts of a document, ``read`` reads one; both refuse by exception."""

    read: Callable[[Any, IngestSettings], Exchange]
    split: Callable[[dict[str, Any]], Sequence[Any]] = lambda document: (document,)


_FORMATS: Final[Mapping[str, _Format]] = MappingProxyType(
    {
        "native": _Format(read=native.read),
        "openai": _Format(read=openai.read),
        "otel": _Format(read=otel.read, split=otel.operations),
        "litellm": _Format(read=litellm.read),
    }
)


def parse(record: RawRecord, settings: IngestSettings) -> tuple[Parsed, ...]:
    """What one record holds: prompts, dead letters and skips, numbered by ``key.index`` from 0.

    Pure and deterministic: a redelivered record gives the same values. Never raises and never
    returns nothing; a record that is refused as a whole gives one value of index 0. Details name the
    field and the fix, never content; which letters carry the record's bytes is said by `letters`.
    """
    try:
        return _parsed(record, settings)
    except (Unreadable, Skipped) as refusal:
        return (_refused(record, 0, refusal),)
    except Exception as defect:  # a defect of ours must cost one record, not the stream
        detail = f"record: {type(defect).__name__} in the reader; report this"
        return (_refused(record, 0, Unreadable(DeadReason.UNKNOWN_FORMAT, detail)),)


def _parsed(record: RawRecord, settings: IngestSettings) -> tuple[Parsed, ...]:
    value = record.value
    if value is None:
        raise Skipped(SkipReason.TOMBSTONE)
    if len(value) > settings.max_record_bytes:
        raise Unreadable(
            DeadReason.OVERSIZE,
            f"record: more than {settings.max_record_bytes} bytes; shorten it or raise ingest.max_record_bytes",
        )
    if not value.strip():
        raise Unreadable(DeadReason.EMPTY, "record: no bytes; send a JSON document")
    document = fields.decode(value, "record", settings.max_nesting)
    headers = {key.lower(): content for key, content in record.headers}
    envelope, name = _opened(headers, document, settings)
    chosen = _FORMATS[name]
    items = chosen.split(fields.mapping(envelope.data, "record"))
    if len(items) > 1:
        envelope = dataclasses.replace(envelope, event_id=None)
    parsed: list[Parsed] = []
    for index, item in enumerate(items):
        try:
            parsed.append(_prompt(record, index, envelope, chosen.read(item, settings), settings))
        except (Unreadable, Skipped) as refusal:
            parsed.append(_refused(record, index, refusal))
    return tuple(parsed)


def _opened(
    headers: Mapping[str, bytes], document: Any, settings: IngestSettings
) -> tuple[Envelope, str]:
    """The data, out of its CloudEvents envelope if it has one, and the name of its format."""
    if settings.format not in ("auto", "cloudevents"):
        return Envelope(data=document), settings.format
    if cloudevents.is_binary(headers):
        envelope = cloudevents.from_headers(headers, document)
    elif settings.format == "cloudevents" or cloudevents.is_structured(headers, document):
        envelope = cloudevents.from_document(headers, document, settings.max_nesting)
    else:
        envelope = Envelope(data=document)
    return envelope, _shape(envelope.data)


def _shape(document: Any) -> str:
    if isinstance(document, dict):
        if otel.is_otel(document):
            return "otel"
        if "call_type" in document:
            return "litellm"
        if "request" in document:
            return "openai"
        if "messages" in document or "prompt" in document:
            ours = not native.OWN_KEYS.isdisjoint(document)
            return "native" if ours or _OPENAI_PARAMETERS.isdisjoint(document) else "openai"
    raise Unreadable(
        DeadReason.UNKNOWN_FORMAT,
        f"record: {fields.kind_of(document)} of no known format; see docs/records.md or set ingest.format",
    )


def _prompt(
    record: RawRecord, index: int, envelope: Envelope, exchange: Exchange, settings: IngestSettings
) -> Prompt:
    if settings.models and not _wanted(exchange.model, settings.models):
        raise Skipped(SkipReason.OTHER_MODEL)
    key = _key(record, index)
    return Prompt(
        key=key,
        recorded_at=_recorded_at(exchange.timestamp or envelope.time, record),
        messages=exchange.messages,
        text=exchange.text,
        response=exchange.response,
        prompt_id=exchange.prompt_id
        or envelope.event_id
        or f"{key.topic}/{key.partition}/{key.offset}/{key.index}",
        conversation_id=exchange.conversation_id,
        model=exchange.model,
        model_revision=exchange.model_revision,
        segment=exchange.segment,
        inclusion_probability=exchange.inclusion_probability,
        source_format=exchange.source_format,
    )


def _wanted(model: str | None, patterns: Sequence[str]) -> bool:
    return model is not None and any(fnmatchcase(model, pattern) for pattern in patterns)


def _recorded_at(own: datetime | None, record: RawRecord) -> datetime:
    """The record's own time, else the time it was appended: both are the same on redelivery.

    An append time out of all reason (brokers without timestamps say 1970) bounds nothing.
    """
    appended = record.timestamp
    sane = fields.EARLIEST <= appended <= fields.LATEST
    if own is None:
        if not sane:
            raise Unreadable(
                DeadReason.BAD_TIMESTAMP, "timestamp: neither the record nor Kafka has one; send it"
            )
        return appended
    if sane and own - appended > LARGEST_LEAD:
        raise Unreadable(
            DeadReason.BAD_TIMESTAMP,
            "timestamp: more than a day after the record was appended; check the sender's clock and zone",
        )
    return own


def _key(record: RawRecord, index: int) -> RecordKey:
    return RecordKey(
        topic=record.topic, partition=record.partition, offset=record.offset, index=index
    )


def _refused(record: RawRecord, index: int, refusal: Unreadable | Skipped) -> DeadLetter | Skip:
    key = _key(record, index)
    if isinstance(refusal, Skipped):
        return Skip(key=key, recorded_at=record.timestamp, reason=refusal.reason)
    return DeadLetter(
        key=key, recorded_at=record.timestamp, reason=refusal.reason, detail=refusal.detail
    )
