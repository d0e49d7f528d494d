"""One vector for each layer asked for, out of a publisher's files. Legend: d = model width."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.research.vectors.conventions import (
    CONTROL,
    Convention,
    Counting,
    Format,
    convention,
)
from monitor.research.vectors.files import ALONE, content_of, tensors_in
from monitor.values.arrays import Doubles
from monitor.values.identity import ModelIdentity

AXIS: Final = "axis"
SHOWN: Final = 12
"""Names of tensors that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is read of the files: ``layers`` as the publisher counts them, ``tensors`` by name (empty: the only
    one), and what the files do not say. Raises `BadInput`."""

    layers: tuple[int, ...]
    format: Format | None = None
    counting: Counting | None = None
    tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, given in (("--layer", self.layers), ("--tensor", self.tensors)):
            if len(set(given)) != len(given):
                raise BadInput(f"{option}: each may be given once")
        if not self.layers:
            raise BadInput("--layer: name at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A vector [d] as published, and the block behind which it is read."""

    name: str
    site: int
    layer: int
    """As the publisher counts."""
    values: Doubles
    convention: Convention
    path: Path
    sha256: str
    tensor: str

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.values))


def published(paths: Sequence[Path], asked: Asked, model: ModelIdentity) -> list[Vector]:
    """The vectors of ``paths``: files first, then tensors, then layers in the order asked for.

    Raises `BadInput` naming option, file and fix: not of the model's width, a layer outside it, a stack whose rows
    contradict how its layers are counted, numbers that are not finite, nothing but zeros.
    """
    return [vector for path in paths for vector in _in_file(path, asked, model)]


def _in_file(path: Path, asked: Asked, model: ModelIdentity) -> Iterator[Vector]:
    content = content_of(path)
    tensors = tensors_in(path, content)
    how = convention(path, asked.format, asked.counting, AXIS in tensors)
    digest = hashlib.sha256(content).hexdigest()
    for layer in asked.layers:
        how.site(layer, model.layers)
    for title, tensor in _chosen(path, tensors, how, asked):
        for layer in asked.layers:
            held, row = _row(path, tensor, how, layer, model)
            yield Vector(
                name=title or how.name,
                site=how.site(layer, model.layers),
                layer=layer,
                values=_checked(f"{path}, layer {layer}", row),
                convention=how,
                path=path,
                sha256=digest,
                tensor=held,
            )


def _chosen(
    path: Path, tensors: Mapping[str, torch.Tensor], how: Convention, asked: Asked
) -> list[tuple[str, Mapping[str, torch.Tensor]]]:
    """What each vector is called (empty: by its file), and the tensors in which its layers are."""
    if how.format in CONTROL:
        if asked.tensors:
            raise BadInput(
                "--tensor: a control vector has a tensor for each layer; choose by --layer"
            )
        return [("", tensors)]
    if strangers := [name for name in asked.tensors if name not in tensors]:
        raise BadInput(f"--tensor {strangers[0]}: {path} holds {_names(tensors)}")
    if asked.tensors:
        several = len(asked.tensors) > 1
        return [(name if several else "", {name: tensors[name]}) for name in asked.tensors]
    if how.format == "assistant-axis" and AXIS in tensors:
        return [("", {AXIS: tensors[AXIS]})]
    if len(tensors) != 1:
        raise BadInput(
            f"{path} holds {_names(tensors)}: which one is the vector?", hint="say it with --tensor"
        )
    return [("", tensors)]


def _row(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    how: Convention,
    layer: int,
    model: ModelIdentity,
) -> tuple[str, torch.Tensor]:
    """The name of the tensor that holds ``layer``, and its row [d]."""
    name = f"direction.{layer}" if how.format in CONTROL else next(iter(tensors))
    if name not in tensors:
        raise BadInput(f"--layer {layer}: {path} has no {name}; it holds {_names(tensors)}")
    tensor = tensors[name]
    called = f"{path}: {name or 'the tensor'}"
    _check_kind(called, tensor)
    shape = list(tensor.shape)
    if not shape or shape[-1] != model.hidden_size:
        raise BadInput(
            f"{called} has shape {shape}, {model.model_id} is {model.hidden_size} wide: "
            "it was made for another model"
        )
    vectors = tensor.numel() // model.hidden_size
    if vectors == 1:
        return name, tensor.reshape(-1)
    if len(shape) != 2:
        raise BadInput(f"{called} has shape {shape}: a vector is [d], all layers are [layers, d]")
    _check_stack(called, vectors, how, model.layers)
    return name, tensor[layer]


def _check_kind(called: str, tensor: torch.Tensor) -> None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or not tensor.dtype.is_floating_point:
        raise BadInput(
            f"{called} is {tensor.dtype} ({tensor.layout}): vectors are plain numbers of floating point"
        )


def _check_stack(called: str, rows: int, how: Convention, blocks: int) -> None:
    """A stack of all layers shows by its rows how it counts; any other count shows nothing."""
    if rows == how.rows(blocks):
        return
    told = f"{called} has {rows} rows, the model {blocks} blocks"
    if rows in (blocks, blocks + 1):
        other: Counting = "blocks" if rows == blocks else "hidden-states"
        raise BadInput(
            f"{told}: its layers are counted as {other}, not as {how.counting}",
            hint=f"give --format plain --layers-are {other}",
        )
    raise BadInput(
        f"{told}: which row is which layer cannot be told",
        hint=f"give all layers ({how.rows(blocks)} rows, as {how.counting} count), or the vector of one "
        "layer in a file of its own",
    )


def _checked(called: str, row: torch.Tensor) -> Doubles:
    values: Any = row.detach().to(torch.float64).numpy()
    found: Doubles = np.array(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise BadInput(f"{called}: the vector holds numbers that are not finite")
    if not found.any():
        raise BadInput(f"{called}: the vector is zero: nobody made one for this layer")
    return found


def _names(tensors: Mapping[str, torch.Tensor]) -> str:
    """What a file holds, in a sentence."""
    names = sorted(name if name != ALONE else "a tensor without a name" for name in tensors)
    if not names:
        return "no tensor"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
