"""Files of published vectors, as their publishers' programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.scenes.models import WIDTH

BLOCKS = 4
"""Of the tiny llama."""


def stack(rows: int, width: int = WIDTH, seed: int = 0) -> np.ndarray[Any, Any]:
    """A vector for each layer: float32 [rows, width]."""
    drawn = np.random.default_rng(seed).normal(size=(rows, width))
    return drawn.astype(np.float32)


def write_npy(path: Path, values: np.ndarray[Any, Any]) -> Path:
    np.save(path, values)
    return path


def write_safetensors(path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(one) for name, one in tensors.items()}, path)
    return path


def write_torch(path: Path, content: Any) -> Path:
    import torch

    torch.save(content, path)
    return path


def write_control(
    path: Path, rows: np.ndarray[Any, Any], first: int = 1, architecture: str = "controlvector"
) -> Path:
    """A control vector with ``direction.{first}`` and so on, by the format's own library."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer, row in enumerate(rows, first):
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
