"""How surprising served answers are to the whole copy: one teacher-forced pass, logits never kept.

Legend: t = tokens of an answer, v = vocabulary, c = tilts, b = rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from monitor.replay.answer import left_padded, stock_attention
from monitor.replay.model import LoadedModel
from monitor.replay.regions import Tokens
from monitor.replay.sampler import is_greedy, penalised, truncated
from monitor.values.prompts import Sampling
from monitor.values.surprise import (
    GIVEN_AWAY,
    GREEDY_RATES,
    GREEDY_SLIP,
    SLIP,
    TILTS,
    WINDOW,
    Surprise,
)

LOGITS = 2**25
"""Logits that may be held at once (128 MiB): the passes are made so small, and what is computed from them
goes in pieces of `PIECE` tokens."""
PIECE = 32


def surprises(
    loaded: LoadedModel, rows: Sequence[Tokens], laws: Sequence[Sampling]
) -> list[Surprise | None]:
    """The `Surprise` of each row's answer (reasoning and response), in order; None for one without.

    ``laws`` say how each was drawn, their temperatures known. Raises `ConfigurationError` when the model
    was not loaded in full.
    """
    found: list[Surprise | None] = [None] * len(rows)
    with stock_attention(loaded) as whole, torch.inference_mode():
        for members in _batches(rows, loaded):
            logits = _answer_logits(whole, [rows[index] for index in members], loaded)
            for index, own in zip(members, logits, strict=True):
                found[index] = surprise(own, rows[index], laws[index])
    return found


def surprise(logits: torch.Tensor, row: Tokens, sampling: Sampling) -> Surprise:
    """Of the answer of ``row``, before each of whose tokens the model gave ``logits`` [t, v]."""
    answer = torch.tensor(row.ids[-len(logits) :], device=logits.device)
    scores = penalised(logits.to(torch.float32), row.ids[: row.prompt_tokens], answer, sampling)
    if is_greedy(sampling):
        return _greedy(scores, answer)
    parts = [
        _piece(scores[start : start + PIECE], answer[start : start + PIECE], sampling)
        for start in range(0, len(answer), PIECE)
    ]
    surprise_, variance, bets, off = (torch.cat(column) for column in zip(*parts, strict=True))
    excess, spread = surprise_.double().cpu().numpy(), variance.double().cpu().numpy()
    return Surprise(
        law="sampled",
        tokens=len(answer),
        excess=float(excess.sum()),
        variance=float(spread.sum()),
        peak=_peak(excess, spread),
        off_support=int(off.sum()),
        given_away=0,
        log_bets=bets.double().sum(dim=0).cpu().numpy(),
    )


def _piece(
    scores: torch.Tensor, answer: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centred surprise [t], its variance [t], log bets [t, c], and what could not be drawn [t]."""
    assert sampling.temperature, "a law without its temperature is none"
    whole = (scores / sampling.temperature).log_softmax(dim=1)
    cut = truncated(whole, sampling)
    off = torch.isneginf(cut.gather(1, answer[:, None])[:, 0])
    log_law = whole
    if cut is not whole:
        log_law = torch.logaddexp(cut + np.log1p(-SLIP), whole + np.log(SLIP))
    law = log_law.exp()
    drawn = log_law.gather(1, answer[:, None])[:, 0]
    # 0 · log 0 is 0: what cannot be drawn neither surprises nor varies.
    finite = log_law.clamp_min(-200.0)
    weighted = law * finite
    entropy = -weighted.sum(dim=1)
    variance = (weighted * finite).sum(dim=1) - entropy**2
    # The bets hold for every share of slips up to `SLIP` (p ≤ mixture / (1 - SLIP)), at this price a token.
    price = 0.0 if cut is whole else float(-np.log1p(-SLIP))
    bets = [-tilt * drawn - power.sum(dim=1).log() - price for tilt, power in _tilted(law)]
    return -drawn - entropy, variance, torch.stack(bets[::-1], dim=1), off


def _tilted(law: torch.Tensor) -> Iterator[tuple[float, torch.Tensor]]:
    """Each tilt with ``law`` to the power of 1 - tilt: p^(1/2), p^(3/4) = p^(1/2) p^(1/4), and so on."""
    root = power = law.sqrt()
    yield TILTS[-1], power
    for tilt in reversed(TILTS[:-1]):
        root = root.sqrt()
        power = power * root
        yield tilt, power


def _greedy(scores: torch.Tensor, answer: torch.Tensor) -> Surprise:
    drawn = scores.gather(1, answer[:, None])[:, 0]
    away = (scores.amax(dim=1) - drawn).double().cpu().numpy()
    beyond = int((away > GIVEN_AWAY).sum())
    rates = np.array(GREEDY_RATES)
    gained = beyond * np.log(rates / GREEDY_SLIP)
    lost = (len(answer) - beyond) * np.log((1 - rates) / (1 - GREEDY_SLIP))
    return Surprise(
        law="greedy",
        tokens=len(answer),
        excess=float(away.sum()),
        variance=0.0,
        peak=0.0,
        off_support=0,
        given_away=beyond,
        log_bets=gained + lost,
    )


def _peak(excess: np.ndarray[Any, Any], variance: np.ndarray[Any, Any]) -> float:
    size = min(WINDOW, len(excess))
    window = np.ones(size)
    sums, spreads = np.convolve(excess, window, "valid"), np.convolve(variance, window, "valid")
    return float((sums / np.sqrt(np.maximum(spreads, 1e-12))).max())


def _batches(rows: Sequence[Tokens], loaded: LoadedModel) -> Iterator[list[int]]:
    """Rows with answers of like length together, as many as `LOGITS` has room for."""
    vocabulary = loaded.config.get_text_config().vocab_size
    order = sorted(
        (index for index, row in enumerate(rows) if _answer_tokens(row) and row.prompt_tokens),
        key=lambda index: (_answer_tokens(rows[index]), len(rows[index].ids)),
    )
    members: list[int] = []
    for index in order:
        longest = _answer_tokens(rows[index]) + 1
        if members and (len(members) + 1) * longest * vocabulary > LOGITS:
            yield members
            members = []
        members.append(index)
    if members:
        yield members


def _answer_tokens(row: Tokens) -> int:
    return row.reasoning_tokens + row.response_tokens


def _answer_logits(
    whole: Any, rows: Sequence[Tokens], loaded: LoadedModel
) -> Iterator[torch.Tensor]:
    """For each row the logits [t, v] that its answer's tokens were drawn from."""
    ids, mask = left_padded([row.ids for row in rows], loaded)
    longest = max(map(_answer_tokens, rows))
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
    for line, row in enumerate(rows):
        yield logits[line, longest - _answer_tokens(row) :]
