"""What n benign texts can know of a tail: a threshold, and how far its rate is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from monitor.research.statistics import TAILS
from monitor.values.arrays import Floats
from monitor.values.shares import rate_limit

RATES: Final = (0.001, 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A threshold that ``above`` of ``n`` benign texts exceed, meant for the false-positive ``rate``.

    ``interval`` holds the true rate of the threshold, 95 %. ``known`` says that the texts can tell
    the rate at all: its upper end is below five times the rate, and at least one text lies above.
    """

    rate: float
    threshold: float
    above: int
    n: int
    interval: tuple[float, float]

    @property
    def known(self) -> bool:
        return self.above > 0 and self.interval[1] <= 5 * self.rate


def tail(scores: Floats, rate: float) -> Tail:
    """The threshold of ``rate`` from benign ``scores`` [n], turned so that high is bad.

    With m = floor(rate · n) texts to stay above, the threshold is the (m + 1)-th largest score. The
    rate at which new texts exceed an order statistic is Beta(m + 1, n - m) whatever the scores'
    distribution (David & Nagaraja, Order Statistics, 2003): the exact limits of m + 1 and of m of n. Texts count as independent, which texts
    composed of the same pieces are not: the true interval is wider.
    """
    values = np.sort(scores[np.isfinite(scores)].astype(np.float64))[::-1]
    n = len(values)
    above = min(int(rate * n + 1e-9), n - 1)
    return Tail(
        rate=rate,
        threshold=float(values[above]),
        above=above,
        n=n,
        interval=(
            rate_limit(above + 1, n, TAILS[0], upper=False),
            rate_limit(above, n, TAILS[0], upper=True),
        ),
    )


def texts_needed(rate: float) -> int:
    """Benign texts for an expected ten exceedances: the rate is then known within a factor of two."""
    return int(np.ceil(10 / rate))
