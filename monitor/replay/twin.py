"""The copy's own answer beside the served one, drawn by the same law.

The twin becomes text and goes through the same rendering as the served answer, so that both are read alike.
Both are read over as many tokens; since a token's activations do not depend on what follows it, the served
answer is not run again for that.

Legend: t = tokens of a row, b = rows, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from transformers import LogitsProcessor

from monitor.replay.answer import decoded, left_padded, stock_attention, until_end
from monitor.replay.forward import is_out_of_memory
from monitor.replay.model import LoadedModel
from monitor.replay.regions import Tokens, begun
from monitor.replay.sampler import is_greedy, penalised, truncated
from monitor.replay.surprise import end_tokens
from monitor.replay.tokens import Tokeniser
from monitor.values.arrays import Counts, Floats
from monitor.values.fidelity import CUT_SHORT
from monitor.values.prompts import Prompt, Sampling
from monitor.values.scores import Unreplayable
from monitor.values.surprise import NotWeighed
from monitor.values.twin import NotPaired, Pair, TwinAsked, Unpaired

SLACK: Final = 4
"""Tokens that a twin is decoded beyond those that are read: text may be split into fewer tokens than it was
said in, and its last letter may be half a letter."""
MOST_ROWS: Final = 16
"""Twins that are decoded at once."""


def twins(
    loaded: LoadedModel,
    tokeniser: Tokeniser,
    prompts: Sequence[Prompt],
    served: Mapping[int, Tokens],
    asked: Mapping[int, TwinAsked],
) -> dict[int, Tokens | Unpaired]:
    """By index into ``prompts``, the prompt with the copy's own answer, or why there is none.

    ``served`` holds the tokens of every prompt in ``asked``. Raises `ConfigurationError` when the model
    was not loaded in full.
    """
    found: dict[int, Tokens | Unpaired] = {}
    rows: dict[int, Draw] = {}
    for index, one in asked.items():
        tokens, length = served[index], _length(served[index], one)
        if tokens.cut or tokens.prompt_tokens + length > tokeniser.limit:
            found[index] = NotWeighed.CUT
        elif tokens.stand_ins or tokens.prompt_tokens == 0:
            found[index] = NotWeighed.STAND_IN
        else:
            rows[index] = Draw(tokens.ids[: tokens.prompt_tokens], one.law, length, one.seed)
    answers = dict(zip(rows, answers_of(loaded, list(rows.values())), strict=True))
    said = {index: ids for index, ids in answers.items() if not isinstance(ids, NotWeighed)}
    found |= {index: ids for index, ids in answers.items() if isinstance(ids, NotWeighed)}
    ends = set(end_tokens(loaded))
    told = [_answered(prompts[index], ids, tokeniser, ends) for index, ids in said.items()]
    for index, outcome in zip(said, tokeniser.tokenise(told), strict=True):
        if isinstance(outcome, Unreplayable):
            found[index] = NotPaired.NOTHING_TO_READ
        else:
            found[index] = begun(outcome, asked[index].tokens)
    return found


def _length(served: Tokens, asked: TwinAsked) -> int:
    """Tokens to decode: no more than the server's limit allowed, which an answer that was cut short shows."""
    limits = [asked.tokens + SLACK]
    if asked.law.max_tokens is not None:
        limits.append(asked.law.max_tokens)
    if asked.law.finish_reason in CUT_SHORT:
        limits.append(served.reasoning_tokens + served.response_tokens)
    return max(1, min(limits))


def _answered(prompt: Prompt, ids: Sequence[int], tokeniser: Tokeniser, ends: set[int]) -> Prompt:
    """``prompt`` as its record would hold this answer."""
    ended = bool(ids) and ids[-1] in ends
    law = replace(prompt.sampling or Sampling(), finish_reason="stop" if ended else "length")
    text = tokeniser.spoken(ids)
    return replace(prompt, response=text, reasoning=None, tool_calls=(), sampling=law)


def paired(readings: Floats, pooled_tokens: Counts) -> Pair | NotWeighed:
    """The pair of the readings [2, k] of both answers; `NotWeighed.NOT_FINITE` where one is not."""
    if (np.isfinite(readings) < (pooled_tokens > 0)).any():
        return NotWeighed.NOT_FINITE
    return Pair(readings=readings, pooled_tokens=pooled_tokens)


# --- decoding ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draw:
    """An answer to draw behind ``ids``: up to ``tokens`` by ``law``, its temperature known."""

    ids: tuple[int, ...]
    law: Sampling
    tokens: int
    seed: int


def answers_of(loaded: LoadedModel, rows: Sequence[Draw]) -> list[tuple[int, ...] | NotWeighed]:
    """The ids of each row's answer, its end token included where it came to one."""
    found: list[tuple[int, ...] | NotWeighed] = [NotWeighed.OUT_OF_MEMORY] * len(rows)
    waiting = list(_batches(rows))
    while waiting:
        members = waiting.pop()
        try:
            answers = _decoded(loaded, [rows[index] for index in members])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            found = [
                answers[members.index(index)] if index in members else one
                for index, one in enumerate(found)
            ]
            continue
        # Outside the handler, where the traceback no longer holds the failed batch's tensors.
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(members) // 2
        waiting += [members[:half], members[half:]] if half else []
    return found


def _batches(rows: Sequence[Draw]) -> Iterator[list[int]]:
    """Rows of like length together."""
    order = sorted(range(len(rows)), key=lambda index: (rows[index].tokens, len(rows[index].ids)))
    for begin in range(0, len(order), MOST_ROWS):
        yield order[begin : begin + MOST_ROWS]


def _decoded(loaded: LoadedModel, rows: Sequence[Draw]) -> list[tuple[int, ...]]:
    given, mask = left_padded([row.ids for row in rows], loaded)
    ends = end_tokens(loaded)
    longest = max(row.tokens for row in rows)
    draws = _Draws(rows, given.shape[1], loaded.device)
    with stock_attention(loaded) as whole, torch.inference_mode():
        output = decoded(
            whole, given, mask, loaded, longest, finite=False, draws=draws, ends=ends or None
        )
    answers = output[:, given.shape[1] :].tolist()
    return [until_end(ids[: row.tokens], ends) for ids, row in zip(answers, rows, strict=True)]


class _Draws(LogitsProcessor):
    """Leaves of each row's logits the one token that is drawn, by its own law and its own generator.

    The largest of log p + Gumbel noise is a draw from p.
    """

    def __init__(self, rows: Sequence[Draw], width: int, device: torch.device) -> None:
        self._rows = rows
        self._width = width
        self._generators = [torch.Generator(device).manual_seed(row.seed) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(scores, -torch.inf)
        none = torch.empty(0, dtype=torch.long, device=scores.device)
        for line, (row, generator) in enumerate(zip(self._rows, self._generators, strict=True)):
            so_far = input_ids[line, self._width :].tolist()
            logits = penalised(
                scores[line : line + 1].to(torch.float32), (row.ids, so_far), none, row.law
            )
            only[line, _drawn(logits, row.law, generator)] = 0.0
        return only


def _drawn(logits: torch.Tensor, law: Sampling, generator: torch.Generator) -> torch.Tensor:
    """The id drawn from ``logits`` [1, v]."""
    if is_greedy(law):
        return logits[0].argmax()
    assert law.temperature, "a law without its temperature is none"
    log_law = truncated((logits / law.temperature).log_softmax(dim=1), law)[0]
    noise = torch.empty_like(log_law).exponential_(generator=generator)
    return (log_law - noise.log()).argmax()
