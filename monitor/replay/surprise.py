"""How surprising served answers are to the whole copy: teacher-forced, the vocabulary reduced in pieces.

An answer is run once behind its prompt. Of the logits only so many are made at a time as `LOGITS` has
room for, each piece is reduced to a few numbers a token, and none is kept. A long answer is run in
stretches over a cache of keys and values, as in decoding.

**The end.** The token that ends a turn stands in no log. What was drawn there is bet on all the same, or
answers would look likelier than they were where the end was likely: on the event "one of the end tokens",
whose odds under two laws are as good a bet as a token's. Where the answer may have ended at a limit
instead, the lower of the two possible gains counts.

Legend: t = tokens of an answer, v = vocabulary, c = tilts, b = rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from monitor.replay.answer import left_padded, stock_attention
from monitor.replay.forward import is_out_of_memory
from monitor.replay.model import LoadedModel
from monitor.replay.regions import Tokens
from monitor.replay.sampler import is_greedy, penalised, truncated
from monitor.values.fidelity import CUT_SHORT
from monitor.values.prompts import Sampling
from monitor.values.surprise import (
    CAPS,
    GIVEN_AWAY,
    GREEDY_RATES,
    GREEDY_SLIP,
    OTHER_TOKENS,
    SLIP,
    TILTS,
    WINDOW,
    NotWeighed,
    Surprise,
)

LOGITS = 2**25
"""Logits that may be held at once (128 MiB in float32)."""
PIECE = 32
"""Tokens whose laws are computed at once."""
LEAST = -200.0
"""Log-probabilities below this count as this: what cannot be drawn neither surprises nor varies, since
0 · log 0 is 0, and a bet against it stays finite."""


def surprises(
    loaded: LoadedModel, rows: Sequence[Tokens], laws: Sequence[Sampling]
) -> list[Surprise | NotWeighed]:
    """Of each row's answer (reasoning and response), in order.

    ``laws`` say how each was drawn, their temperatures known; penalties in them count the row's tokens.
    Raises `ConfigurationError` when the model was not loaded in full.
    """
    found: list[Surprise | NotWeighed] = [NotWeighed.NO_ANSWER] * len(rows)
    ends = end_tokens(loaded)
    with stock_attention(loaded) as whole, torch.inference_mode():
        waiting = list(_batches(rows, loaded))
        while waiting:
            members = waiting.pop()
            readers = [_Reader(rows[index], laws[index], ends) for index in members]
            if _read(whole, readers, loaded):
                for index, reader in zip(members, readers, strict=True):
                    found[index] = reader.result()
            elif len(members) == 1:
                found[members[0]] = NotWeighed.OUT_OF_MEMORY
            else:
                half = len(members) // 2
                waiting += [members[:half], members[half:]]
    return found


def end_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """The ids that end an answer, as a server takes them: of the generation config and the tokenizer."""
    given = getattr(getattr(loaded.answerer, "generation_config", None), "eos_token_id", None)
    listed = given if isinstance(given, list | tuple) else [given]
    vocabulary = loaded.config.get_text_config().vocab_size
    ids = {*listed, loaded.tokenizer.eos_token_id} - {None}
    return tuple(sorted(index for index in ids if index < vocabulary))


@dataclass
class _Reader:
    """Takes the logits of one answer's tokens as they come, and keeps a few numbers of each."""

    row: Tokens
    law: Sampling
    ends: tuple[int, ...]
    taken: int = 0
    columns: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    away: list[torch.Tensor] = field(default_factory=list)
    end: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.row.reasoning_tokens + self.row.response_tokens

    def take(self, logits: torch.Tensor) -> None:
        """The next logits [t, v]: each before one token of the answer, the last before its end."""
        asked = self.row.ids[: self.row.prompt_tokens]
        answer = self.row.ids[self.row.prompt_tokens :]
        for start in range(0, len(logits), PIECE):
            piece = logits[start : start + PIECE].to(torch.float32)
            said = torch.tensor(answer[self.taken : self.taken + len(piece)], device=piece.device)
            scores = penalised(piece, (asked, answer[: self.taken]), said, self.law)
            self.taken += len(said)
            if len(said):
                self._drawn(scores[: len(said)], said)
            if len(said) < len(scores) and self.ends and not is_greedy(self.law):
                self.end = _ended(scores[len(said) :], self.ends, self.law)

    def _drawn(self, scores: torch.Tensor, said: torch.Tensor) -> None:
        if is_greedy(self.law):
            self.away.append(scores.amax(dim=1) - scores.gather(1, said[:, None])[:, 0])
        else:
            self.columns.append(_piece(scores, said, self.law))

    def result(self) -> Surprise | NotWeighed:
        if is_greedy(self.law):
            return _greedy(torch.cat(self.away).double().cpu().numpy())
        columns = (torch.cat(column) for column in zip(*self.columns, strict=True))
        excess, variance, bets, off = (column.double().cpu().numpy() for column in columns)
        log_bets = bets.sum(axis=0)
        if self.end is not None and self.law.finish_reason not in CUT_SHORT:
            log_bets = log_bets + np.minimum(self.end.double().cpu().numpy(), 0.0)
        if not all(np.isfinite(one).all() for one in (excess, variance, log_bets)):
            return NotWeighed.NOT_FINITE
        return Surprise(
            law="sampled",
            tokens=len(excess),
            excess=float(excess.sum()),
            variance=float(variance.sum()),
            peak=_peak(excess, variance),
            off_support=int(off.sum()),
            given_away=0,
            log_bets=log_bets,
        )


# --- one token -----------------------------------------------------------------------------------


def _law(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Log-probabilities [t, v] with a slip outside what was cut, those of the cut law, and a bet's price.

    The bets hold for every share of slips up to `SLIP` (p ≤ mixture / (1 - SLIP)), at this price a token.
    """
    assert sampling.temperature, "a law without its temperature is none"
    whole = (scores / sampling.temperature).log_softmax(dim=1)
    cut = truncated(whole, sampling)
    if cut is whole:
        return whole, cut, 0.0
    return (
        torch.logaddexp(cut + np.log1p(-SLIP), whole + np.log(SLIP)),
        cut,
        float(-np.log1p(-SLIP)),
    )


def _piece(
    scores: torch.Tensor, answer: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, ...]:
    """Centred surprise [t], its variance [t], log bets [t, c], and what could not be drawn [t]."""
    log_law, cut, price = _law(scores, sampling)
    off = torch.isneginf(cut.gather(1, answer[:, None])[:, 0])
    law = log_law.exp()
    finite = log_law.clamp_min(LEAST)
    drawn = finite.gather(1, answer[:, None])[:, 0]
    weighted = law * finite
    entropy = -weighted.sum(dim=1)
    variance = (weighted * finite).sum(dim=1) - entropy**2
    bets = [
        _capped(-tilt * drawn - power.sum(dim=1).log(), law, power, cap) - price
        for cap, (tilt, power) in zip(reversed(CAPS), _tilted(law), strict=True)
    ]
    return -drawn - entropy, variance, torch.stack(bets[::-1], dim=1), off


def _capped(
    log_bet: torch.Tensor, law: torch.Tensor, power: torch.Tensor, cap: float
) -> torch.Tensor:
    """Log bets [t] that hold while `OTHER_TOKENS` of the tokens are any at all.

    The cap takes from the mean under ``law`` [t, v] what lies beyond it; the price is what is missing from 1 of
    the largest mean that any mixture has then, and no more. ``power`` [t, v] is the tilted law, not normalised.
    """
    mean = torch.minimum(power / power.sum(dim=1, keepdim=True), cap * law).sum(dim=1)
    return log_bet.clamp_max(np.log(cap)) - ((1 - OTHER_TOKENS) * mean + OTHER_TOKENS * cap).log()


def _ended(scores: torch.Tensor, ends: tuple[int, ...], sampling: Sampling) -> torch.Tensor:
    """Log bets [c] on "one of the end tokens" was drawn, from ``scores`` [1, v]."""
    log_law, _, price = _law(scores, sampling)
    law = log_law.exp()[0]
    ended = law[list(ends)].sum().clamp_min(1e-30)
    bets = []
    for _, power in _tilted(law[None]):
        tilted = power[0] / power.sum()
        bets.append(tilted[list(ends)].sum().clamp_min(1e-30).log() - ended.log() - price)
    return torch.stack(bets[::-1])


def _tilted(law: torch.Tensor) -> Iterator[tuple[float, torch.Tensor]]:
    """Each tilt with ``law`` to the power of 1 - tilt: p^(1/2), p^(3/4) = p^(1/2) p^(1/4), and so on."""
    root = power = law.sqrt()
    yield TILTS[-1], power
    for tilt in reversed(TILTS[:-1]):
        root = root.sqrt()
        power = power * root
        yield tilt, power


def _greedy(away: np.ndarray[Any, Any]) -> Surprise | NotWeighed:
    """``away`` [t]: nats that each token lies below the most likely one."""
    if not np.isfinite(away).all():
        return NotWeighed.NOT_FINITE
    beyond = int((away > GIVEN_AWAY).sum())
    rates = np.array(GREEDY_RATES)
    gained = beyond * np.log(rates / GREEDY_SLIP)
    lost = (len(away) - beyond) * np.log((1 - rates) / (1 - GREEDY_SLIP))
    return Surprise(
        law="greedy",
        tokens=len(away),
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


# --- passes --------------------------------------------------------------------------------------


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


def _read(whole: Any, readers: Sequence[_Reader], loaded: LoadedModel) -> bool:
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


def _pass(whole: Any, readers: Sequence[_Reader], loaded: LoadedModel) -> None:
    ids, mask = left_padded([reader.row.ids for reader in readers], loaded)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    takes_positions = "position_ids" in inspect.signature(whole.forward).parameters
    longest = max(reader.tokens for reader in readers)
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
            begins = total - reader.tokens - 1
            reader.take(output.logits[line, max(0, begins - (stop - kept)) :])
        start = stop
