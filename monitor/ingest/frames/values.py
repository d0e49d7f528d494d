"""What bodies of frames come to as JSON types, and how one is refused."""

from __future__ import annotations

import base64
import math
from typing import Final

from monitor.ingest.fields import Unreadable
from monitor.values.prompts import DeadReason

VALUES: Final = 1_000_000
"""Most values of one record: what takes a byte here, or none, takes a hundred times as much in memory."""
_LONGEST_VARINT: Final = 70


def readable(content: bytes) -> str:
    """Bytes as text where they are text, else as base64, as JSON would have them."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(content).decode()


def finite(number: float) -> float | None:
    """JSON has no NaN and no infinities."""
    return number if math.isfinite(number) else None


def zigzag(body: bytes, at: int) -> tuple[int, int]:
    """The signed number of variable length at ``at``, and where it ends."""
    value = shift = 0
    while at < len(body) and shift < _LONGEST_VARINT:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    raise unfit()


def unfit() -> Unreadable:
    return Unreadable(DeadReason.INVALID_FIELD, "record: does not fit the schema of its frame")
