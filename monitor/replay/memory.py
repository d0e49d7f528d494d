"""What a copy takes in memory: the weights up to its deepest site, by block, counted before or after they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from monitor.replay.layers import blocks, cut_class, model_class, text_stack

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of each block, and of the rest: embeddings, and final norm and LM head where they are loaded."""

    blocks: tuple[int, ...]
    rest: int

    @property
    def bytes(self) -> int:
        return sum(self.blocks) + self.rest


def sizes(whole: PreTrainedModel) -> Sizes:
    """Of a model as it stands, wherever its weights are. What several blocks share counts in the first."""
    seen: set[int] = set()
    by_block = tuple(_bytes(block, seen) for block in blocks(text_stack(whole)))
    return Sizes(blocks=by_block, rest=_bytes(whole, seen))


def planned(
    config: PreTrainedConfig, site: int, dtype: torch.dtype, *, full: bool = False
) -> Sizes:
    """Of the copy that a pack with the deepest site ``site`` asks for (``full``: the whole model), no weight being read.

    Raises `ModelError` for what has no decoder.
    """
    kind: Any = cut_class(
        model_class(config, full=full),
        config.get_text_config().num_hidden_layers if full else site + 1,
        full=full,
    )
    with torch.device("meta"):
        return sizes(kind._from_config(config, dtype=dtype))


def _bytes(module: torch.nn.Module, seen: set[int]) -> int:
    """Of the parameters and buffers that are not ``seen`` yet."""
    found = 0
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found += tensor.nbytes
    return found
