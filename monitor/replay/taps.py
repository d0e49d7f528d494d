"""The only hooks in the project: read the residual stream at chosen sites, or change it there.

Legend: b = rows, t = tokens, d = model width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from monitor.errors import BadInput, ModelError

Reader = Callable[[torch.Tensor], None]
"""Takes the residual stream [b, t, d] at one site, while the forward pass stands there."""


class _Reached(Exception):
    """The deepest site was read: nothing below it matters."""


@contextmanager
def tapped(blocks: torch.nn.ModuleList, readers: Mapping[int, Reader]) -> Iterator[None]:
    """Within the context, a forward pass calls ``readers[L]`` with the output of block L.

    The pass ends behind the deepest site: leave the context's body with that call, for the rest of
    it does not run. Whatever happens, no hook survives the context.
    """
    deepest = max(readers)
    with ExitStack() as hooks:
        for site, reader in readers.items():
            handle = blocks[site].register_forward_hook(_hook(reader, last=site == deepest))
            hooks.callback(handle.remove)
        try:
            yield
        except _Reached:
            return


def _hook(reader: Reader, *, last: bool) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        reader(_residual(output))
        if last:
            raise _Reached

    return hook


class Change(Protocol):
    """What `steered` makes of the residual stream behind one block."""

    @property
    def site(self) -> int: ...

    def applied(self, residual: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of the residual stream x behind block ``site``, token by token.

    ``x + add·direction``, or with ``project_out``: ``x - (x·direction)direction``. ``direction`` [d]
    has length one, ``add`` is in the units of the residual stream. Tokens that stand at a position
    below ``first_position`` of their prompt stay as they are: 1 spares the attention sink. Raises
    `BadInput` for what is not so.
    """

    site: int
    direction: torch.Tensor
    add: float = 0.0
    project_out: bool = False
    first_position: int = 0

    def __post_init__(self) -> None:
        direction = self.direction
        if direction.ndim != 1 or not bool(torch.isfinite(direction).all()):
            raise BadInput("steering: a direction must be a vector of finite numbers")
        if abs(float(torch.linalg.vector_norm(direction.double())) - 1.0) > 1e-2:
            raise BadInput("steering: a direction must have length one")
        if not math.isfinite(self.add):
            raise BadInput(f"steering: the strength must be a finite number, not {self.add}")
        if self.project_out and self.add != 0.0:
            raise BadInput("steering: either add a direction or project it out")

    def applied(self, residual: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """``residual`` [b, t, d] after the edit; ``positions`` [1 or b, t] within each prompt."""
        if residual.shape[-1] != self.direction.numel():
            raise ModelError(
                f"steering: the direction is {self.direction.numel()} wide, "
                f"the model {residual.shape[-1]}"
            )
        direction = self.direction.to(residual)
        if self.project_out:
            edited = residual - (residual @ direction)[..., None] * direction
        else:
            edited = residual + self.add * direction
        if self.first_position == 0:
            return edited
        if positions is None:
            raise ModelError(
                "this architecture does not tell its blocks the positions of their tokens, "
                "so none can be spared from steering",
                hint="Edit(first_position=0) steers all of them",
            )
        return torch.where((positions >= self.first_position)[..., None], edited, residual)


FIRST_STEERED: Final = 1
"""The first token stays as it is. It becomes the attention sink, a hundred times as long as the
others; in some models only blocks after the steered site, where its length does not show it yet."""


def push(site: int, direction: torch.Tensor, length: float, *, project_out: bool = False) -> Edit:
    """Every token but the first is moved by ``length`` along ``direction`` [d] of any length, or loses its part along it."""
    wide = direction.double()
    return Edit(
        site=site,
        direction=(wide / torch.linalg.vector_norm(wide)).float(),
        add=length,
        project_out=project_out,
        first_position=FIRST_STEERED,
    )


@contextmanager
def steered(blocks: torch.nn.ModuleList, edits: Sequence[Change]) -> Iterator[None]:
    """Within the context every forward pass goes on from the edited residual stream.

    Edits of one site are made in their order. Gradients pass through; with gradient checkpointing
    the backward pass belongs into the context too. Readers of `tapped` entered inside see the edited
    stream. Positions are the ``position_ids`` that reach the blocks, which transformers counts from
    a prompt's first token when generating behind left padding; in a pass of one's own, give them.
    Whatever happens, no hook survives the context. Raises `BadInput` for a site the model lacks.
    """
    by_site: dict[int, list[Change]] = defaultdict(list)
    for edit in edits:
        if not 0 <= edit.site < len(blocks):
            raise BadInput(
                f"steering: there is no site {edit.site}; sites of this model are 0 to {len(blocks) - 1}"
            )
        by_site[edit.site].append(edit)
    with ExitStack() as hooks:
        for site, here in by_site.items():
            handle = blocks[site].register_forward_hook(_editing(here), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _editing(edits: Sequence[Change]) -> Callable[..., object]:
    def hook(
        _module: torch.nn.Module, _inputs: object, options: Mapping[str, Any], output: object
    ) -> object:
        residual = _residual(output)
        for edit in edits:
            residual = edit.applied(residual, options.get("position_ids"))
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    return hook


def _residual(output: object) -> torch.Tensor:
    residual = output[0] if isinstance(output, tuple) else output
    assert isinstance(residual, torch.Tensor)
    return residual
