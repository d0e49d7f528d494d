"""Which temperature and top_p were a baseline's answers drawn with? Maximum likelihood under the copy's law.

The answers of one server, whose records do not say it, are drawn by one law as far as is known. Their
log-likelihood is summed on a grid (`monitor.values.likelihood`); about the best temperature of each top_p it is a
parabola in log T, through three of the grid. All laws whose log-likelihood lies within half the χ² quantile of
the best are likely enough (Wilks, Annals of Mathematical Statistics 9, 1938), the quantile times the *spread* of the
answers where that is above 1. Tokens are draws of their own given what came before, so nothing is assumed of the prompts.
A top_p between two of the grid looks like one of them at another temperature; so the next larger one counts as likely too.

**What the bets then stand on** is the upper end of both (`EstimatedLaw.least_favourable`). They are on speakers that are hotter than
the copy: what a bet wins on a token falls with the token's probability. Laws of one token at two temperatures and two
top_p are ordered by their likelihood ratio, which rises with the score (Karlin and Rubin, Annals of Mathematical
Statistics 27, 1956). So while the true law is no hotter and cut no less than the one it is held against, a bet wins
less in the mean than against the true law, which is at most 1: the upper end is the least favourable law of the whole
interval, and an estimate that errs upwards costs power, never a false alarm.

**Several laws** have no common one, and the hotter answers would look like another model's. Under one law the mean of
an answer's z² is 1; of a mixture it grows with the variance of log T and with the length of the answers. Beyond
`MOST_SPREAD` nothing is estimated.

Array legend: g = temperatures × top_p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import chdtri

from monitor.drift.sequential import BASELINE_RISK
from monitor.values.arrays import Doubles
from monitor.values.likelihood import TEMPERATURES, TOP_PS, EstimatedLaw, Likelihoods, NoLaw

FEWEST_ANSWERS: Final = 30
FEWEST_TOKENS: Final = 2_000
"""Tokens below which nothing is estimated."""
MOST_SPREAD: Final = 1.5
"""Mean z² beyond which the answers count as drawn by several laws. Text that the tokenizer splits otherwise than the
model said it makes 1.2 of it (docs/drift.md, Identity)."""
WIDEST: Final = 1.25
"""Highest likely temperature over the lowest, beyond which the interval is too wide to be of use."""
_PARAMETERS: Final = 2
_KNOTS: Final = np.log(TEMPERATURES)


def estimated(sums: Likelihoods) -> EstimatedLaw | NoLaw:
    """The law of the answers behind ``sums``, or why none is estimated."""
    table = sums.logs.reshape(len(TEMPERATURES), len(TOP_PS))
    reason = _too_few(sums) or _at_an_edge(table)
    if reason:
        return _none(sums, reason)
    peaks = [_Peak.of(top_p, table[:, place]) for place, top_p in enumerate(TOP_PS)]
    best = max(range(len(TOP_PS)), key=lambda place: peaks[place].height)
    squares = sums.squares.reshape(table.shape)[:, best] / sums.n
    spread = peaks[best].of_another(squares)
    if spread > MOST_SPREAD:
        return _none(
            sums,
            f"the mean of z² is {spread:.2f}, where one law gives 1 and {MOST_SPREAD:g} is allowed: the answers were drawn "
            "by several laws (temperatures differ between requests), or their text is split otherwise than it was drawn, "
            "which shows where records hold the server's token counts",
        )
    allowed = float(chdtri(_PARAMETERS, BASELINE_RISK)) / 2.0 * max(spread, 1.0)
    floor = peaks[best].height - allowed
    likely = [place for place, peak in enumerate(peaks) if peak.height >= floor]
    low = math.exp(min(peaks[place].reach(floor)[0] for place in likely))
    high = math.exp(max(peaks[place].reach(floor)[1] for place in likely))
    if high > WIDEST * low:
        return _none(
            sums,
            f"the temperature may be anything from {low:.3g} to {high:.3g} by {sums.n} answers: too wide to weigh by",
        )
    return EstimatedLaw(
        temperature=math.exp(peaks[best].top),
        low=low,
        high=high,
        top_p=TOP_PS[best],
        top_p_high=TOP_PS[max(min(likely) - 1, 0)],
        spread=spread,
        n=sums.n,
        tokens=sums.tokens,
    )


def _none(sums: Likelihoods, reason: str) -> NoLaw:
    return NoLaw(reason=reason, n=sums.n, tokens=sums.tokens)


def _too_few(sums: Likelihoods) -> str:
    if sums.n >= FEWEST_ANSWERS and sums.tokens >= FEWEST_TOKENS:
        return ""
    return (
        f"there are {sums.n} answers ({sums.tokens} tokens) whose records do not say how they were drawn, and it "
        f"takes {FEWEST_ANSWERS} ({FEWEST_TOKENS} tokens)"
    )


def _at_an_edge(table: Doubles) -> str:
    row, column = np.unravel_index(int(table.argmax()), table.shape)
    if row == 0 or column == len(TOP_PS) - 1:
        return (
            f"the answers were drawn with next to no chance: at a temperature of at most {TEMPERATURES[0]:g}, or "
            f"a top_p of at most {TOP_PS[-1]:g}"
        )
    if row == len(TEMPERATURES) - 1:
        return f"the answers were drawn at a temperature of at least {TEMPERATURES[-1]:g}"
    return ""


@dataclass(frozen=True, slots=True)
class _Peak:
    """Of the log-likelihoods of one top_p: log temperature and height of the top, and how it falls off."""

    middle: int
    """The temperature of the grid that is nearest."""
    top: float
    height: float
    bend: float
    """The height at distance d from the top is less by ``bend`` d²."""
    least: float
    """The top is not known better than this: below top_p 1 the likelihood has steps between temperatures of the grid,
    for what is left of a law changes with the temperature."""

    @classmethod
    def of(cls, top_p: float, column: Doubles) -> _Peak:
        """``column`` holds those at all temperatures."""
        middle = min(max(int(column.argmax()), 1), len(column) - 2)
        near = _KNOTS[middle - 1 : middle + 2] - _KNOTS[middle]
        a, b, _ = _parabola(column, middle)
        bend = max(-a, 1e-9)
        if top_p < 1.0:
            half = float(near[-1] - near[0]) / 4.0
            return cls(middle, float(_KNOTS[middle]), float(column[middle]), bend, half)
        off = min(max(b / (2.0 * bend), float(near[0])), float(near[-1]))
        height = float(column[middle]) + b * off - bend * off**2
        return cls(middle, float(_KNOTS[middle]) + off, height, bend, 0.0)

    def reach(self, floor: float) -> tuple[float, float]:
        """The log temperatures between which it is no lower than ``floor``."""
        width = max(math.sqrt(max(self.height - floor, 0.0) / self.bend), self.least)
        return self.top - width, self.top + width

    def of_another(self, column: Doubles) -> float:
        """Another figure at the top, of which ``column`` holds the values at all temperatures."""
        off = self.top - float(_KNOTS[self.middle])
        a, b, c = _parabola(column, self.middle)
        return c + b * off + a * off**2


def _parabola(column: Doubles, middle: int) -> tuple[float, float, float]:
    """a, b and c of a x² + b x + c through three points of the grid, x = log T less that of ``middle``."""
    places = _KNOTS[middle - 1 : middle + 2] - _KNOTS[middle]
    a, b, c = np.polyfit(places, column[middle - 1 : middle + 2], 2)
    return float(a), float(b), float(c)
