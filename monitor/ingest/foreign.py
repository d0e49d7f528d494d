"""Names, ids and times of records that are not ours to shape: a worthless one is left out, and noted.

An exchange is not lost over the id of a gateway. What was passed over is listed by its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from monitor.ingest import fields

NOTED: Final = 16
"""Most paths that one record notes."""


class Foreign:
    """Reads the fields of one record and keeps the paths of those that it left out."""

    def __init__(self) -> None:
        self._left_out: list[str] = []

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(self._left_out)

    def note(self, where: str) -> None:
        if len(self._left_out) < NOTED and where not in self._left_out:
            self._left_out.append(where)

    def identifier(self, value: object, where: str) -> str | None:
        """An id: whole numbers as text; one that cannot be stored as it is becomes ``sha256:…``,
        the same for the same id, so that conversations stay together."""
        given = self._text(value, where)
        if given is None or fields.is_name(given):
            return given
        self.note(where)
        return "sha256:" + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()

    def name(self, value: object, where: str) -> str | None:
        """The name of a model or deployment; one that cannot be stored is left out."""
        given = self._text(value, where)
        if given is None or fields.is_name(given):
            return given
        self.note(where)
        return None

    def first_name(self, entries: Mapping[str, Any], where: str, *keys: str) -> str | None:
        """The first of ``keys`` that holds a name."""
        for key in keys:
            if (found := self.name(entries.get(key), f"{where}{key}")) is not None:
                return found
        return None

    def time(self, value: object, where: str) -> datetime | None:
        """As `fields.timestamp`, except that 0 and "" mean that the sender knew none."""
        if value in (0, "") and not isinstance(value, bool):
            self.note(where)
            return None
        return fields.timestamp(value, where)

    def milliseconds(self, value: object, where: str) -> datetime | None:
        """Unix milliseconds, where the dialect documents that unit."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self.time(value, where)
        return self.time(value / 1e3, where)

    def database_time(self, value: object, where: str) -> datetime | None:
        """As `time`, also as BigQuery exports it: ``2026-11-20 10:00:00 UTC``."""
        if isinstance(value, str) and value.endswith(" UTC"):
            value = value.removesuffix(" UTC") + "+00:00"
        return self.time(value, where)

    def _text(self, value: object, where: str) -> str | None:
        match value:
            case None | "":
                return None
            case bool():
                pass
            case str():
                return value
            case int():
                return str(value)
        self.note(where)
        return None
