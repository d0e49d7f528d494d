"""The model's own answer: stepwise decoding, which packed attention cannot do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, LogitsProcessor, PreTrainedModel

from monitor.errors import ConfigurationError, ModelError
from monitor.replay.loaded import LoadedModel


@contextmanager
def stock_attention(loaded: LoadedModel) -> Iterator[PreTrainedModel]:
    """The whole model with transformers' own attention: masks, padding and a cache work.

    The attention it had is restored afterwards. Raises `ConfigurationError` when the model was not
    loaded in full.
    """
    whole: Any = loaded.answerer
    if whole is None:
        raise ConfigurationError(
            "the model's own answers need the whole model", hint="load_model(…, full=True)"
        )
    before = whole.config._attn_implementation
    if loaded.packed:
        # Gemma 2 caps its attention softly, which the fused kernel of transformers does not.
        openly = loaded.attention.endswith("eager") or not whole._supports_sdpa
        whole.set_attn_implementation("eager" if openly else "sdpa")
    try:
        yield whole
    finally:
        whole.set_attn_implementation(before)


def answered(loaded: LoadedModel, ids: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Up to ``tokens`` ids that the model answers to ``ids``, the most likely one at each step.

    An end-of-turn token ends the answer and belongs to it. Logits that are not finite give some
    answer: replay reads it and refuses that one prompt, where an error here would end the worker.
    Raises `ConfigurationError` when the model was not loaded in full.
    """
    given = torch.tensor([list(ids)], device=loaded.device)
    with stock_attention(loaded) as whole, torch.inference_mode():
        output = decoded(whole, given, torch.ones_like(given), loaded, tokens, finite=False)
    return tuple(output[0, len(ids) :].tolist())


def decoded(
    whole: PreTrainedModel,
    given: torch.Tensor,
    mask: torch.Tensor,
    loaded: LoadedModel,
    tokens: int,
    temperature: float = 0.0,
    *,
    finite: bool = True,
    draws: LogitsProcessor | None = None,
    ends: Sequence[int] | None = None,
    before: Cache | None = None,
) -> torch.Tensor:
    """``given`` [b, t] (0 in ``mask`` where padded, on the left) and up to ``tokens`` ids more.

    Rows that end early are filled up with the padding token. Temperature 0 takes the most likely id
    at each step; above it, ids are drawn from the whole distribution by torch's global generator.
    ``draws`` changes the logits before, ``ends`` are the ids that end an answer, unless the model's own.
    ``before`` holds the keys and values of all tokens of ``given`` but the last, and is used up.
    Raises `ModelError` for logits that are not finite, unless ``finite`` is False.
    """
    model: Any = whole
    processors = [*([_Finite()] if finite else []), *([draws] if draws else [])]
    chosen: dict[str, Any] = {"do_sample": temperature > 0.0}
    if temperature > 0.0:
        chosen |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    else:
        chosen |= {"temperature": None, "top_p": None, "top_k": None}
    if ends is not None:
        chosen["eos_token_id"] = list(ends)
    if before is not None:
        chosen["past_key_values"] = before
    output = model.generate(
        input_ids=given,
        attention_mask=mask,
        max_new_tokens=tokens,
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=padding(loaded),
        logits_processor=processors or None,
        **chosen,
    )
    assert isinstance(output, torch.Tensor)
    return output


def until_end(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """``ids`` of an answer up to the first of ``ends``, which belongs to it: what is behind only fills up its row."""
    last = next((place for place, one in enumerate(ids) if one in ends), len(ids) - 1)
    return tuple(ids[: last + 1])


class _Finite(LogitsProcessor):
    """Lets logits pass as they are; `ModelError` for NaN and infinity, from which nothing can be drawn."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Minus infinity is what a model gives to ids that it never says.
        if bool((torch.isnan(scores) | torch.isposinf(scores)).any()):
            raise ModelError(
                "the model's logits are not finite, so it has no answer",
                hint="the model's weights or dtype give non-finite activations, or it is steered too "
                "strongly",
            )
        return scores


def padding(loaded: LoadedModel) -> int:
    """The id that fills up rows; any will do, for nothing attends to it."""
    return int(loaded.tokenizer.pad_token_id or 0)


def left_padded(
    rows: Sequence[Sequence[int]], loaded: LoadedModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [b, t] and mask [b, t] (0 where padded) of ``rows``, on the model's device."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding(loaded))
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, longest - len(row) :] = torch.tensor(list(row))
        mask[line, longest - len(row) :] = 1
    return ids.to(loaded.device), mask.to(loaded.device)
