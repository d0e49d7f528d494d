"""What goes between the worker and the engine: token ids with their regions there, readings back.

JSON, with arrays as base64 of little-endian bytes, so that a reading arrives bit by bit, NaN too. For people and
other engines it is written down in docs/engines.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from monitor.backends.vllm.laws import law_entry, law_from, weighed_entry, weighed_from
from monitor.errors import BadInput
from monitor.replay.outcome import Reading
from monitor.replay.passes import answer_tokens
from monitor.replay.regions import Tokens
from monitor.values.likelihood import DrawnBy
from monitor.values.surprise import Weighed

VERSION: Final = 2
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
    no_weighing: str = ""
    """Why it weighs no answers; empty where it does."""

    def entry(self) -> dict[str, Any]:
        return asdict(self)


def about_of(content: Any) -> About:
    """Raises `BadInput` for what is none."""
    try:
        # Of another version's what is known: its version tells why the rest is not there.
        return About(
            **{name: content[name] for name in About.__dataclass_fields__ if name in content}
        )
    except (TypeError, KeyError, LookupError):
        raise BadInput("it does not describe an instrument") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One replay, and the laws that its answer is weighed by."""

    tokens: Tokens
    laws: tuple[DrawnBy, ...] = ()
    ends: tuple[int, ...] = ()
    """Ids that end an answer."""

    @property
    def marks(self) -> dict[str, Any]:
        """All but the ids."""
        marks = marks_of(self.tokens)
        if self.laws:
            marks |= {"laws": [law_entry(law) for law in self.laws], "ends": list(self.ends)}
        return marks


@dataclass(frozen=True, slots=True)
class Answered:
    """Its reading, and what became of the answer under each law."""

    reading: Reading
    weighed: tuple[Weighed, ...] = ()


def row_of(asked: Asked) -> dict[str, Any]:
    """One replay: its ids, all that its regions depend on, and its laws."""
    return {"ids": list(asked.tokens.ids)} | asked.marks


def asked_of(ids: Sequence[int], marks: Mapping[str, Any]) -> Asked:
    """The same again. Raises `BadInput` for what is none."""
    tokens, laws, ends = tokens_of(ids, marks), marks.get("laws", []), marks.get("ends", [])
    if not isinstance(laws, list) or not isinstance(ends, list):
        raise BadInput("rows: laws and ends must be lists")
    if not all(type(one) is int and one >= 0 for one in ends):
        raise BadInput("rows: ends must be a list of token ids")
    if laws and not (tokens.prompt_tokens and answer_tokens(tokens)):
        raise BadInput("rows: laws need an answer behind a prompt")
    return Asked(tokens=tokens, laws=tuple(map(law_from, laws)), ends=tuple(ends))


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


def packed(answered: Answered) -> dict[str, Any]:
    read = answered.reading
    found: dict[str, Any] = {
        "readings": _packed(read.readings, "<f4"),
        "pooled_tokens": _packed(read.pooled_tokens, "<i8"),
    }
    if answered.weighed:
        found["weighed"] = [weighed_entry(one) for one in answered.weighed]
    return found


def answered_of(content: Any, columns: int, laws: int) -> Answered:
    """Raises `BadInput` for what does not hold ``columns`` readings and the answer under ``laws`` laws."""
    reading, weighed = read_of(content, columns), content.get("weighed", [])
    if not isinstance(weighed, list) or len(weighed) != laws:
        raise BadInput(f"it does not weigh an answer by the {laws} laws that were given")
    return Answered(reading, tuple(map(weighed_from, weighed)))


def read_of(content: Any, columns: int) -> Reading:
    """The reading alone. Raises `BadInput` for what does not hold ``columns`` of them."""
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
