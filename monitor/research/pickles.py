"""Pickles of others, read without running what they hold: torch's weights-only loader, and nothing else."""

from __future__ import annotations

import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import torch

from monitor.errors import BadInput

_UNREADABLE: Final = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
"""What the loader raises for damaged or forged files, beside `UnpicklingError`."""


def plain_content(path: Path, content: bytes | None = None) -> Any:
    """What torch saved in ``path``: tensors and plain values, mapped from the file or taken from ``content``.

    Raises `BadInput`: unreadable, truncated, or more than tensors and plain values (which could run code).
    """
    try:
        # Pickles from before torch 1.6 cannot be mapped.
        return torch.load(
            path if content is None else BytesIO(content),
            map_location="cpu",
            weights_only=True,
            mmap=content is None and zipfile.is_zipfile(path),
        )
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise BadInput(
            f"{path} is refused: it holds more than tensors and plain values, and reading that "
            f"could run code ({reason})",
            hint="ask the publisher for safetensors, or for a pickle of the state dict alone",
        ) from None
    except _UNREADABLE as error:
        raise BadInput(
            f"cannot read {path} as a torch checkpoint: {error}", hint="fetch it again"
        ) from None
