"""The model's own answers to many prompts at once, steered or not.

Legend: b = rows of a batch, t = tokens of its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from transformers import Cache

from monitor.errors import BadInput
from monitor.replay.answer import decoded, left_padded, stock_attention, until_end
from monitor.replay.branches.prefill import prefilled
from monitor.replay.branches.trunk import Branch, by_rows
from monitor.replay.model import LoadedModel, batch_tokens
from monitor.replay.regions import Tokens
from monitor.replay.taps import steered
from monitor.replay.tokens import Tokeniser
from monitor.research.progress import Progress, quiet
from monitor.research.reading import refusal
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt
from monitor.values.scores import Unreplayable

LONGEST = 2_048
"""Longest row in tokens, prompt and answer, where the model's own positions do not end before."""
ROWS = 64
"""Most answers of steered models that are decoded at once."""


def answers(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 16,
    progress: Progress = quiet,
) -> list[str]:
    """What the whole model answers to each prompt, in order; responses that prompts carry are left out.

    Prompts are rendered as in production. Temperature 0 is greedy; above it the answers are drawn with ``seed``, and the same call gives
    the same answers. Special tokens are stripped. Call it inside
    `monitor.replay.taps.steered` to steer. Blocks while the model runs. Raises `BadInput` for a
    prompt that cannot be replayed, `ConfigurationError` when the model was not loaded in full.
    """
    if max_new_tokens < 1 or not 0.0 <= temperature < math.inf:
        raise BadInput("answers need max_new_tokens of at least 1 and a finite temperature from 0")
    rows = _asked_rows(loaded, prompts, max_new_tokens)
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with (
        stock_attention(loaded) as whole,
        torch.random.fork_rng(devices),
        torch.inference_mode(),
    ):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            progress(f"answering {start + len(members)} of {len(order)}")
            said = _said(
                whole, loaded, [rows[index] for index in members], max_new_tokens, temperature
            )
            for index, text in zip(members, said, strict=True):
                found[index] = text
    return found


def answered(
    loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int, progress: Progress = quiet
) -> tuple[Prompt, ...]:
    """``prompts`` with the model's greedy answers of up to ``tokens`` tokens; an empty one is None."""
    texts = answers(loaded, prompts, max_new_tokens=tokens, progress=progress)
    return tuple(replace(p, response=text or None) for p, text in zip(prompts, texts, strict=True))


def answered_under(
    loaded: LoadedModel, branches: Sequence[Branch], prompts: Sequence[Prompt], tokens: int
) -> list[tuple[Prompt, ...]]:
    """``answered`` under each of ``branches``, in order: up to `ROWS` answers of several branches at once.

    What `answered` gives inside `monitor.replay.taps.steered`, but where two tokens are as likely as each other to the
    last digits of matrix products.
    """
    rows = _asked_rows(loaded, prompts, tokens)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    step = max(1, ROWS // max(1, len(branches)))
    found = [list(prompts) for _ in branches]
    tokens_at_once = batch_tokens(ReplaySettings(), loaded.device)
    for start in range(0, len(order), step):
        members = order[start : start + step]
        given = [rows[index] for index in members]
        cache = prefilled(loaded, given, branches, tokens_at_once)
        with (
            stock_attention(loaded) as whole,
            torch.inference_mode(),
            # The answers under one branch follow each other, so that each edit is made in one go.
            steered(loaded.blocks, by_rows(branches, len(members))),
        ):
            said = iter(_said(whole, loaded, given * len(branches), tokens, 0.0, cache))
        for one in found:
            for index in members:
                one[index] = replace(prompts[index], response=next(said) or None)
    return [tuple(one) for one in found]


def _asked_rows(
    loaded: LoadedModel, prompts: Sequence[Prompt], tokens: int
) -> list[tuple[int, ...]]:
    asked = [replace(prompt, response=None) for prompt in prompts]
    return [row.ids for row in token_rows(loaded, asked, room=tokens)]


def _said(
    whole: Any,
    loaded: LoadedModel,
    rows: Sequence[tuple[int, ...]],
    tokens: int,
    temperature: float,
    cache: Cache | None = None,
) -> list[str]:
    """The texts behind ``rows``, which are decoded together; ``cache`` as `decoded` has it."""
    ids, mask = left_padded(rows, loaded)
    output = decoded(whole, ids, mask, loaded, tokens, temperature, before=cache)
    given = whole.generation_config.eos_token_id
    ends = given if isinstance(given, list | tuple) else [given]
    said = [until_end(row, ends) for row in output[:, ids.shape[1] :].tolist()]
    return [text.strip() for text in loaded.tokenizer.batch_decode(said, skip_special_tokens=True)]


def token_rows(loaded: LoadedModel, prompts: Sequence[Prompt], *, room: int = 0) -> list[Tokens]:
    """Tokens of each prompt as in production, cut so that ``room`` more fit behind them.

    Raises `BadInput` for a prompt that cannot be replayed.
    """
    limit = min(getattr(loaded.config, "max_position_embeddings", None) or LONGEST, LONGEST) - room
    if limit < 1:
        raise BadInput(f"the model has no room for {room} tokens more")
    rows = []
    for index, one in enumerate(_tokeniser(loaded.tokenizer, limit).tokenise(prompts)):
        if isinstance(one, Unreplayable):
            raise refusal(f"prompt {index + 1}", loaded.model_id, one)
        rows.append(one)
    return rows


@lru_cache(maxsize=4)
def _tokeniser(tokenizer: Any, limit: int) -> Tokeniser:
    """Kept: a large vocabulary takes half a second to copy, and measurements ask hundreds of times."""
    return Tokeniser(tokenizer, limit)
