"""Which dead letters carry the bytes of their record: the one place that decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from monitor.settings import IngestSettings
from monitor.values.prompts import Chunk, DeadLetter, DeadReason, RawRecord

NEVER_KEPT: Final = frozenset({DeadReason.OVERSIZE})
"""Reasons for which a record's bytes are kept nowhere, whatever the settings say."""


def records_of(chunk: Chunk) -> tuple[RawRecord, ...]:
    """All records that the chunk's letters may be of."""
    again = (one.record for one in chunk.recalled if one.record is not None)
    return (*chunk.records, *again)


def with_bytes(
    letters: Iterable[DeadLetter], records: Sequence[RawRecord], settings: IngestSettings
) -> tuple[DeadLetter, ...]:
    """The letters of ``records``, in order of their keys, with the bytes that are to be kept.

    Nothing without ``store_dead_letter_content``. With it, each record's bytes go once, with the first
    of its letters, whether it could not be read or not be replayed; never with a reason of
    `NEVER_KEPT`. So ``letters`` must hold all letters of a record.
    """
    ordered = sorted(letters, key=lambda letter: letter.key)
    if not settings.store_dead_letter_content:
        return tuple(replace(letter, content=None) for letter in ordered)
    left = {(record.topic, record.partition, record.offset): record.value for record in records}
    return tuple(
        replace(
            letter,
            content=None
            if letter.reason in NEVER_KEPT
            else left.pop((letter.key.topic, letter.key.partition, letter.key.offset), None),
        )
        for letter in ordered
    )
