"""Greedy answers from the full copy, for records that came without a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monitor.errors import ConfigurationError
from monitor.replay.model import LoadedModel


def answered(loaded: LoadedModel, ids: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Up to ``tokens`` ids that the model answers to ``ids``, the most likely one at each step.

    An end-of-turn token ends the answer and belongs to it. Raises `ConfigurationError` when the
    model was not loaded in full.
    """
    whole: Any = loaded.answerer
    if whole is None:
        raise ConfigurationError(
            "replay.mode: generate needs the whole model", hint="load_model(…, full=True)"
        )
    before = whole.config._attn_implementation
    # Stepwise decoding keeps a cache, which packed attention knows nothing of.
    whole.set_attn_implementation("sdpa" if loaded.packed else before)
    given = torch.tensor([list(ids)], device=loaded.device)
    try:
        with torch.inference_mode():
            output = whole.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=loaded.tokenizer.pad_token_id or 0,
            )
    finally:
        whole.set_attn_implementation(before)
    return tuple(output[0, len(ids) :].tolist())
