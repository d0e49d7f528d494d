"""What n benign texts can know: tail thresholds, rates and correlations, with exact or usual intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import beta

from monitor.values.arrays import Floats
from monitor.values.drift import Bound

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
    distribution (David & Nagaraja, Order Statistics, 2003). Texts count as independent, which texts
    composed of the same pieces are not: the true interval is wider.
    """
    values = np.sort(scores[np.isfinite(scores)].astype(np.float64))[::-1]
    n = len(values)
    above = min(int(rate * n + 1e-9), n - 1)
    low, high = beta.ppf([0.025, 0.975], above + 1, n - above)
    return Tail(
        rate=rate,
        threshold=float(values[above]),
        above=above,
        n=n,
        interval=(float(low), float(high)),
    )


def rate_bound(above: int, n: int) -> Bound:
    """The rate of ``above`` of ``n`` with its exact 95 % interval (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, above, n - above + 1) if above else 0.0
    high = beta.ppf(0.975, above + 1, n - above) if above < n else 1.0
    return Bound(value=above / n, low=float(low), high=float(high))


def correlation_bound(value: float, n: int) -> Bound:
    """A correlation over n > 3 texts with its 95 % interval by Fisher's z; NaN stays NaN."""
    z, reach = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)), 1.96 / np.sqrt(max(n - 3, 1))
    return Bound(value=value, low=float(np.tanh(z - reach)), high=float(np.tanh(z + reach)))


def texts_needed(rate: float) -> int:
    """Benign texts for an expected ten exceedances: the rate is then known within a factor of two."""
    return int(np.ceil(10 / rate))
