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
    header_bytes, tensors = _header(stream, size)
    yield 0, 8 + header_bytes
    for start, end in tensors:
        for offset in (start, (start + end) // 2):
            yield 8 + header_bytes + offset, min(SAMPLE_BYTES, end - offset)


def _header(stream: Any, size: int) -> tuple[int, list[tuple[int, int]]]:
    """Length of a safetensors header, and where its tensors begin and end behind it, by name."""
    try:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(LARGEST_HEADER, size):
            raise ValueError("the header is longer than the file, or than any")
        header: Any = json.loads(stream.read(length))
        found = [header[name]["data_offsets"] for name in sorted(header) if name != "__metadata__"]
        tensors = [(int(start), int(end)) for start, end in found]
        if any(not 0 <= start <= end <= size for start, end in tensors):
            raise ValueError("a tensor lies outside of the file")
    except (struct.error, ValueError, TypeError, KeyError, RecursionError):
        raise ModelError(
            f"{stream.name} is cut short or no safetensors", hint="fetch the model again"
        ) from None
    return length, tensors
