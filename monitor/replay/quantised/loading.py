"""The weights of a quantised checkpoint as the library takes them: each is read and dequantised when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from monitor.errors import ModelError
from monitor.replay.quantised.form import Format, Rule, Stored, refusal

OPEN: Final = frozenset({"F64", "F32", "F16", "BF16", "BOOL", "I64"})
"""Types of tensors that a model holds as they are; others are parts of a weight."""
QUANTISED: Final = ("F8", "F4", "I8")
"""Types that no model computes in: how the names of these begin."""


class Dequantised:
    """A weight that is not read: ``weight[...]`` reads its parts and gives it in float32.

    What that raises is kept in ``failures`` as well, since the library says it in words of its own.
    """

    def __init__(self, parts: Mapping[str, Any], rule: Rule, failures: list[ModelError]) -> None:
        self._parts = parts
        self._rule = rule
        self._failures = failures

    def __getitem__(self, where: Any) -> torch.Tensor:
        try:
            with torch.no_grad():
                return self._rule({role: piece[...] for role, piece in self._parts.items()})[where]
        except ModelError as error:
            self._failures.append(error)
            raise


@contextmanager
def dequantised(
    files: list[Path], form: Format, later: Callable[[str], bool]
) -> Iterator[dict[str, Any]]:
    """Every tensor of ``files`` by the name that the model has for it, none of them read yet.

    Those that are ``later`` than the replay are left out. Raises `ModelError` for parts that fit no
    weight, and for weights whose parts cannot be read.
    """
    failures: list[ModelError] = []
    with ExitStack() as opened:
        slices: dict[str, Any] = {}
        notes: dict[str, str] = {}
        for file in files:
            held = opened.enter_context(safe_open(file, framework="pt"))
            slices |= {name: held.get_slice(name) for name in held.keys() if not later(name)}  # noqa: SIM118
            notes |= held.metadata() or {}
        try:
            yield _weights(slices, notes, form, failures)
        except Exception:
            if not failures:
                raise
        if failures:
            raise failures[0]


def require_open(files: list[Path], later: Callable[[str], bool]) -> None:
    """Refuse quantised weights in a checkpoint that does not say so: without their scales they mean nothing."""
    for file in filter(Path.is_file, files):
        with safe_open(file, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118
                kind = held.get_slice(name).get_dtype()
                if kind.startswith(QUANTISED) and not later(name):
                    raise refusal(
                        f"{name} is stored in {kind}, and config.json has no quantization_config",
                        "fetch the model's config.json again, or give a copy in bfloat16 or float32",
                    )


def require_linear(model: PreTrainedModel) -> None:
    """Refuse a model whose layers hold their weights the other way round: a square one would be read wrongly."""
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise refusal(f"{model.config.model_type}: its quantised weights are not read")


def _weights(
    slices: Mapping[str, Any], notes: Mapping[str, str], form: Format, failures: list[ModelError]
) -> dict[str, Any]:
    """From a weight's name to its slice, or to what dequantises it."""
    grouped = _grouped(slices, form)
    used = {name for parts in grouped.values() for name in parts.values()}
    modules = {weight.rpartition(".")[0] for weight in grouped} if form.ending else set()
    found: dict[str, Any] = {}
    for name, held in slices.items():
        if name in used or name.endswith(form.ignored):
            continue
        if held.get_dtype() not in OPEN:
            raise refusal(
                f"{name} is stored in {held.get_dtype()}, and nothing says how to read it"
            )
        module, _, last = name.rpartition(".")
        if module in modules and last != "bias":
            raise refusal(
                f"{name} belongs to a quantised weight, and nothing says what it does to it"
            )
        found[name] = held
    for weight, parts in grouped.items():
        note = notes.get(weight, "")
        stored = {role: _stored(name, slices[name], note) for role, name in parts.items()}
        found[weight] = Dequantised(
            {role: slices[name] for role, name in parts.items()},
            form.rule(weight, stored),
            failures,
        )
    return found


def _grouped(slices: Mapping[str, Any], form: Format) -> dict[str, dict[str, str]]:
    """From a quantised weight's name to the names of its parts, by role."""
    grouped: dict[str, dict[str, str]] = {}
    ends = sorted(form.parts, key=len, reverse=True)
    for name in slices:
        suffix = next((end for end in ends if name.endswith(end)), None)
        if suffix is None:
            continue
        module = name.removesuffix(suffix)
        if not form.lead or module + form.lead in slices:
            grouped.setdefault(module + form.ending, {})[form.parts[suffix]] = name
    for weight, parts in grouped.items():
        if weight in slices:
            parts["weight"] = weight
    return grouped


def _stored(name: str, held: Any, note: str) -> Stored:
    return Stored(name, str(held.get_dtype()), tuple(held.get_shape()), note)
