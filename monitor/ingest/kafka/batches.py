"""Compressed batches, decompressed within a bound.

The client library makes of a batch whatever is in it, and 3 MB of gzip may be 3 GB. Here a batch comes
to `BATCH_BYTES` at most. One that is larger is read as a single record at its last offset, whose value
is an `UnreadBatch`: a dead letter by coordinates, and the records behind it are read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kafka.codec import _detect_xerial_stream
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch

from monitor.values.prompts import BATCH_BYTES

_BLOCKS_AT: Final = 16
"""Where the blocks of a framed snappy stream begin."""


class TooLarge(Exception):
    """More than `BATCH_BYTES` come out of the batch."""


class UnreadBatch(bytes):
    """The value (none) of the record that stands for a batch; ``first`` is the batch's first offset."""

    first: int


def _gzip(packed: bytes) -> bytes:
    """All members, one behind another, as gzip has them."""
    found = b""
    while packed:
        machine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        found += machine.decompress(packed, BATCH_BYTES + 1 - len(found))
        _within(len(found))
        if not machine.eof:
            raise EOFError("the batch's gzip data does not end")
        packed = machine.unused_data.lstrip(b"\0")
    return found


def _snappy(packed: bytes) -> bytes:
    """Blocks say how much they hold before they are opened."""
    import snappy  # type: ignore[import-untyped]

    if not _detect_xerial_stream(packed):
        _within(_snappy_length(packed))
        return bytes(snappy.decompress(packed))
    found, at = bytearray(), _BLOCKS_AT
    while at < len(packed):
        (size,) = struct.unpack_from("!i", packed, at)
        block = packed[at + 4 : at + 4 + max(size, 0)]
        _within(len(found) + _snappy_length(block))
        found += snappy.decompress(block)
        at += 4 + max(size, 0)
    return bytes(found)


def _snappy_length(block: bytes) -> int:
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    return length


def _lz4(packed: bytes) -> bytes:
    import lz4.frame  # type: ignore[import-untyped]

    machine = lz4.frame.LZ4FrameDecompressor()
    found: bytes = machine.decompress(packed, max_length=BATCH_BYTES + 1)
    _within(len(found))
    if not machine.eof:
        raise EOFError("the batch's lz4 data does not end")
    return found


def _zstd(packed: bytes) -> bytes:
    import zstandard

    machine = zstandard.ZstdDecompressor(max_window_size=BATCH_BYTES)
    with machine.stream_reader(io.BytesIO(packed), read_across_frames=True) as reader:
        found = reader.read(BATCH_BYTES + 1)
    _within(len(found))
    return bytes(found)


def _within(size: int) -> None:
    if size > BATCH_BYTES:
        raise TooLarge


_OPEN: Final[Mapping[int, Callable[[bytes], bytes]]] = {
    DefaultRecordBatch.CODEC_GZIP: _gzip,
    DefaultRecordBatch.CODEC_SNAPPY: _snappy,
    DefaultRecordBatch.CODEC_LZ4: _lz4,
    DefaultRecordBatch.CODEC_ZSTD: _zstd,
}


_Library: Any = DefaultRecordBatch
"""Its attributes have no types that hold."""


class BoundedBatch(_Library):
    """The library's batch of format v2, with a bound on what is made of it."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def __iter__(self) -> Iterator[Any]:
        try:
            self._maybe_uncompress()
        except TooLarge:
            return iter((self._stand_in(),))
        return self

    def _maybe_uncompress(self) -> None:
        opened = _OPEN.get(self.compression_type)
        if self._decompressed or opened is None:
            super()._maybe_uncompress()
            return
        self._assert_has_codec(self.compression_type)
        self._buffer = bytearray(opened(bytes(self._buffer[self._pos :])))
        self._pos = 0
        self._decompressed = True

    def _stand_in(self) -> Any:
        value = UnreadBatch()
        value.first = self.base_offset
        return DefaultRecord(
            0, self.last_offset, self.max_timestamp, self.timestamp_type, None, value, []
        )


def bound_batches() -> None:
    """From now on the library reads every batch of this process so. May be called again."""
    memory_records.DefaultRecordBatch = BoundedBatch
