"""Answers run through a whole model behind their prompts, their logits handed to readers and never kept.

Of the logits only so many are made at a time as `LOGITS` has room for. A long answer is run in stretches over a cache
of keys and values, as in decoding.

Legend: t = tokens of an answer, v = vocabulary, b = rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from transformers import PreTrainedModel

from monitor.replay.answer import left_padded
from monitor.replay.forward import is_out_of_memory
from monitor.replay.model import LoadedModel
from monitor.replay.regions import Tokens
from monitor.replay.sampler import penalised
from monitor.values.prompts import Sampling

LOGITS = 2**25
"""Logits that may be held at once (128 MiB in float32)."""
PIECE = 32
"""Tokens whose laws are computed at once."""


class Reader(Protocol):
    """Takes the logits of one row's answer as they come."""

    @property
    def row(self) -> Tokens: ...

    def take(self, logits: torch.Tensor) -> None:
        """The next logits [t, v]: each before one token of the answer, the last before its end."""
        ...


Made = TypeVar("Made", bound=Reader)


def read_all(
    whole: PreTrainedModel,
    loaded: LoadedModel,
    rows: Sequence[Tokens],
    make: Callable[[int], Made],
) -> dict[int, Made]:
    """By index, the readers that ``make`` makes of the rows with an answer, once they have taken its logits.

    ``whole`` is the model with stock attention; device, padding and vocabulary are those of ``loaded``. A
    row that does not fit into memory even alone is left out.
    """
    found: dict[int, Made] = {}
    with torch.inference_mode():
        waiting = list(_batches(rows, loaded))
        while waiting:
            members = waiting.pop()
            # Anew at each try: a reader of a pass that failed may have taken a part.
            readers = [make(index) for index in members]
            if _fits(whole, readers, loaded):
                found |= zip(members, readers, strict=True)
            elif len(members) > 1:
                half = len(members) // 2
                waiting += [members[:half], members[half:]]
    return found


def answer_tokens(row: Tokens) -> int:
    return row.reasoning_tokens + row.response_tokens


def spoken(
    row: Tokens, law: Sampling, taken: int, logits: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """``logits`` [t, v] in pieces, penalised, each with the ids that were said there.

    The first is that of token ``taken`` of the answer; behind the last token nothing was said.
    """
    asked, answer = row.ids[: row.prompt_tokens], row.ids[row.prompt_tokens :]
    for start in range(0, len(logits), PIECE):
        piece = logits[start : start + PIECE].to(torch.float32)
        first = taken + start
        said = torch.tensor(
            answer[first : first + len(piece)], dtype=torch.long, device=piece.device
        )
        yield penalised(piece, (asked, answer[:first]), said, law), said


def _batches(rows: Sequence[Tokens], loaded: LoadedModel) -> Iterator[list[int]]:
    """Rows with answers of like length together, as many as `LOGITS` has room for."""
    vocabulary = loaded.config.get_text_config().vocab_size
    order = sorted(
        (index for index, row in enumerate(rows) if answer_tokens(row) and row.prompt_tokens),
        key=lambda index: (answer_tokens(rows[index]), len(rows[index].ids)),
    )
    members: list[int] = []
    for index in order:
        longest = answer_tokens(rows[index]) + 1
        if members and (len(members) + 1) * longest * vocabulary > LOGITS:
            yield members
            members = []
        members.append(index)
    if members:
        yield members


def _fits(whole: Any, readers: Sequence[Reader], loaded: LoadedModel) -> bool:
    """Run the rows and let their readers take the logits; False when memory does not suffice."""
    try:
        _pass(whole, readers, loaded)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Outside the handler, where the traceback no longer holds the failed pass's tensors.
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def _pass(whole: Any, readers: Sequence[Reader], loaded: LoadedModel) -> None:
    ids, mask = left_padded([reader.row.ids for reader in readers], loaded)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    takes_positions = "position_ids" in inspect.signature(whole.forward).parameters
    longest = max(answer_tokens(reader.row) for reader in readers)
    vocabulary = loaded.config.get_text_config().vocab_size
    stretch = max(1, LOGITS // (len(readers) * vocabulary))
    # The last logits come before the end of the answer, the first before its first token.
    first, total = ids.shape[1] - longest - 1, ids.shape[1]
    cache: Any = None
    start = 0
    while start < total:
        stop = min(total, max(first, start) + stretch)
        kept = stop - max(first, start)
        given: dict[str, Any] = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
        if takes_positions:
            given["position_ids"] = positions[:, start:stop]
        output = whole(
            **given,
            past_key_values=cache,
            use_cache=stop < total or cache is not None,
            logits_to_keep=kept,
        )
        cache = output.past_key_values if stop < total else None
        for line, reader in enumerate(readers):
            # Of a shorter answer the first rows come before its own first token.
            begins = total - answer_tokens(reader.row) - 1
            reader.take(output.logits[line, max(0, begins - (stop - kept)) :])
        start = stop
