"""Record formats → prompts. The one way in: Kafka records and lines of files alike.

Wrappers come off (`wrappers`), each document is told by its shape (`dialects.telling`), taken apart
into its exchanges and read by its dialect; what that found becomes a `Prompt` here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final

import orjson

from monitor.errors import Retry
from monitor.ingest import fields, wrappers
from monitor.ingest.cloudevents import Envelope
from monitor.ingest.dialects import kserve
from monitor.ingest.dialects.native import NATIVE_SCHEMA_PATH, native_schema
from monitor.ingest.dialects.telling import DIALECTS, JOINED, told
from monitor.ingest.exchange import Exchange, Piece
from monitor.ingest.fields import Skipped, Unreadable
from monitor.ingest.frames.registry import ReadFrame, no_registry
from monitor.settings import IngestSettings
from monitor.values.prompts import (
    BATCH_BYTES,
    DeadLetter,
    DeadReason,
    Half,
    Parsed,
    Prompt,
    RawRecord,
    RecordKey,
    Skip,
    SkipReason,
)

__all__ = ["NATIVE_SCHEMA_PATH", "joined", "native_schema", "parse"]

LARGEST_LEAD: Final = timedelta(days=1)
"""How far a record's own timestamp may lie ahead of the time at which it was appended."""

PROMPTS: Final = 10_000
"""Most exchanges in one record."""

_Found = tuple[Envelope, Exchange | Piece] | Unreadable | Skipped


def parse(
    record: RawRecord, settings: IngestSettings, read_frame: ReadFrame = no_registry
) -> tuple[Parsed | Half, ...]:
    """What one record holds: prompts, dead letters, skips, and parts of exchanges whose rest is in other
    records (see `joining`), numbered by ``key.index`` from 0.

    Pure and deterministic: a redelivered record gives the same values. Raises nothing but what
    ``read_frame`` may (`RegistryUnavailable`), and never returns nothing; a record that is refused as a whole gives one value of index 0. Details name the
    field and the fix, never content; which letters carry the record's bytes is said by `letters`.
    """
    try:
        return _parsed(record, settings, read_frame)
    except Retry:
        raise
    except (Unreadable, Skipped) as refusal:
        return (_refused(_key(record, 0), record.timestamp, refusal),)
    except Exception as defect:  # a defect of ours must cost one record, not the stream
        return (_refused(_key(record, 0), record.timestamp, _of_defect(defect)),)


def joined(halves: Sequence[Half], closing: Half, settings: IngestSettings) -> Parsed:
    """The exchange whose parts these are, in their order, under the key of the one that closed it.

    Never raises, as `parse`.
    """
    key, appended = closing.key, closing.recorded_at
    try:
        contents = [orjson.loads(half.content) for half in halves]
        times = [fields.timestamp(one["time"], "time") for one in contents]
        envelope = Envelope(data=None, time=times[-1])
        read = JOINED[contents[0]["dialect"]]
        exchange = read([one["content"] for one in contents], settings)
        return _prompt(key, appended, envelope, exchange, settings)
    except (Unreadable, Skipped) as refusal:
        return _refused(key, appended, refusal)
    except Exception as defect:
        return _refused(key, appended, _of_defect(defect))


def _of_defect(defect: Exception) -> Unreadable:
    detail = f"record: {type(defect).__name__} in the reader; report this"
    return Unreadable(DeadReason.UNKNOWN_FORMAT, detail)


def _parsed(
    record: RawRecord, settings: IngestSettings, read_frame: ReadFrame
) -> tuple[Parsed | Half, ...]:
    value = record.value
    if record.unread_from is not None:
        raise Unreadable(
            DeadReason.OVERSIZE,
            f"record: offsets {record.unread_from} to {record.offset}: a batch of more than "
            f"{BATCH_BYTES} bytes when decompressed; send smaller batches",
        )
    if value is None:
        raise Skipped(SkipReason.TOMBSTONE)
    if len(value) > settings.max_record_bytes:
        raise Unreadable(
            DeadReason.OVERSIZE,
            f"record: more than {settings.max_record_bytes} bytes; shorten it or raise ingest.max_record_bytes",
        )
    if not value.strip():
        raise Unreadable(DeadReason.EMPTY, "record: no bytes; send a JSON document")
    headers = {key.lower(): content for key, content in record.headers} if record.headers else {}
    events = settings.format in ("auto", "cloudevents")
    parsed: list[Parsed | Half] = []
    for opened in wrappers.documents(
        value, headers, settings, events=events, read_frame=read_frame
    ):
        for found in _exchanges(opened, settings):
            fields.within(len(parsed) + 1, PROMPTS, "record", "exchanges")
            parsed.append(_outcome(record, len(parsed), found, settings))
    return tuple(parsed)


def _exchanges(opened: Envelope | Unreadable, settings: IngestSettings) -> Iterator[_Found]:
    """The exchanges of one document, or why there are none."""
    if isinstance(opened, Unreadable):
        yield opened
        return
    if opened.kind.startswith(kserve.EVENTS):
        try:
            yield opened, kserve.piece(opened)
        except (Unreadable, Skipped) as refusal:
            yield refusal
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


def _outcome(
    record: RawRecord, index: int, found: _Found, settings: IngestSettings
) -> Parsed | Half:
    key, appended = _key(record, index), record.timestamp
    if not isinstance(found, tuple):
        return _refused(key, appended, found)
    envelope, read = found
    try:
        if isinstance(read, Piece):
            return _half(record, key, envelope, read)
        return _prompt(key, appended, envelope, read, settings)
    except (Unreadable, Skipped) as refusal:
        return _refused(key, appended, refusal)


def _half(record: RawRecord, key: RecordKey, envelope: Envelope, piece: Piece) -> Half:
    # Names may be as long as a record: what is held in memory for each part is a digest.
    name = orjson.dumps([piece.dialect, *piece.name])
    time = envelope.time.isoformat() if envelope.time else None
    kept = {"dialect": piece.dialect, "time": time, "content": piece.content}
    try:
        content = orjson.dumps(kept)
    except TypeError:
        where = "record: a number of more than 64 bits; send it as text"
        raise Unreadable(DeadReason.INVALID_FIELD, where) from None
    return Half(
        key=key,
        recorded_at=record.timestamp,
        exchange=hashlib.sha256(name).digest(),
        side=piece.side,
        content=content,
        ordered=piece.ordered,
        last=piece.last,
        keyed=record.key is not None,
    )


def _prompt(
    key: RecordKey,
    appended: datetime,
    envelope: Envelope,
    exchange: Exchange,
    settings: IngestSettings,
) -> Prompt:
    if settings.models and not _wanted(exchange.model, settings.models):
        raise Skipped(SkipReason.OTHER_MODEL)
    asked, answer = exchange.asked, exchange.answer
    return Prompt(
        key=key,
        recorded_at=_recorded_at(exchange.timestamp or envelope.time, appended),
        messages=asked.messages,
        text=asked.text,
        token_ids=asked.token_ids,
        response=answer.text or None,
        reasoning=answer.reasoning or None,
        tool_calls=answer.tool_calls,
        continues=asked.continues,
        tools=asked.tools,
        tools_forbidden=asked.tools_forbidden,
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


def _recorded_at(own: datetime | None, appended: datetime) -> datetime:
    """The record's own time, else the time it was appended: both are the same on redelivery.

    An append time out of all reason (brokers without timestamps say 1970) bounds nothing.
    """
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


def _refused(
    key: RecordKey, appended: datetime, refusal: Unreadable | Skipped
) -> DeadLetter | Skip:
    if isinstance(refusal, Skipped):
        return Skip(key=key, recorded_at=appended, reason=refusal.reason)
    return DeadLetter(key=key, recorded_at=appended, reason=refusal.reason, detail=refusal.detail)
