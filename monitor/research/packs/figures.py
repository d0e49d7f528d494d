"""Figures of reports: JSON values of four digits, for people. Legend: n = texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Bound
from monitor.values.features import Feature

RANDOM: Final = {"q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
"""What a report says of its random directions."""


def rounded(value: float | np.floating[Any]) -> float | None:
    """Four digits; None for what JSON has no number for."""
    # Adding zero turns -0.0 into 0.0.
    return round(float(value), 4) + 0.0 if np.isfinite(value) else None


def of_bound(found: Bound) -> list[float | None]:
    """Value, lower and upper end."""
    return [rounded(found.value), rounded(found.low), rounded(found.high)]


def quantiles(values: Doubles, at: Mapping[str, float]) -> dict[str, float | None]:
    """The quantiles ``at`` of ``values``, by their names."""
    return {name: rounded(np.quantile(values, q)) for name, q in at.items()}


def benign_figures(feature: Feature, scores: Floats, tokens: Counts) -> dict[str, Any]:
    """What ``feature`` scores on benign texts [n] that had no part in calibration: level, spread, length
    dependence, and the rate of its tail."""
    present = np.isfinite(scores)
    values, counts = scores[present].astype(np.float64), tokens[present]
    logs = np.log2(np.maximum(counts, 1))
    # What always pools one token (the last one of a prompt) cannot follow the length.
    follows = np.corrcoef(values, logs)[0, 1] if logs.size > 1 and np.ptp(logs) > 0 else np.nan
    return {
        "n": int(values.size),
        "mean": rounded(values.mean()),
        "deviation": rounded(values.std(ddof=1)),
        "correlation_with_log_length": rounded(follows),
        "tail_rate": rounded(np.mean(feature.in_tail(values))),
    }
