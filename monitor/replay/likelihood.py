"""How likely a token is under each law of a grid of temperatures and top_p, in one go.

All laws of one token are powers of the same scores, so their order is made once. What a law with top_p
leaves begins at the top of that order: its mass, entropy and variance are sums up to one place.

**A large vocabulary** is thinned before: the `EXACT` likeliest tokens stand for themselves, those behind
them in runs of a length that grows with their rank, each run by the token in its middle. Scores change little within
a run, and its tokens weigh little: the log-likelihood is off by less than a hundredth of a nat (tests/replay/test_likelihood.py).

Legend: t = tokens, v = vocabulary, k = places of the order, g = laws (`monitor.values.likelihood`).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch

from monitor.values.likelihood import TEMPERATURES, TOP_PS
from monitor.values.surprise import SLIP

EXACT: Final = 1024
"""Tokens that stand for themselves."""
RUN: Final = 64
"""A run behind them is as long as its rank divided by this."""
LEAST: Final = -200.0
"""Log-probabilities below this count as this, as in `monitor.replay.surprise`."""


def under_each_law(scores: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of ``said`` [t] drawn from ``scores`` [t, v]: log-likelihood, centred surprise and its variance, [t, g].

    One token in a thousand (`SLIP`) may lie outside of what top_p leaves, as in the bets.
    """
    own = scores.gather(1, said[:, None])
    rank = (scores > own).sum(dim=1, keepdim=True)
    middles, sizes = (one.to(scores.device) for one in _runs(scores.shape[1]))
    ordered = scores.sort(dim=1, descending=True).values[:, middles]
    place = torch.searchsorted(sizes.cumsum(0), rank, right=True)
    found = [
        _at(temperature, ordered, sizes.to(scores.dtype).log(), own, place)
        for temperature in TEMPERATURES
    ]
    return tuple(torch.cat(column, dim=1) for column in zip(*found, strict=True))


@cache
def _runs(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank of the middle, and length, of the runs [k] that the order is thinned to."""
    starts = list(range(min(EXACT, vocabulary)))
    while (rank := starts[-1] + max(1, starts[-1] // RUN)) < vocabulary:
        starts.append(rank)
    sizes = torch.tensor(np.diff([*starts, vocabulary]))
    return torch.tensor(starts) + (sizes - 1) // 2, sizes


def _at(
    temperature: float,
    ordered: torch.Tensor,
    log_sizes: torch.Tensor,
    own: torch.Tensor,
    place: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The three figures [t, top_p] at one temperature; ``own`` [t, 1] stands at ``place`` [t, 1] of the order."""
    weight = (ordered / temperature + log_sizes).logsumexp(dim=1, keepdim=True)
    log_law = (ordered / temperature - weight).clamp_min(LEAST)
    law = (log_law + log_sizes).exp()
    mass, first, second = law.cumsum(1), (law * log_law).cumsum(1), (law * log_law**2).cumsum(1)
    tops = torch.tensor(TOP_PS, dtype=law.dtype, device=law.device)
    cuts = tops.expand(len(law), -1).contiguous()
    # A token stays while the ones before it hold less than top_p: the first always does.
    last = torch.searchsorted(mass, cuts).clamp_max(law.shape[1] - 1)
    last = torch.where(tops >= 1.0, law.shape[1] - 1, last)
    kept, kept_first, kept_second = (one.gather(1, last) for one in (mass, first, second))
    kept = torch.where(tops >= 1.0, 1.0, kept)
    out, out_first, out_second = (
        1.0 - kept,
        first[:, -1:] - kept_first,
        second[:, -1:] - kept_second,
    )
    slip = torch.where(tops >= 1.0, 1.0, SLIP)
    more = torch.where(tops >= 1.0, 0.0, ((1.0 - SLIP) / kept + SLIP).log())
    less = slip.log()
    drawn = (own / temperature - weight).clamp_min(LEAST) + torch.where(place <= last, more, less)
    mean = more.exp() * (kept_first + more * kept) + slip * (out_first + less * out)
    square = more.exp() * (kept_second + 2 * more * kept_first + more**2 * kept) + slip * (
        out_second + 2 * less * out_first + less**2 * out
    )
    return drawn, mean - drawn, (square - mean**2).clamp_min(0.0)
