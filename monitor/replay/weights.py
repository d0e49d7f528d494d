"""Which weights lie in a model's files: a hash over samples of them, in milliseconds."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitor.errors import ModelError

SAMPLE_BYTES = 4_096
LARGEST_HEADER = 100_000_000
"""What the library itself refuses beyond."""


def weights_hash(files: list[Path]) -> str:
    """SHA-256 over every file's size, header, and two 4 KiB samples (start, middle) of each tensor.

    Milliseconds instead of a read of every byte; a tensor that training or merging has touched
    anywhere near its start or middle changes it. A GGUF file is sampled at 1,024 even steps, after
    its first MiB.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(struct.pack("<Q", size))
        with file.open("rb") as stream:
            for offset, length in _samples(stream, size, gguf=file.suffix == ".gguf"):
                stream.seek(offset)
                digest.update(stream.read(length))
    return digest.hexdigest()


def _samples(stream: Any, size: int, *, gguf: bool) -> Iterator[tuple[int, int]]:
    if gguf:
        yield 0, 1 << 20
        for step in range(1_024):
            yield step * size // 1_024, SAMPLE_BYTES
        return
    header_bytes, header = read_header(stream, size)
    yield 0, 8 + header_bytes
    for name in sorted(header):
        start, end = header[name]["data_offsets"]
        for offset in (start, (start + end) // 2):
            yield 8 + header_bytes + offset, min(SAMPLE_BYTES, end - offset)


def read_header(stream: Any, size: int) -> tuple[int, dict[str, Any]]:
    """Length of the header of a safetensors file of ``size`` bytes, and its entries by tensor.

    ``data_offsets`` of each lie within the file. Raises `ModelError` for a file that is none.
    """
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(LARGEST_HEADER, size):
            raise ValueError("the header is longer than the file, or than any")
        header: dict[str, Any] = json.loads(stream.read(length))
        tensors: dict[str, Any] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (int(offset) for offset in entry["data_offsets"])
            if not 0 <= start <= end <= size:
                raise ValueError("a tensor lies outside of the file")
            tensors[name] = entry | {"data_offsets": (start, end)}
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(
            f"{stream.name} is cut short or no safetensors", hint="fetch the model again"
        ) from None
    return length, tensors
