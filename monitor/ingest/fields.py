"""Checked access to the fields of a record: a wrong one is named, its content is never repeated.

Every function takes the value and ``where``, the path that a dead letter will name, for example
``messages[3].content``. Paths are made of our own words and of indices, never of a record's keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from monitor.values.prompts import DeadReason, SkipReason

EARLIEST: Final = datetime(2015, 1, 1, tzinfo=UTC)
"""No language model served traffic before: an older timestamp is a clock or a unit gone wrong."""
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)

NAME_LIMIT: Final = 256
"""Longest id, model name or segment value, in characters; they stand in database indexes."""
SEGMENT_LIMIT: Final = 64
"""Most entries of a segment map, and longest key."""
STRUCTURES: Final = 200_000
"""Most arrays and objects in one record. An empty one takes three bytes there and microseconds to read:
what is made of nothing else would cost seconds, and a full record of real things has half as many."""
SMALLEST_PROBABILITY: Final = 1e-9

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SEGMENT_KEY = re.compile(r"[A-Za-z0-9_.\-/]{1,64}")
_CONTAINERS: Final = frozenset({list, dict})
_BOM: Final = b"\xef\xbb\xbf"


class Unreadable(Exception):
    """The record becomes a dead letter. Never leaves `monitor.ingest.formats.parse`."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Skipped(Exception):
    """The record is readable and not for us. Never leaves `monitor.ingest.formats.parse`."""

    def __init__(self, reason: SkipReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def invalid(where: str, expected: str, found: object) -> Unreadable:
    """The refusal of one field: its path, what belongs there, and the JSON type found instead."""
    return Unreadable(
        DeadReason.INVALID_FIELD, f"{where}: expected {expected}, found {kind_of(found)}"
    )


def not_read(what: str, help: str, where: str = "record") -> Unreadable:
    """The refusal of an exchange in a form that is known and not read here, under its own name."""
    return Unreadable(DeadReason.DIALECT_NOT_READ, f"{where}: {what} is not read here; {help}")


def truncated(where: str, help: str) -> Unreadable:
    return Unreadable(DeadReason.TRUNCATED, f"{where}: cut off by the sender; {help}")


def kind_of(value: object) -> str:
    """The JSON name of a decoded value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def decode(value: bytes | str, where: str, max_nesting: int) -> Any:
    """The JSON document in ``value``; a UTF-8 byte order mark is passed over.

    Refuses other encodings (NOT_UTF8), anything but JSON, lone surrogates included (NOT_JSON), and
    more than ``max_nesting`` arrays and objects inside each other (TOO_DEEP) or than `STRUCTURES` of
    them in all (OVERSIZE).
    """
    if isinstance(value, bytes):
        value = value.removeprefix(_BOM)
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _not_json(value, where, error) from None
    structures(document, where, max_nesting)
    return document


def text_of(value: bytes, where: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable(DeadReason.NOT_UTF8, f"{where}: not UTF-8; send UTF-8") from None


def opened(value: Any, where: str, max_nesting: int, help: str) -> Any:
    """``value``, or the document in it where it is a string of JSON.

    A string that begins as JSON and ends early is TRUNCATED, with ``help`` on whose limit it was;
    any other string that is not JSON is INVALID_FIELD.
    """
    if not isinstance(value, str):
        return value
    try:
        return decode(value, where, max_nesting)
    except Unreadable as error:
        if error.reason is not DeadReason.NOT_JSON:
            raise
        if ends_early(value):
            raise truncated(where, help) from None
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: expected JSON, found other text"
        ) from None


def looks_like_json(value: str) -> bool:
    """Whether a string is meant as a JSON object or array rather than as text."""
    return value.lstrip()[:1] in ("{", "[")


def ends_early(value: str) -> bool:
    """Whether ``value`` is the beginning of a JSON object or array that does not end."""
    if not looks_like_json(value):
        return False
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return "end of data" in error.msg or error.pos >= len(value)
    return False


def _not_json(value: bytes | str, where: str, error: orjson.JSONDecodeError) -> Unreadable:
    if isinstance(value, bytes):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as wrong:
            return Unreadable(
                DeadReason.NOT_UTF8, f"{where}: not UTF-8 at byte {wrong.start}; send JSON in UTF-8"
            )
    if "depth" in error.msg or "ecursion" in error.msg:
        return too_deep(where, "more levels than the parser takes")
    if "surrogate" in error.msg:
        return Unreadable(
            DeadReason.NOT_JSON,
            f"{where}: lone surrogate escape at character {error.pos}; send whole characters",
        )
    around = value[max(0, error.pos - 1) : error.pos + 9]
    shown = around.decode("utf-8", "replace") if isinstance(around, bytes) else around
    if "NaN" in shown or "Infinity" in shown:
        return Unreadable(
            DeadReason.NOT_JSON,
            f"{where}: NaN or Infinity at character {error.pos} is not JSON; write null",
        )
    return Unreadable(DeadReason.NOT_JSON, f"{where}: not JSON at character {error.pos}")


def too_deep(where: str, found: str) -> Unreadable:
    return Unreadable(
        DeadReason.TOO_DEEP, f"{where}: {found} of nesting; flatten it or raise ingest.max_nesting"
    )


def structures(document: Any, where: str, max_nesting: int) -> int:
    """How many arrays and objects it is made of; refused as `decode` says.

    Level by level rather than recursively: hostile depth must not become our own.
    """
    level = [document] if type(document) in _CONTAINERS else []
    found = 0
    for _ in range(max_nesting):
        if not level:
            return found
        found += len(level)
        within(found, STRUCTURES, where, "arrays and objects")
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) in _CONTAINERS
        ]
    if level:
        raise too_deep(where, f"more than {max_nesting} levels")
    return found


def mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(where, "an object", value)
    return value


def sequence(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(where, "an array", value)
    return value


def within(count: int, limit: int, where: str, what: str) -> None:
    """Refuses more than ``limit`` of something in one record (OVERSIZE)."""
    if count > limit:
        raise Unreadable(
            DeadReason.OVERSIZE, f"{where}: more than {limit} {what}; split the record"
        )


def text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise invalid(where, "a string", value)
    return value


def name(value: object, where: str) -> str | None:
    """An id, model name or the like: at most `NAME_LIMIT` characters, no control characters.

    Absent, null and "" are all None. NUL is a control character: Postgres could not store it.
    """
    if value is None or value == "":
        return None
    found = text(value, where)
    if not is_name(found):
        raise Unreadable(
            DeadReason.INVALID_FIELD,
            f"{where}: expected at most {NAME_LIMIT} characters and no control characters (NUL, newline)",
        )
    return found


def is_name(value: str) -> bool:
    """Whether ``value`` can be stored as an id or name."""
    # Nothing that can be printed is a control character, and that is told faster.
    return 0 < len(value) <= NAME_LIMIT and (value.isprintable() or not _CONTROL.search(value))


def probability(value: object, where: str) -> float:
    """A sampling probability in [`SMALLEST_PROBABILITY`, 1]; absent and null are 1."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(where, "a number", value)
    if not SMALLEST_PROBABILITY <= value <= 1.0:
        raise Unreadable(
            DeadReason.INVALID_FIELD,
            f"{where}: expected a probability from {SMALLEST_PROBABILITY:g} to 1",
        )
    return float(value)


def segment(value: object, where: str) -> dict[str, str]:
    """A map of strings that says which slice of traffic the record is of; absent and null are {}."""
    if value is None:
        return {}
    entries = mapping(value, where)
    if len(entries) > SEGMENT_LIMIT:
        raise Unreadable(
            DeadReason.INVALID_FIELD, f"{where}: expected at most {SEGMENT_LIMIT} entries"
        )
    labels: dict[str, str] = {}
    at = f"{where}.*"
    for key, entry in entries.items():
        if not _SEGMENT_KEY.fullmatch(key):
            raise Unreadable(
                DeadReason.INVALID_FIELD,
                f"{where}: keys are 1 to 64 letters, digits and any of _ . - /",
            )
        label = name(text(entry, at), at)
        if label is not None:
            labels[key] = label
    return labels


def chosen_labels(entries: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """The entries of a foreign record's free-form metadata that the operator named as segments.

    What cannot be a label (objects, over-long text) is left out: metadata is not ours to refuse.
    """
    labels: dict[str, str] = {}
    for key in keys:
        match entries.get(key):
            case bool() as flag:
                labels[key] = "true" if flag else "false"
            case (str() | int()) as value:
                label = str(value)
                if is_name(label):
                    labels[key] = label
    return labels


def timestamp(value: object, where: str) -> datetime | None:
    """Unix seconds, or ISO 8601 (UTC where it names no zone); absent and null are None."""
    match value:
        case None:
            return None
        case bool():
            pass
        case int() | float():
            return from_unix(value, where)
        case str():
            try:
                moment = datetime.fromisoformat(value)
                moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
                moment = moment.astimezone(UTC)
            except (ValueError, OverflowError):
                pass
            else:
                if not EARLIEST <= moment <= LATEST:
                    raise _implausible(where)
                return moment
    raise Unreadable(
        DeadReason.BAD_TIMESTAMP, f"{where}: expected Unix seconds or ISO 8601 with a zone"
    )


def from_unix(seconds: float, where: str) -> datetime:
    """The moment ``seconds`` after 1970 in UTC, when it is a plausible one."""
    if not EARLIEST.timestamp() <= seconds <= LATEST.timestamp():
        raise _implausible(where)
    return datetime.fromtimestamp(seconds, UTC)


def _implausible(where: str) -> Unreadable:
    return Unreadable(
        DeadReason.BAD_TIMESTAMP,
        f"{where}: before {EARLIEST:%Y} or after {LATEST:%Y}; check its unit and the sender's clock",
    )
