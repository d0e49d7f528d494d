"""Chats as rows to train on: the tokens that production reads, with the end of the turn behind them.

Legend: n = examples, b = rows of a batch, t = tokens of its longest row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay.bounded import Overrun, Raised, render
from monitor.replay.checkpoint import template_of
from monitor.replay.model import LoadedModel
from monitor.replay.tokens import Tokeniser
from monitor.research.reading import refusal
from monitor.values.prompts import Prompt
from monitor.values.scores import Unreplayable

IGNORED: Final = -100
"""A target that counts for nothing: `torch.nn.functional.cross_entropy`'s own default."""
GROUPED: Final = 32
"""Batches whose rows are sorted by length together: little padding, and the order stays random."""
UNCUT: Final = 1 << 30
_MARK: Final = "\ue000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row: prompt, response, end of turn. ``first`` is the position where the response begins."""

    ids: tuple[int, ...]
    first: int


def examples(
    loaded: LoadedModel, prompts: Sequence[Prompt], max_tokens: int
) -> tuple[Example, ...]:
    """Each prompt as an `Example` of at most ``max_tokens`` tokens, cut by production's rule.

    A response that the cut shortened ends without an end of turn, for it did not end there. Raises
    `BadInput` when there are none, and for one that cannot be replayed or has no response.
    """
    if not prompts:
        raise BadInput("there are no examples to learn from")
    positions = getattr(loaded.config, "max_position_embeddings", None) or max_tokens
    limit = min(max_tokens, positions) - 1
    tokeniser = Tokeniser(loaded.tokenizer, UNCUT)
    ending = end_of_turn(loaded.tokenizer)
    found = []
    for index, whole in enumerate(tokeniser.tokenise(prompts)):
        if isinstance(whole, Unreplayable):
            raise refusal(f"example {index + 1}", loaded.model_id, whole)
        if whole.response_tokens == 0 or whole.prompt_tokens == 0:
            raise BadInput(f"example {index + 1} needs messages and a response")
        row = tokeniser.shortened(whole, limit)
        ended = row.response_tokens == whole.response_tokens
        found.append(Example(ids=row.ids + ending * ended, first=row.prompt_tokens))
    return tuple(found)


def end_of_turn(tokenizer: Any) -> tuple[int, ...]:
    """The token that the chat template sets behind an answer, else the end-of-text token, else none."""
    ends = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    if not template_of(tokenizer):
        return ends
    try:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        text = render(tokenizer, None, {"conversation": turns})
    except (Overrun, Raised):
        return ends
    behind = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (int(behind[0]),) if behind and behind[0] in special else ends


def batches(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The rows of each batch of one epoch: every row once, neighbours in length together.

    Depends on the arguments alone, so that a run continues where it stopped.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    made: list[tuple[int, ...]] = []
    for start in range(0, len(order), batch * GROUPED):
        group = sorted(order[start : start + batch * GROUPED], key=lambda row: lengths[row])
        made += [tuple(group[at : at + batch]) for at in range(0, len(group), batch)]
    return [made[index] for index in generator.permutation(len(made))]


def collated(
    rows: Sequence[Example], padding: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [b, t], padded on the right, where causal attention never looks, and targets [b, t - begin].

    ``begin`` is the earliest first response token of the rows; a target is the id at its own
    position, or `IGNORED` for a token of the prompt and for padding.
    """
    longest = max(len(row.ids) for row in rows)
    begin = min(row.first for row in rows)
    ids = torch.full((len(rows), longest), padding)
    targets = torch.full_like(ids, IGNORED)
    for line, row in enumerate(rows):
        stop = len(row.ids)
        ids[line, :stop] = torch.tensor(row.ids)
        targets[line, row.first : stop] = ids[line, row.first : stop]
    return ids.to(device), targets[:, begin:].to(device)


def digest(rows: Sequence[Example]) -> str:
    """SHA-256 of the rows: what a run that goes on must have been started with."""
    content = repr([(row.ids, row.first) for row in rows])
    return hashlib.sha256(content.encode()).hexdigest()
