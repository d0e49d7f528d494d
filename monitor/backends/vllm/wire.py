"""What goes between the worker and the engine: token ids with their regions there, readings back.

JSON, with arrays as base64 of little-endian bytes, so that a reading arrives bit by bit, NaN too.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.outcome import Reading
from monitor.replay.regions import Tokens

VERSION: Final = 1
ABOUT, READINGS, STATISTICS = "/v1/instrument", "/v1/readings", "/v1/statistics"
MOST_ROWS: Final = 1_024
MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The instrument that a server is: equal for two that read the same."""

    version: int
    pack_id: str
    model_hash: str
    model_id: str
    dtype: str
    device: str
    engine: str
    max_tokens: int
    """Longest row that it reads."""

    def entry(self) -> dict[str, Any]:
        return asdict(self)


def about_of(content: Any) -> About:
    """Raises `BadInput` for what is none."""
    try:
        return About(**{name: content[name] for name in About.__dataclass_fields__})
    except (TypeError, KeyError, LookupError):
        raise BadInput("it does not describe an instrument") from None


def row_of(tokens: Tokens) -> dict[str, Any]:
    """One replay: its ids, and all that its regions depend on."""
    return {"ids": list(tokens.ids)} | marks_of(tokens)


def marks_of(tokens: Tokens) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "reasoning_tokens": tokens.reasoning_tokens,
        "readable": base64.b64encode(np.packbits(tokens.readable).tobytes()).decode(),
    }


def tokens_of(ids: Sequence[int], marks: Mapping[str, Any]) -> Tokens:
    """The replay again. Raises `BadInput` for what is none."""
    try:
        n = len(ids)
        asked, thought = int(marks["prompt_tokens"]), int(marks["reasoning_tokens"])
        bits = np.frombuffer(base64.b64decode(marks["readable"], validate=True), dtype=np.uint8)
        if n == 0 or min(asked, thought) < 0 or asked + thought > n or bits.size != -(-n // 8):
            raise ValueError
        return Tokens(
            ids=tuple(int(one) for one in ids),
            prompt_tokens=asked,
            reasoning_tokens=thought,
            response_tokens=n - asked - thought,
            readable=np.unpackbits(bits, count=n).astype(np.bool_),
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        raise BadInput("a row needs ids, prompt_tokens, reasoning_tokens and readable") from None


def packed(read: Reading) -> dict[str, str]:
    return {
        "readings": _packed(read.readings, "<f4"),
        "pooled_tokens": _packed(read.pooled_tokens, "<i8"),
    }


def read_of(content: Any, columns: int) -> Reading:
    """Raises `BadInput` for what does not hold ``columns`` readings."""
    try:
        readings = _unpacked(content["readings"], "<f4").astype(np.float32)
        counts = _unpacked(content["pooled_tokens"], "<i8").astype(np.int64)
    except (TypeError, KeyError, ValueError):
        raise BadInput("it answers with what is no reading") from None
    if readings.size != columns or counts.size != columns:
        raise BadInput(f"it answers with {readings.size} readings where {columns} were asked for")
    return Reading(readings, counts)


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `BadInput` for anything else."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadInput("the body is no JSON object")
    return content


def _packed(values: np.ndarray[Any, Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def _unpacked(text: str, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind)
