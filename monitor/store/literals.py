"""Arrays as PostgreSQL writes them in text: for the thousands of values that a chunk's buckets are made of.

The driver looks at every element by itself, which took most of the time of storing buckets.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache


def array_literal(values: Iterable[str | int | float | datetime | None]) -> str:
    """An array of one dimension, to be CAST to its type. None becomes NULL; floats keep every bit.

    Text must be what PostgreSQL can hold (see `border.clean`).
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | int | float | datetime | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str | datetime):
        return _quoted(value)
    return str(value)


@lru_cache(maxsize=4_096)
def _quoted(value: str | datetime) -> str:
    text = value if isinstance(value, str) else value.isoformat()
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
