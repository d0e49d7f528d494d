"""The only hooks in the project: read the residual stream at chosen sites, then stop the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch

Reader = Callable[[torch.Tensor], None]
"""Takes the residual stream [batch, tokens, d] at one site, while the forward pass stands there."""


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
        residual = output[0] if isinstance(output, tuple) else output
        assert isinstance(residual, torch.Tensor)
        reader(residual)
        if last:
            raise _Reached

    return hook
