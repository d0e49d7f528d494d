"""How surprising served answers are to the whole copy: teacher-forced, the vocabulary reduced in pieces.

An answer is run once behind its prompt (`monitor.replay.passes`). Each piece of its logits is reduced to a few
numbers a token, and none is kept.

**The end.** The token that ends a turn stands in no log. What was drawn there is bet on all the same, or
answers would look likelier than they were where the end was likely: on the event "one of the end tokens",
whose odds under two laws are as good a bet as a token's. Where the answer may have ended at a limit
instead, the lower of the two possible gains counts.

Legend: t = tokens of an answer, v = vocabulary, c = tilts, s = `PRICED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from monitor.replay.answer import stock_attention
from monitor.replay.checkpoint import Checkpoint
from monitor.replay.likelihood import under_each_law
from monitor.replay.model import LoadedModel
from monitor.replay.passes import answer_tokens, read_all, spoken
from monitor.replay.regions import Tokens
from monitor.replay.sampler import is_greedy, truncated
from monitor.values.fidelity import CUT_SHORT
from monitor.values.likelihood import DrawnBy, Likelihood, squares_of
from monitor.values.prompts import Sampling
from monitor.values.surprise import (
    CAPS,
    GIVEN_AWAY,
    GREEDY_SLIP,
    OTHER_COUNTED,
    OTHER_TOKENS,
    SLIP,
    TILTS,
    WINDOW,
    NotWeighed,
    Surprise,
    Weighed,
    greedy_bets,
)

LEAST = -200.0
"""Log-probabilities below this count as this: what cannot be drawn neither surprises nor varies, since
0 · log 0 is 0, and a bet against it stays finite."""
PRICED = (OTHER_TOKENS, OTHER_COUNTED)
"""The shares of odd tokens that bets hold for: each has its price."""


def unweighable(tokens: Tokens) -> NotWeighed | None:
    """Why these are not the tokens that the server drew, behind just these."""
    if tokens.cut:
        return NotWeighed.CUT
    return NotWeighed.STAND_IN if tokens.stand_ins else None


def surprises(
    loaded: LoadedModel, rows: Sequence[Tokens], laws: Sequence[DrawnBy]
) -> list[Weighed]:
    """Of each row's answer (reasoning and response), in order.

    ``laws`` say how each was drawn, their temperatures known; penalties in them count the row's tokens. Of an
    `Untold` one the likelihood under many laws is told, and with an estimate the surprise under the likeliest
    law, the bets under the least favourable one.
    Raises `ConfigurationError` when the model was not loaded in full.
    """
    return outcomes(rows, read(loaded, rows, laws))


def read(loaded: LoadedModel, rows: Sequence[Tokens], laws: Sequence[DrawnBy]) -> dict[int, Reader]:
    """By index into ``rows``, what the copy makes of each answer that there is and that fits into memory."""
    ends = end_tokens(loaded)
    with stock_attention(loaded) as whole:
        return read_all(
            whole, loaded, rows, lambda index: reader_for(rows[index], laws[index], ends)
        )


def outcomes(rows: Sequence[Tokens], readers: dict[int, Reader]) -> list[Weighed]:
    """Of each row, in order."""
    return [
        readers[index].result()
        if index in readers
        else NotWeighed.OUT_OF_MEMORY
        if answer_tokens(row) and row.prompt_tokens
        else NotWeighed.NO_ANSWER
        for index, row in enumerate(rows)
    ]


def end_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """The ids that end an answer, as a server takes them: of the generation config and the tokenizer."""
    generation = getattr(loaded.answerer, "generation_config", None)
    return _ends(generation, loaded.tokenizer, loaded.config.get_text_config().vocab_size)


def end_tokens_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The same of a model whose weights are not read here."""
    if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
        generation = GenerationConfig.from_pretrained(checkpoint.folder)
    else:
        generation = GenerationConfig.from_model_config(checkpoint.config)
    return _ends(generation, checkpoint.tokenizer, checkpoint.text.vocab_size)


def _ends(generation: Any, tokenizer: Any, vocabulary: int) -> tuple[int, ...]:
    given = getattr(generation, "eos_token_id", None)
    listed = given if isinstance(given, list | tuple) else [given]
    ids = {*listed, tokenizer.eos_token_id} - {None}
    return tuple(sorted(index for index in ids if index < vocabulary))


def reader_for(row: Tokens, drawn_by: DrawnBy, ends: tuple[int, ...]) -> Reader:
    """What holds the logits of ``row``'s answer against what is known of how it was drawn; ``ends`` end an answer."""
    if isinstance(drawn_by, Sampling):
        return Reader(row, drawn_by, drawn_by, ends)
    said, law = drawn_by.said, drawn_by.law
    if law is None:
        return Reader(row, said, None, ends, untold=True)
    return Reader(row, law.likeliest(said), law.least_favourable(said), ends, untold=True)


@dataclass
class Reader:
    """Takes the logits of one answer's tokens as they come, and keeps a few numbers of each."""

    row: Tokens
    law: Sampling
    against: Sampling | None
    """The law that bets stand on; None: there is none to weigh by."""
    ends: tuple[int, ...]
    untold: bool = False
    """The likelihood under each law of the grid is told as well."""
    taken: int = 0
    columns: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    away: list[torch.Tensor] = field(default_factory=list)
    likeliest: list[torch.Tensor] = field(default_factory=list)
    """Of a greedy answer: the ids [t] that the copy would have said."""
    said: list[torch.Tensor] = field(default_factory=list)
    """Of a drawn answer: the log-probability of each token [t]."""
    likely: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    end: torch.Tensor | None = None
    ended: float | None = None
    """Log-probability of the event that one of the end tokens was drawn behind a drawn answer."""

    def take(self, logits: torch.Tensor) -> None:
        """The next logits [t, v]: each before one token of the answer, the last before its end."""
        for scores, said in spoken(self.row, self.law, self.taken, logits):
            self.taken += len(said)
            if len(said):
                self._drawn(scores[: len(said)], said)
            if len(said) < len(scores) and self.ends and not is_greedy(self.law):
                self._ended(scores[len(said) :])

    def _drawn(self, scores: torch.Tensor, said: torch.Tensor) -> None:
        if is_greedy(self.law):
            self.away.append(scores.amax(dim=1) - scores.gather(1, said[:, None])[:, 0])
            self.likeliest.append(scores.argmax(dim=1))
            return
        if self.untold:
            self.likely.append(under_each_law(scores, said))
        if self.against is not None:
            excess, variance, bets, off, drawn = _piece(scores, said, self.law)
            if self.against != self.law:
                bets = _piece(scores, said, self.against)[2]
            self.columns.append((excess, variance, bets, off))
            self.said.append(drawn)

    def _ended(self, scores: torch.Tensor) -> None:
        """``scores`` [1, v] before the end of the answer."""
        if self.against is not None:
            self.end, self.ended = _ended(scores, self.ends, self.against)
        if self.untold and self.law.finish_reason not in (None, *CUT_SHORT):
            ends = torch.tensor(self.ends, device=scores.device)
            self.likely.append(under_each_law(scores, ends[scores[0, ends].argmax()][None]))

    def _likelihood(self) -> Likelihood | None:
        """Of an untold answer; None where it is not finite."""
        logs, excess, variance = (
            torch.cat(column).double().sum(dim=0).cpu().numpy()
            for column in zip(*self.likely, strict=True)
        )
        squares = squares_of(excess, variance)
        if not np.isfinite(logs).all() or not np.isfinite(squares).all():
            return None
        return Likelihood(tokens=answer_tokens(self.row), logs=logs, squares=squares)

    def result(self) -> Weighed:
        if is_greedy(self.law):
            return _greedy(torch.cat(self.away).double().cpu().numpy())
        likelihood = self._likelihood() if self.untold else None
        if self.against is None:
            return likelihood or NotWeighed.NOT_FINITE
        columns = (torch.cat(column) for column in zip(*self.columns, strict=True))
        excess, variance, bets, off = (column.double().cpu().numpy() for column in columns)
        log_bets = bets.sum(axis=0)
        if self.end is not None and may_have_ended(self.law):
            log_bets = log_bets + np.minimum(self.end.double().cpu().numpy(), 0.0)[:, None]
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
            log_bets=log_bets[:, PRICED.index(OTHER_TOKENS)],
            counted_bets=log_bets[:, PRICED.index(OTHER_COUNTED)],
            said_by="baseline" if self.untold else "record",
            likelihood=likelihood,
        )


def may_have_ended(law: Sampling) -> bool:
    """Whether an end token may stand behind the answer; else a limit cut it short."""
    return law.finish_reason not in CUT_SHORT


# --- one token -----------------------------------------------------------------------------------


def law_of(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, float]:
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
    """Centred surprise [t], its variance [t], log bets [t, c, s], what could not be drawn [t], log-probabilities [t]."""
    log_law, cut, price = law_of(scores, sampling)
    off = torch.isneginf(cut.gather(1, answer[:, None])[:, 0])
    law = log_law.exp()
    drawn, excess, variance = centred(log_law, law, answer)
    bets = [
        _capped(-tilt * drawn - power.sum(dim=1).log(), law, power, cap) - price
        for cap, (tilt, power) in zip(reversed(CAPS), _tilted(law), strict=True)
    ]
    return excess, variance, torch.stack(bets[::-1], dim=1), off, drawn


def centred(
    log_law: torch.Tensor, law: torch.Tensor, answer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the tokens of ``answer`` [t]: their log-probabilities, centred surprise and its variance, each [t]."""
    finite = log_law.clamp_min(LEAST)
    drawn = finite.gather(1, answer[:, None])[:, 0]
    weighted = law * finite
    entropy = -weighted.sum(dim=1)
    variance = (weighted * finite).sum(dim=1) - entropy**2
    return drawn, -drawn - entropy, variance


def _capped(
    log_bet: torch.Tensor, law: torch.Tensor, power: torch.Tensor, cap: float
) -> torch.Tensor:
    """Log bets [t, s] that hold while a share of `PRICED` of the tokens are any at all.

    The cap takes from the mean under ``law`` [t, v] what lies beyond it; the price is what is missing from 1 of
    the largest mean that any mixture has then, and no more. ``power`` [t, v] is the tilted law, not normalised.
    """
    mean = torch.minimum(power / power.sum(dim=1, keepdim=True), cap * law).sum(dim=1)
    prices = torch.stack([((1 - odd) * mean + odd * cap).log() for odd in PRICED], dim=1)
    return log_bet.clamp_max(np.log(cap))[:, None] - prices


def _ended(
    scores: torch.Tensor, ends: tuple[int, ...], sampling: Sampling
) -> tuple[torch.Tensor, float]:
    """Log bets [c] on "one of the end tokens" was drawn, from ``scores`` [1, v], and its log-probability."""
    log_law, _, price = law_of(scores, sampling)
    law = log_law.exp()[0]
    ended = end_share(law, ends)
    bets = []
    for _, power in _tilted(law[None]):
        tilted = power[0] / power.sum()
        bets.append(end_share(tilted, ends).log() - ended.log() - price)
    return torch.stack(bets[::-1]), float(ended.log())


def end_share(law: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """The probability [] that ``law`` [v] gives to the end tokens; never 0."""
    return law[list(ends)].sum().clamp_min(1e-30)


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
    return Surprise(
        law="greedy",
        tokens=len(away),
        excess=float(away.sum()),
        variance=0.0,
        peak=0.0,
        off_support=0,
        given_away=beyond,
        log_bets=greedy_bets(beyond, len(away), GREEDY_SLIP),
    )


def _peak(excess: np.ndarray[Any, Any], variance: np.ndarray[Any, Any]) -> float:
    size = min(WINDOW, len(excess))
    window = np.ones(size)
    sums, spreads = np.convolve(excess, window, "valid"), np.convolve(variance, window, "valid")
    return float((sums / np.sqrt(np.maximum(spreads, 1e-12))).max())
