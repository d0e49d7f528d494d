"""Arrays of text as PostgreSQL's ``text[]``, written whole: a chunk's thousands of rows hold a few different ones.

The binary form of an array is that of `monitor.store.reals`.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

from monitor.store.border import clean

_TEXT: Final = 25
_TEXT_ARRAY: Final = 1009


class TextsDumper(Dumper):
    """Dumps what `stored_texts` has made already."""

    format = Format.BINARY
    oid = _TEXT_ARRAY

    def dump(self, obj: bytes) -> bytes:
        return obj


@lru_cache(maxsize=4_096)
def stored_texts(values: tuple[str, ...]) -> bytes:
    """``values``, each as it is stored (see `clean`), in that form; kept, since the same come again."""
    if not values:
        return struct.pack("!iii", 0, 0, _TEXT)
    elements = [clean(value).encode() for value in values]
    head = struct.pack("!iiiii", 1, 0, _TEXT, len(elements), 1)
    return head + b"".join(struct.pack("!i", len(one)) + one for one in elements)


def write_texts(context: AdaptContext) -> None:
    """Let ``context`` (a cursor) take what `stored_texts` gives for columns ``text[]``."""
    context.adapters.register_dumper(None, TextsDumper)
