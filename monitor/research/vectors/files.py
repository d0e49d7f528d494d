"""A publisher's file as tensors by name: bounded in size, and never run.

The whole file is read, `LARGEST` bytes at most: what a header says of sizes is checked against what is there.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from monitor.errors import BadInput
from monitor.given import read_given
from monitor.research.pickles import plain_content
from monitor.research.vectors.control import control_vectors
from monitor.research.vectors.conventions import SUFFIXES

LARGEST: Final = 256 * 1024 * 1024
"""Bytes; a stack of 127 layers 16,384 wide has 8 MB."""
LARGEST_HEADER: Final = 4 * 1024 * 1024
"""Bytes of a safetensors header; one tensor takes about a hundred."""
_BAD_HEADER: Final = (
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
    SyntaxError,
    TokenError,
)
"""What numpy raises for headers, which are literals of Python."""
ALONE: Final = ""
"""The name of a tensor that is alone in its file and has none."""


def tensors_in(path: Path, content: bytes) -> Mapping[str, torch.Tensor]:
    """The tensors of the file ``path``, read by its suffix from its ``content``; `ALONE` names a nameless one.

    Raises `BadInput`: another suffix, unreadable, truncated, or holding what could run code.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path, content)
    if path.suffix == ".npy":
        return {ALONE: _npy(path, content)}
    if path.suffix == ".gguf":
        return control_vectors(path, content)
    return _torch(path, content)


def content_of(path: Path) -> bytes:
    """The bytes of a file of vectors. Raises `BadInput` for none, for another kind, and for one beyond `LARGEST`."""
    if path.suffix not in SUFFIXES:
        raise BadInput(
            f"{path}: vectors are read from {', '.join(SUFFIXES)}",
            hint="name the file itself, not its folder; save other kinds as .safetensors",
        )
    try:
        return read_given(path, LARGEST)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None


def _safetensors(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    if int.from_bytes(content[:8], "little") > LARGEST_HEADER:
        raise BadInput(f"{path}: its header is larger than {LARGEST_HEADER:,} bytes")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInput(
            f"cannot read {path} as safetensors: {error}",
            hint="fetch it again; a pickle under that name is not loaded",
        ) from None


def _npy(path: Path, content: bytes) -> torch.Tensor:
    """Not by `numpy.load`, which makes room for what the header says before it looks for the numbers."""
    file = BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, kind = readers[version](file)
    except _BAD_HEADER as error:
        raise BadInput(f"cannot read {path} as npy: {error}", hint="fetch it again") from None
    if kind.kind != "f" or kind.itemsize > 8:
        raise BadInput(
            f"{path} holds {kind}, vectors are numbers of floating point",
            hint="save float32; arrays of objects are pickles, and refused",
        )
    data = content[file.tell() :]
    if any(size < 1 for size in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise BadInput(
            f"{path}: shape {list(shape)} is not what the file holds", hint="fetch it again"
        )
    found = np.frombuffer(data, dtype=kind).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(found.astype(kind.newbyteorder("="), order="C"))


def _torch(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    _check_archive(path, content)
    found = plain_content(path, content)
    if isinstance(found, torch.Tensor):
        return {ALONE: found}
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds a {type(found).__name__}, not a tensor or tensors by name")
    # Releases keep counts and names beside their tensors.
    return {str(name): one for name, one in found.items() if isinstance(one, torch.Tensor)}


def _check_archive(path: Path, content: bytes) -> None:
    """Torch saves an archive without compression; a compressed one could unfold to any size."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            inside = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError) as error:
        raise BadInput(
            f"cannot read {path} as a torch checkpoint: {error}",
            hint="fetch it again; files from before torch 1.6 must be saved anew, best as .safetensors",
        ) from None
    if any(one.compress_type != zipfile.ZIP_STORED for one in inside):
        raise BadInput(
            f"{path} is refused: torch saves without compression, and this is compressed"
        )
    if sum(one.file_size for one in inside) > LARGEST:
        raise BadInput(f"{path} is refused: it says that it holds more than {LARGEST:,} bytes")
