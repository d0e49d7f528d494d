"""Arrays of float32 as PostgreSQL's ``float4[]``, written whole: element by element they took most of a chunk's time.

The binary form of an array (source/backend/utils/adt/arrayfuncs.c, array_send): number of dimensions,
whether there are nulls, the elements' type; length and lower bound of the dimension; then every element
behind its length in bytes, -1 for null. All integers are 32 bits wide, most significant byte first.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

from monitor.values.arrays import Floats

_FLOAT4: Final = 700
_FLOAT4_ARRAY: Final = 1021
_ELEMENT: Final = np.dtype([("bytes", ">i4"), ("value", ">f4")])
_FIRST: Final = 1
"""PostgreSQL's arrays begin at 1."""


class RealsDumper(Dumper):
    """Dumps a `Floats` of one dimension; NaN becomes NULL."""

    format = Format.BINARY
    oid = _FLOAT4_ARRAY

    def dump(self, obj: Floats) -> bytes:
        if not len(obj):
            return struct.pack("!iii", 0, 0, _FLOAT4)
        absent = np.isnan(obj)
        nulls = bool(absent.any())
        elements = np.empty(len(obj), dtype=_ELEMENT)
        elements["bytes"] = np.where(absent, -1, 4)
        elements["value"] = obj
        content = elements.tobytes()
        if nulls:  # a null has a length alone
            each = np.frombuffer(content, dtype=np.uint8).reshape(len(obj), _ELEMENT.itemsize)
            kept = np.ones_like(each, dtype=bool)
            kept[absent, 4:] = False
            content = each[kept].tobytes()
        return struct.pack("!iiiii", 1, nulls, _FLOAT4, len(obj), _FIRST) + content


def write_reals(context: AdaptContext) -> None:
    """Let ``context`` (a cursor) dump what goes to columns ``float4[]`` in this way."""
    context.adapters.register_dumper(None, RealsDumper)
