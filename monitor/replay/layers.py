"""Where an architecture keeps its decoder blocks, and what a truncated configuration looks like."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedConfig

from monitor.errors import ModelError

BLOCK_PATHS = ("layers", "h", "blocks", "decoder.layers", "model.layers", "transformer.h")
"""Attribute paths, tried in order, of the list of blocks below a model without its LM head."""


def blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The decoder blocks in order: block L's output is the residual stream at site L.

    Raises `ModelError` for a model that keeps its blocks elsewhere.
    """
    for path in BLOCK_PATHS:
        found: object = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, torch.nn.ModuleList) and len(found) > 0:
            return found
    raise ModelError(
        f"{type(model).__name__}: cannot find its decoder blocks",
        hint="only decoder-only language models can be replayed",
    )


def require_decoder(config: PreTrainedConfig) -> None:
    """Refuse, with `ModelError`, what is no decoder-only text model."""
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(f"{kind} is an encoder-decoder; only decoder-only models can be replayed")
    if config.get_text_config() is not config:
        raise ModelError(
            f"{kind} is a multimodal model", hint="export its language model to a folder of its own"
        )
    if not getattr(config, "num_hidden_layers", 0):
        raise ModelError(f"{kind}: config.json does not say num_hidden_layers")


def truncated(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of ``config`` with the first ``layers`` blocks; lists with one entry per block are cut too."""
    full = config.num_hidden_layers
    shorter = copy.deepcopy(config)
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, list) and len(value) == full:
            setattr(shorter, name, value[:layers])
    shorter.num_hidden_layers = layers
    return shorter
