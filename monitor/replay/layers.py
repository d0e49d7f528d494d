"""Where an architecture keeps its decoder blocks, and a copy of it that ends behind the deepest site.

The configuration is never changed: what counts layers from the end (shared keys, lists with an entry
for each block, embeddings for each block) stays right. The later blocks are taken out of the model
before its weights are read, and so is everything of a multimodal model that does not read text.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from monitor.errors import ModelError

BLOCK_PATHS = ("layers", "h", "blocks", "decoder.layers", "model.layers", "transformer.h")
"""Attribute paths, tried in order, of the list of blocks below a model without its LM head."""
ANSWERING = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)
"""From a configuration to the whole model that answers, tried in order."""
MEDIA = re.compile(
    r"(?:^|\.)(?:vision_tower|vision_model|visual|audio_tower|multi_modal_projector|embed_vision"
    r"|embed_audio|mtp)\."
)
"""In names of weights: what reads images and sound, and what drafts several tokens at once."""
READS_AHEAD = {
    "diffusion_gemma": "it writes by diffusion",
    "paligemma": "its prompts are read in both directions",
}
"""Model types whose text part alone would be read otherwise than the model reads it, and why."""


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
        hint="only models with one stack of decoder blocks can be replayed",
    )


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of what reads text in the model; ``config`` itself in a text model.

    Refuses, with `ModelError`, what has no decoder that could be replayed.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ModelError(
            f"{kind} is an encoder-decoder; only decoders can be replayed",
            hint="give a model that answers by continuing its prompt",
        )
    if kind in READS_AHEAD:
        raise ModelError(
            f"{kind} cannot be replayed: {READS_AHEAD[kind]}",
            hint="give a model that answers by continuing its prompt",
        )
    text: PreTrainedConfig = config.get_text_config()
    if text is not config and not any(type(config) in mapping for mapping in ANSWERING):
        raise ModelError(
            f"{kind} has no decoder that answers, so there is nothing to replay",
            hint="give a language model, or a multimodal model with one inside",
        )
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, name, None)
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"{kind}: config.json does not say {name}",
                hint="fetch the model's config.json again",
            )
    return text


def model_class(config: PreTrainedConfig, *, full: bool) -> type[PreTrainedModel]:
    """The class of the model that answers if ``full``, else of its stack without LM head."""
    # A multimodal configuration may stand in the first mapping with its text model alone.
    composite = config.get_text_config() is not config
    answering = (*ANSWERING[1:], ANSWERING[0]) if composite else ANSWERING
    mappings = answering if full else (MODEL_MAPPING, *answering)
    for mapping in mappings:
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            kind: type[PreTrainedModel] = found[0] if isinstance(found, tuple | list) else found
            return kind
    raise ModelError(
        f"{config.model_type} has no {'LM head' if full else 'decoder'} in this transformers release",
        hint="give a model that answers by continuing its prompt",
    )


def cut_class(kind: type[PreTrainedModel], layers: int, *, full: bool) -> type[PreTrainedModel]:
    """``kind`` without what a replay of text never runs: the blocks from ``layers`` on, media, LM head.

    ``full`` keeps the LM head. The class keeps its name, by which transformers finds the conversions
    of its weights.
    """

    def built(self: Any, config: PreTrainedConfig, *given: Any, **options: Any) -> None:
        kind.__init__(self, config, *given, **options)
        stack = text_stack(self)
        if stack is not self:
            head = self.get_output_embeddings() if full else None
            _pruned(self, {stack, head} - {None})
        del blocks(stack)[layers:]

    return type(kind.__name__, (kind,), {"__init__": built, "__module__": kind.__module__})


def text_stack(model: PreTrainedModel) -> PreTrainedModel:
    """What reads text in ``model``, without LM head: ``model`` itself if there is nothing else in it."""
    whole: Any = model
    alone = model.config.get_text_config() is model.config
    stack = whole.base_model if alone else getattr(whole.get_decoder(), "base_model", None)
    if not isinstance(stack, PreTrainedModel) or (stack is model and not alone):
        raise ModelError(
            f"{model.config.model_type}: cannot find the decoder in {type(model).__name__}",
            hint="export its language model to a folder of its own",
        )
    return stack


def _pruned(module: torch.nn.Module, kept: set[Any]) -> bool:
    """Take out of ``module`` what neither is, holds nor stands inside one of ``kept``; is any left?"""
    if module in kept:
        return True
    found = [name for name, child in module.named_children() if _pruned(child, kept)]
    for name, _ in list(module.named_children()):
        if found and name not in found:
            module._modules[name] = None
    return bool(found)
