"""How likely a model finds given responses. Legend: n = prompts, b = rows, t = tokens, v = vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay.answer import left_padded, stock_attention
from monitor.replay.model import LoadedModel
from monitor.replay.regions import Tokens
from monitor.research.answers.generate import token_rows
from monitor.values.arrays import Counts, Doubles
from monitor.values.prompts import Prompt


def response_log_probabilities(
    loaded: LoadedModel, prompts: Sequence[Prompt], batch: int = 16
) -> tuple[Doubles, Counts]:
    """``Σ log p(response token | all before it)`` in nats [n], and the number of response tokens [n].

    The tokens are those that production reads: the response alone, no end of turn behind it. Works
    inside `monitor.replay.taps.steered`. Raises `BadInput` for a prompt that cannot be replayed or
    has no response, `ConfigurationError` when the model was not loaded in full.
    """
    rows = token_rows(loaded, prompts)
    for index, row in enumerate(rows):
        if row.response_tokens == 0 or row.prompt_tokens == 0:
            raise BadInput(
                f"prompt {index + 1} needs a prompt and a response, to weigh one by the other"
            )
    sums = np.zeros(len(rows), dtype=np.float64)
    # Logits are held from the longest response of a batch on: responses of one length together.
    order = sorted(range(len(rows)), key=lambda i: (rows[i].response_tokens, len(rows[i].ids)))
    with stock_attention(loaded) as whole, torch.inference_mode():
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            sums[members] = _sums(whole, [rows[index] for index in members], loaded)
    return sums, np.array([row.response_tokens for row in rows], dtype=np.int64)


def _sums(whole: Any, rows: Sequence[Tokens], loaded: LoadedModel) -> list[float]:
    ids, mask = left_padded([row.ids for row in rows], loaded)
    longest = max(row.response_tokens for row in rows)
    options: dict[str, torch.Tensor] = {}
    if "position_ids" in inspect.signature(whole.forward).parameters:
        options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
    logits = whole(
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=longest + 1,
        **options,
    ).logits[:, -longest - 1 : -1]
    sums = []
    for line, row in enumerate(rows):
        own = logits[line, longest - row.response_tokens :].to(torch.float32)
        targets = ids[line, -row.response_tokens :]
        chosen = own.gather(1, targets[:, None])[:, 0] - torch.logsumexp(own, dim=1)
        sums.append(float(chosen.double().sum()))
    return sums
