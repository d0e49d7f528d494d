"""Control vectors: GGUF files with the tensors ``direction.N`` and nothing to run.

Read by a small reader of its own: within the bytes that are there, whatever the file says of its sizes.
Format: ggml ``docs/gguf.md``, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from monitor.errors import BadInput

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MOST: Final = 4_096
"""Tensors, or entries of the header, that a control vector may have; it has one for each layer."""
_STRING, _ARRAY = 8, 9
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TYPES: Final = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_ARCHITECTURE, _ALIGNMENT = "general.architecture", "general.alignment"
_KIND: Final = "controlvector"


@dataclass(slots=True)
class _Bytes:
    """``content``, read from ``at`` on. What reaches beyond its end raises `BadInput`."""

    path: Path
    content: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            raise BadInput(f"{self.path} ends too early for a GGUF file", hint="fetch it again")
        self.at += count
        return self.content[self.at - count : self.at]

    def whole(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.whole(8)).decode("utf-8", "replace")

    def few(self, what: str) -> int:
        """A count of ``what``."""
        count = self.whole(8)
        if count > MOST:
            raise BadInput(f"{self.path}: {count:,} {what}, a control vector has at most {MOST:,}")
        return count


def control_vectors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    """The tensors [d] of a control vector by their names. Raises `BadInput`."""
    if content[:4] != MAGIC:
        raise BadInput(f"{path} is no GGUF file", hint="fetch it again")
    file = _Bytes(path, content, 4)
    version = file.whole(4)
    if version not in VERSIONS:
        raise BadInput(
            f"{path}: GGUF version {version} is unknown; known are 2 and 3, little-endian"
        )
    tensors, entries = file.few("tensors"), file.few("entries")
    told = {}
    for _ in range(entries):
        key = file.text()
        told[key] = _value(file, file.whole(4))
    if told.get(_ARCHITECTURE) != _KIND:
        raise BadInput(
            f"{path}: {_ARCHITECTURE} is {told.get(_ARCHITECTURE)!r}, a control vector has {_KIND!r}",
            hint="give the control vector; a model goes to --model",
        )
    places = [_place(file) for _ in range(tensors)]
    alignment = told.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise BadInput(f"{path}: {_ALIGNMENT} must be a whole number from 1")
    start = -(-file.at // alignment) * alignment
    return {
        name: _tensor(file, start + offset, shape, kind) for name, shape, kind, offset in places
    }


def _value(file: _Bytes, kind: int, inside: bool = False) -> str | int | None:
    """A value of the header: a text, an unsigned whole number, None for what nobody here asks for."""
    if kind == _STRING:
        return file.text()
    if kind == _ARRAY and not inside:
        of = file.whole(4)
        count = file.whole(8)
        if of in _SIZES:
            file.take(_SIZES[of] * count)
            return None
        if count > MOST:
            raise BadInput(f"{file.path}: an array of {count:,} texts; a control vector has none")
        for _ in range(count):
            _value(file, of, inside=True)
        return None
    if kind not in _SIZES:
        raise BadInput(f"{file.path}: its header holds a value of an unknown kind ({kind})")
    return file.whole(_SIZES[kind])


def _place(file: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name, dimensions = file.text(), file.whole(4)
    if not 1 <= dimensions <= 4:
        raise BadInput(f"{file.path}: tensor {name!r} has {dimensions} dimensions")
    shape = tuple(file.whole(8) for _ in range(dimensions))
    return name, shape, file.whole(4), file.whole(8)


def _tensor(file: _Bytes, at: int, shape: tuple[int, ...], kind: int) -> torch.Tensor:
    if kind not in _TYPES:
        raise BadInput(
            f"{file.path}: a tensor of ggml's type {kind}; control vectors are F32, F16 or BF16"
        )
    count = math.prod(shape)
    data = _Bytes(file.path, file.content, at).take(_TYPES[kind].itemsize * count) if count else b""
    if not data:
        raise BadInput(f"{file.path}: a tensor without numbers")
    # GGUF states the innermost dimension first.
    return torch.frombuffer(bytearray(data), dtype=_TYPES[kind]).reshape(*reversed(shape))
