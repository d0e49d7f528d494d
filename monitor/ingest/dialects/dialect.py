"""One dialect: how its documents are told, taken apart into exchanges, and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.ingest.exchange import Exchange, Piece
from monitor.settings import IngestSettings

Document = dict[str, Any]


def one(document: Document, settings: IngestSettings) -> Sequence[Any]:
    return (document,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """``told`` looks at keys alone; ``split`` finds the exchanges of a document; ``read`` reads one.

    Both refuse with `fields.Unreadable` and `fields.Skipped`; details name the field and the fix.
    """

    name: str
    told: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Any, IngestSettings], Exchange | Piece]
    split: Callable[[Document, IngestSettings], Sequence[Any]] = one
