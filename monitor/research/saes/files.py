"""Reading a publisher's files: tensors that map the file instead of copying it, never code.

A loader asks for tensors by name and shape; what is missing or of another shape is named. Legend:
n = latents of the SAE, d = model width.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from monitor.errors import BadInput
from monitor.given import LARGEST_JSON, read_given
from monitor.research.pickles import plain_content


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """What one weights file holds: tensors by name, and whatever plain values a pickle carried."""

    path: Path
    content: Mapping[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def take(self, name: str, shape: Sequence[int | None]) -> torch.Tensor:
        """The tensor ``name``; None in ``shape`` allows any size. Raises `BadInput`."""
        if name not in self.content:
            raise BadInput(f"{self.path}: tensor {name} is missing")
        found = self.content[name]
        if not isinstance(found, torch.Tensor) or not found.dtype.is_floating_point:
            kind = found.dtype if isinstance(found, torch.Tensor) else type(found).__name__
            raise BadInput(f"{self.path}: {name} must be a tensor of floating point, found {kind}")
        sizes = list(found.shape)
        if len(sizes) != len(shape) or any(
            want not in (None, size) for want, size in zip(shape, sizes, strict=True)
        ):
            wanted = [size if size is not None else "any" for size in shape]
            raise BadInput(f"{self.path}: {name} has shape {sizes}, expected {wanted}")
        return found

    def scalar(self, name: str) -> float:
        """The number ``name``, as a tensor of one element or a plain number."""
        found = self.content.get(name)
        if isinstance(found, torch.Tensor) and found.numel() == 1:
            found = found.item()
        if not isinstance(found, (int, float)) or isinstance(found, bool) or not np.isfinite(found):
            raise BadInput(f"{self.path}: {name} must be one finite number")
        return float(found)


def read_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors, npz or pickled file, by its suffix.

    Raises `BadInput`: unreadable, truncated, or a pickle that holds more than tensors and plain
    values (which could run code).
    """
    if not path.is_file():
        raise BadInput(f"no file {path}")
    if path.suffix == ".safetensors":
        return Tensors(path=path, content=_safetensors(path))
    if path.suffix == ".npz":
        return Tensors(path=path, content=_npz(path))
    return Tensors(path=path, content=_pickle(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; numbers that JSON does not have become texts."""
    try:
        content = json.loads(read_given(path, LARGEST_JSON), parse_constant=str)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} must hold one JSON object")
    return content


def positive(fields: Mapping[str, Any], name: str, path: Path) -> int:
    """The whole number ``name`` of a config, at least 1."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{path}: {name} must be a positive whole number, found {value!r}")
    return value


def number(fields: Mapping[str, Any], name: str) -> float | None:
    """The finite number ``name`` of a config where there is one."""
    value = fields.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not np.isfinite(value):
        return None
    return float(value)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot read {path} as safetensors: {error}",
            hint="fetch it again; a pickle under that name is not loaded",
        ) from None


def _npz(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BadInput(
            f"cannot read {path} as npz: {error}", hint="fetch it again; object arrays are refused"
        ) from None


def _pickle(path: Path) -> dict[str, Any]:
    content = plain_content(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(f"{path} must hold a state dict: tensors by name")
    return content
