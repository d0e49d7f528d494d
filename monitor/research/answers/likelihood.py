"""How likely a model finds given responses, steered or not.

Legend: b = branches (the model under some edits), n = prompts, r = rows, t = tokens, v = vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from monitor.errors import BadInput
from monitor.replay.answer import left_padded, stock_attention
from monitor.replay.branches.likelihood import Row, log_probabilities
from monitor.replay.branches.trunk import Branch, branches_fit
from monitor.replay.model import LoadedModel, batch_tokens
from monitor.replay.regions import Tokens
from monitor.replay.taps import steered
from monitor.research.answers.generate import token_rows
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Doubles
from monitor.values.prompts import Prompt

Weigh = Callable[[Sequence[Prompt]], tuple[Doubles, Counts]]
"""As `response_log_probabilities` of one model."""


def response_log_probabilities(
    loaded: LoadedModel, prompts: Sequence[Prompt], batch: int = 16
) -> tuple[Doubles, Counts]:
    """``Σ log p(response token | all before it)`` in nats [n], and the number of response tokens [n].

    The tokens are those that production reads: the response alone, no end of turn behind it. Works
    inside `monitor.replay.taps.steered`. Packed, with shared prefixes, where the copy can be
    (`branches_fit`); else ``batch`` rows at once. Raises `BadInput` for a prompt that cannot be replayed or
    has no response, `ConfigurationError` when the model was not loaded in full.
    """
    rows = _rows(loaded, prompts)
    return _sums(loaded, rows, [()], batch)[0], _response_tokens(rows)


class Weighing:
    """The same of one model under edits, which weighs no response twice.

    Random directions of one strength are the same for every feature of a site, and good answers for every persona; the
    answers of the untouched model come back with every direction.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._known: dict[object, dict[object, float]] = {}

    def plain(self, prompts: Sequence[Prompt]) -> tuple[Doubles, Counts]:
        """As `response_log_probabilities`."""
        sums, tokens = self.under([()], prompts)
        return sums[0], tokens

    def under(
        self, branches: Sequence[Branch], prompts: Sequence[Prompt]
    ) -> tuple[Doubles, Counts]:
        """The sums under each of ``branches`` [b, n], and the number of response tokens [n]."""
        rows = _rows(self._loaded, prompts)
        keys = [(row.ids, row.response_tokens) for row in rows]
        by_branch = [self._known.setdefault(_key(branch), {}) for branch in branches]
        # Branches that lack the same rows run together.
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, known in enumerate(by_branch):
            missing = {key: line for line, key in enumerate(keys) if key not in known}
            groups.setdefault(tuple(missing.values()), []).append(index)
        for lines, members in groups.items():
            if lines:
                found = _sums(
                    self._loaded, [rows[i] for i in lines], [branches[m] for m in members]
                )
                for member, each in zip(members, found.tolist(), strict=True):
                    by_branch[member] |= zip((keys[i] for i in lines), each, strict=True)
        sums = np.array([[known[key] for key in keys] for known in by_branch], dtype=np.float64)
        return sums.reshape(len(branches), len(rows)), _response_tokens(rows)


def _key(branch: Branch) -> object:
    """Equal for edits that do the same."""
    return tuple(
        (
            edit.site,
            edit.add,
            edit.project_out,
            edit.first_position,
            edit.direction.cpu().numpy().tobytes(),
        )
        for edit in branch
    )


def _rows(loaded: LoadedModel, prompts: Sequence[Prompt]) -> list[Tokens]:
    rows = token_rows(loaded, prompts)
    for index, row in enumerate(rows):
        if row.response_tokens == 0 or row.prompt_tokens == 0:
            raise BadInput(
                f"prompt {index + 1} needs a prompt and a response, to weigh one by the other"
            )
    return rows


def _response_tokens(rows: Sequence[Tokens]) -> Counts:
    return np.array([row.response_tokens for row in rows], dtype=np.int64)


def _sums(
    loaded: LoadedModel, rows: Sequence[Tokens], branches: Sequence[Branch], batch: int = 16
) -> Doubles:
    if rows and branches_fit(loaded):
        weighed = [Row(row.ids, len(row.ids) - row.response_tokens) for row in rows]
        return log_probabilities(
            loaded, weighed, branches, batch_tokens(ReplaySettings(), loaded.device)
        )
    sums = np.zeros((len(branches), len(rows)))
    # Logits are held from the longest response of a batch on: responses of one length together.
    order = sorted(range(len(rows)), key=lambda i: (rows[i].response_tokens, len(rows[i].ids)))
    for line, branch in enumerate(branches):
        with (
            stock_attention(loaded) as whole,
            torch.inference_mode(),
            steered(loaded.blocks, branch),
        ):
            for start in range(0, len(order), batch):
                members = order[start : start + batch]
                sums[line, members] = _padded(whole, [rows[index] for index in members], loaded)
    return sums


def _padded(whole: Any, rows: Sequence[Tokens], loaded: LoadedModel) -> list[float]:
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
