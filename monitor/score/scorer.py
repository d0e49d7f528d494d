"""Readings to scores: standardised by the pack's calibration on benign text.

Arrays: n prompts, k features of the pack in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.score.pack import Pack
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.features import Calibration, Feature


class Scorer:
    """Turns the readings of one pack into scores: 0 is the benign mean, 1 one benign deviation."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack

    def score(self, readings: Floats, pooled_tokens: Counts) -> Floats:
        """Scores [n, k] float32 of ``readings`` [n, k], pooled over ``pooled_tokens`` [n, k] tokens.

        NaN (an absent region) stays NaN. Raises ValueError when the shapes do not match the pack.
        """
        return standardised(self.pack.features, readings, pooled_tokens)

    def canary_deviation(self, readings: Floats, pooled_tokens: Counts) -> float:
        """Largest |reading - recorded| over canaries and features, in calibration deviations.

        ``readings`` [c, k] are the canaries' as just replayed, in the pack's order. A region that is
        absent on one side only, or a non-finite reading, counts as infinitely far.
        """
        if not self.pack.canaries:
            return 0.0
        recorded = np.stack([canary.readings for canary in self.pack.canaries]).astype(np.float64)
        if readings.shape != recorded.shape:
            raise ValueError(f"canary readings must be {recorded.shape}, found {readings.shape}")
        _, deviations = expected(self.pack.features, pooled_tokens)
        apart = np.abs(readings.astype(np.float64) - recorded) / deviations
        apart[np.isnan(readings) & np.isnan(recorded)] = 0.0
        return float(np.where(np.isnan(apart), np.inf, apart).max())


def standardised(features: Sequence[Feature], readings: Floats, pooled_tokens: Counts) -> Floats:
    """As `Scorer.score`, for ``features`` that need not be a pack's."""
    means, deviations = expected(features, pooled_tokens)
    if readings.shape != means.shape:
        raise ValueError(f"readings {readings.shape} and tokens {means.shape} differ in shape")
    return ((readings.astype(np.float64) - means) / deviations).astype(np.float32)


def expected(features: Sequence[Feature], pooled_tokens: Counts) -> tuple[Doubles, Doubles]:
    """Benign mean and deviation [n, k] of readings over ``pooled_tokens`` [n, k] tokens."""
    k = len(features)
    if pooled_tokens.ndim != 2 or pooled_tokens.shape[1] != k:
        raise ValueError(f"pooled_tokens must be [n, {k}], found {pooled_tokens.shape}")
    columns = [
        benign_level(feature.calibration, pooled_tokens[:, index])
        for index, feature in enumerate(features)
    ]
    means, deviations = zip(*columns, strict=True)
    return np.stack(means, axis=1), np.stack(deviations, axis=1)


def benign_level(calibration: Calibration, tokens: Counts) -> tuple[Doubles, Doubles]:
    """Mean and deviation [n] at ``tokens`` [n]: linear in log2(tokens) between knots, held outside."""
    at = np.log2(np.maximum(tokens, 1).astype(np.float64))
    knots = np.log2(np.array(calibration.tokens, dtype=np.float64))
    return np.interp(at, knots, calibration.means), np.interp(at, knots, calibration.deviations)
