"""Arrays of float32 as PostgreSQL's ``float4[]``, written whole: element by element they took most of a chunk's time.

The binary form of an array (source/backend/utils/adt/arrayfuncs.c, array_send): number of dimensions,
whether there are nulls, the elements' type; length and lower bound of the dimension; then every element
behind its length in bytes, -1 for null. All integers are 32 bits wide, most significant byte first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

from monitor.values.arrays import Floats

_FLOAT4: Final = 700
_FLOAT4_ARRAY: Final = 1021
_ELEMENT: Final = np.dtype([("bytes", ">i4"), ("value", ">f4")])
_BYTES: Final = 4
_FIRST: Final = 1
"""PostgreSQL's arrays begin at 1."""


class RealsDumper(Dumper):
    """Dumps a `Floats` of one dimension; NaN becomes NULL."""

    format = Format.BINARY
    oid = _FLOAT4_ARRAY

    def dump(self, obj: Floats | bytes) -> bytes:
        """``obj`` in that form; bytes are in it already (`dumped`)."""
        if isinstance(obj, bytes):
            return obj
        if not len(obj):
            return struct.pack("!iii", 0, 0, _FLOAT4)
        absent = np.isnan(obj)
        nulls = bool(absent.any())
        elements = np.empty(len(obj), dtype=_ELEMENT)
        elements["bytes"] = np.where(absent, -1, _BYTES)
        elements["value"] = obj
        content = elements.tobytes()
        if nulls:  # a null has a length alone
            each = np.frombuffer(content, dtype=np.uint8).reshape(len(obj), _ELEMENT.itemsize)
            kept = np.ones_like(each, dtype=bool)
            kept[absent, 4:] = False
            content = each[kept].tobytes()
        return _head(len(obj), nulls=nulls) + content


def dumped(rows: Sequence[Floats]) -> list[bytes]:
    """Each of ``rows``, which are all of one length, as `RealsDumper` dumps it; in one go for all of a chunk."""
    if not rows or not len(rows[0]):
        return [RealsDumper(np.ndarray).dump(row) for row in rows]
    values = np.array(rows)
    elements = np.empty(values.shape, dtype=_ELEMENT)
    elements["bytes"], elements["value"] = _BYTES, values
    content, width = elements.tobytes(), values.shape[1] * _ELEMENT.itemsize
    head = _head(values.shape[1], nulls=False)
    found = [head + content[at : at + width] for at in range(0, len(content), width)]
    for row in np.flatnonzero(np.isnan(values).any(axis=1)):
        found[row] = RealsDumper(np.ndarray).dump(values[row])
    return found


def _head(length: int, *, nulls: bool) -> bytes:
    return struct.pack("!iiiii", 1, nulls, _FLOAT4, length, _FIRST)


def write_reals(context: AdaptContext) -> None:
    """Let ``context`` (a cursor) dump what goes to columns ``float4[]`` in this way."""
    context.adapters.register_dumper(None, RealsDumper)
