"""A GGUF file without its vocabulary: what a configuration and weights are read from.

The library parses every array of the file in Python, number by number, for the configuration and again for the weights,
though it takes the tokenizer from a reader of its own. With 262,144 tokens that is minutes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

LONGEST: Final = 1_024
"""Arrays of more entries than this are the vocabulary's; a configuration has one entry for each block."""


@contextmanager
def without_vocabulary() -> Iterator[None]:
    """Within the context transformers sees long arrays of GGUF files as so many times their first entry.

    Others that read such files meanwhile, in other threads, see the same. Does nothing without gguf.
    """
    try:
        import gguf
    except ImportError:
        yield
        return
    stock = gguf.GGUFReader
    gguf.GGUFReader = _light(stock)  # type: ignore[misc]
    try:
        yield
    finally:
        gguf.GGUFReader = stock  # type: ignore[misc]


@cache
def _light(stock: Any) -> Any:
    """``stock``, which knows how to read a file, but for long arrays."""
    import gguf
    import numpy as np

    kinds = gguf.GGUFValueType

    class Light(stock):  # type: ignore[misc]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if kinds(raw_type) != kinds.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind = self._get(orig_offs, np.uint32)
            length = self._get(orig_offs + kind.nbytes, np.uint64)
            start = orig_offs + int(kind.nbytes) + int(length.nbytes)
            count, entries = int(length[0]), kinds(kind[0])
            if count <= LONGEST or entries == kinds.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            size, parts, data, _ = super()._get_field_parts(start, kind[0])
            # A count that the file has no room for ends here, before anything is made of it.
            end = self._skipped(start, count) if entries == kinds.STRING else start + size * count
            if end > len(self.data):
                raise ValueError("an array of the GGUF file ends behind it")
            place = 2 + data[0]
            return end - orig_offs, [kind, length, *parts], [place] * count, [kinds.ARRAY, entries]

        def _skipped(self, start: int, count: int) -> int:
            """Where ``count`` strings end that begin at ``start``."""
            order = "<Q" if self.endianess == gguf.GGUFEndian.LITTLE else ">Q"
            view = memoryview(self.data)
            for _ in range(count):
                start += 8 + struct.unpack_from(order, view, start)[0]
            return start

    return Light
