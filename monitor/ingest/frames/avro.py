"""Avro's binary encoding, read by a schema, as JSON types.

Source: the Apache Avro 1.12 specification, "Binary encoding". Written here because the bytes come from
anybody: the usual libraries follow a recursive schema down the C stack until the process dies, and make a
hundred million nulls out of ten bytes. Here nesting and values are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from monitor.ingest import fields
from monitor.ingest.frames.values import VALUES, finite, readable, unfit, zigzag

_DEEPEST: Final = 200
"""Most types inside each other in a schema."""
_PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
_PER_SECOND: Final = {
    "timestamp-millis": 1e3,
    "timestamp-micros": 1e6,
    "timestamp-nanos": 1e9,
}


class Schema:
    """A parsed schema. ``named`` are types that others define, by full name; more are added to it.

    Raises `ValueError` for what is no Avro schema.
    """

    def __init__(self, declared: Any, named: dict[str, Any] | None = None) -> None:
        self._named: dict[str, Any] = {} if named is None else named
        self._root = self._resolved(declared, "", 0)

    def read(self, body: bytes, max_nesting: int) -> Any:
        """The value in ``body``, all of it. Refuses what does not fit the schema."""
        reading = _Reading(body, self._named, max_nesting)
        try:
            value = reading.value(self._root, 0)
        except (IndexError, struct.error, KeyError, OverflowError):
            raise unfit() from None
        if reading.at != len(body):
            raise unfit()
        return value

    def _resolved(self, declared: Any, space: str, depth: int) -> Any:
        """The type with every name in full, and named types noted."""
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        match declared:
            case str() if declared in _PRIMITIVES:
                return declared
            case str():
                return self._name(declared, space)
            case list():
                return [self._resolved(one, space, depth + 1) for one in declared]
            case {"type": "array", "items": items}:
                return {"type": "array", "items": self._resolved(items, space, depth + 1)}
            case {"type": "map", "values": values}:
                return {"type": "map", "values": self._resolved(values, space, depth + 1)}
            case {"type": "record" | "error" | "enum" | "fixed" as kind, "name": str(name)}:
                return self._declared(declared, kind, name, space, depth)
            case {"type": str(kind)} if kind in _PRIMITIVES:
                return {"type": kind, "logicalType": declared.get("logicalType")}
            case {"type": inner}:
                return self._resolved(inner, space, depth + 1)
        raise ValueError("not an Avro schema")

    def _declared(
        self, declared: Mapping[str, Any], kind: str, name: str, space: str, depth: int
    ) -> Any:
        given = declared.get("namespace")
        space = given if isinstance(given, str) else space
        full = name if "." in name else f"{space}.{name}".lstrip(".")
        space = full.rpartition(".")[0]
        made: dict[str, Any] = {"type": kind}
        self._named[full] = made
        if kind == "enum":
            made["symbols"] = [str(one) for one in declared["symbols"]]
        elif kind == "fixed":
            made["size"] = int(declared["size"])
        else:
            made["type"] = "record"
            made["fields"] = [
                (str(one["name"]), self._resolved(one["type"], space, depth + 1))
                for one in declared["fields"]
            ]
        return made

    def _name(self, name: str, space: str) -> str:
        for full in (name, f"{space}.{name}"):
            if full in self._named:
                return full
        raise ValueError(f"unknown type {name}")


class _Reading:
    """Reads one body from its beginning to its end."""

    def __init__(self, body: bytes, named: Mapping[str, Any], max_nesting: int) -> None:
        self._body = body
        self._named = named
        self._max_nesting = max_nesting
        self._values = 0
        self.at = 0

    def value(self, kind: Any, depth: int) -> Any:
        if depth > self._max_nesting:
            raise fields.too_deep("record", f"more than {self._max_nesting} levels")
        self._values += 1
        fields.within(self._values, VALUES, "record", "values")
        match kind:
            case list():
                return self.value(kind[self._choice(len(kind))], depth + 1)
            case str() if kind not in _PRIMITIVES:
                return self.value(self._named[kind], depth)
            case str():
                return self._primitive(kind, None)
            case {"type": "record", "fields": listed}:
                return {name: self.value(inner, depth + 1) for name, inner in listed}
            case {"type": "array", "items": items}:
                return [self.value(items, depth + 1) for _ in self._blocks()]
            case {"type": "map", "values": values}:
                return {self._text(): self.value(values, depth + 1) for _ in self._blocks()}
            case {"type": "enum", "symbols": symbols}:
                return symbols[self._choice(len(symbols))]
            case {"type": "fixed", "size": size}:
                return readable(self._take(size))
        return self._primitive(kind["type"], kind["logicalType"])

    def _primitive(self, kind: str, logical: str | None) -> Any:
        match kind:
            case "null":
                return None
            case "boolean":
                return self._take(1) != b"\x00"
            case "int" | "long":
                number = self._long()
                return _moment(number, _PER_SECOND[logical]) if logical in _PER_SECOND else number
            case "float":
                return finite(struct.unpack("<f", self._take(4))[0])
            case "double":
                return finite(struct.unpack("<d", self._take(8))[0])
            case "bytes":
                return readable(self._take(self._long()))
        return self._text()

    def _blocks(self) -> Any:
        """One turn for each item of an array or a map; a negative count has its size behind it."""
        while count := self._long():
            if count < 0:
                count, _ = -count, self._long()
            yield from range(count)

    def _choice(self, of: int) -> int:
        index = self._long()
        if not 0 <= index < of:
            raise unfit()
        return index

    def _text(self) -> str:
        return fields.text_of(self._take(self._long()), "record")

    def _long(self) -> int:
        number, self.at = zigzag(self._body, self.at)
        return number

    def _take(self, size: int) -> bytes:
        if size < 0 or size > len(self._body) - self.at:
            raise unfit()
        self.at += size
        return self._body[self.at - size : self.at]


def _moment(number: int, per_second: float) -> str:
    """ISO 8601, since the unit of a bare number would be lost."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=number / per_second)).isoformat()
