"""Record formats → prompts. The one way in: Kafka records and lines of files alike.

Wrappers come off (`wrappers`), each document is told by its shape (`dialects.telling`), taken apart
into its exchanges and read by its dialect; what that found becomes a `Prompt` here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

from monitor.ingest import fields, wrappers
from monitor.ingest.cloudevents import Envelope
from monitor.ingest.dialects.native import NATIVE_SCHEMA_PATH, native_schema
from monitor.ingest.dialects.telling import DIALECTS, told
from monitor.ingest.exchange import Exchange
from monitor.ingest.fields import Skipped, Unreadable
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

PROMPTS: Final = 10_000
"""Most exchanges in one record."""

_Found = tuple[Envelope, Exchange] | Unreadable | Skipped


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
    headers = {key.lower(): content for key, content in record.headers}
    events = settings.format in ("auto", "cloudevents")
    parsed: list[Parsed] = []
    for opened in wrappers.documents(value, headers, settings, events=events):
        for found in _exchanges(opened, settings):
            fields.within(len(parsed) + 1, PROMPTS, "record", "exchanges")
            parsed.append(_outcome(record, len(parsed), found, settings))
    return tuple(parsed)


def _exchanges(opened: Envelope | Unreadable, settings: IngestSettings) -> Iterator[_Found]:
    """The exchanges of one document, or why there are none."""
    if isinstance(opened, Unreadable):
        yield opened
        return
    try:
        forced = DIALECTS.get(settings.format)
        dialect = told(opened.data) if forced is None else forced
        items = dialect.split(fields.mapping(opened.data, "record"), settings)
    except (Unreadable, Skipped) as refusal:
        yield refusal
        return
    if len(items) > 1:
        opened = dataclasses.replace(opened, event_id=None)
    for item in items:
        try:
            yield opened, dialect.read(item, settings)
        except (Unreadable, Skipped) as refusal:
            yield refusal


def _outcome(record: RawRecord, index: int, found: _Found, settings: IngestSettings) -> Parsed:
    if not isinstance(found, tuple):
        return _refused(record, index, found)
    try:
        return _prompt(record, index, *found, settings)
    except (Unreadable, Skipped) as refusal:
        return _refused(record, index, refusal)


def _prompt(
    record: RawRecord, index: int, envelope: Envelope, exchange: Exchange, settings: IngestSettings
) -> Prompt:
    if settings.models and not _wanted(exchange.model, settings.models):
        raise Skipped(SkipReason.OTHER_MODEL)
    key = _key(record, index)
    asked, answer = exchange.asked, exchange.answer
    return Prompt(
        key=key,
        recorded_at=_recorded_at(exchange.timestamp or envelope.time, record),
        messages=asked.messages,
        text=asked.text,
        token_ids=asked.token_ids,
        response=answer.text or None,
        reasoning=answer.reasoning or None,
        tool_calls=answer.tool_calls,
        continues=asked.continues,
        tools=asked.tools,
        template_options=asked.template_options,
        special_tokens=asked.special_tokens,
        media_left_out=asked.media or answer.media,
        served=exchange.counts,
        sampling=exchange.sampling,
        prompt_id=exchange.prompt_id
        or envelope.event_id
        or f"{key.topic}/{key.partition}/{key.offset}/{key.index}",
        conversation_id=exchange.conversation_id,
        model=exchange.model,
        model_revision=exchange.model_revision,
        segment=exchange.segment,
        inclusion_probability=exchange.inclusion_probability,
        source_format=exchange.source_format,
        left_out=(*exchange.left_out, *envelope.left_out),
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
