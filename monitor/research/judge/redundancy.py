"""Which features of a pack say the same thing? Legend: k = features, n = texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitor.research.judge.readings import Readings
from monitor.research.statistics import correlations
from monitor.values.arrays import Doubles
from monitor.values.features import Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundancy:
    """Correlations of signed scores [k, k] on all judged texts and on benign ones alone, and cosines
    of weights [k, k], turned alike. A pair of different sites has no cosine: NaN."""

    everywhere: Doubles
    benign: Doubles
    cosines: Doubles

    def overlap(self, index: int, strength: Doubles) -> tuple[float, int | None]:
        """Largest correlation with a feature of larger ``strength`` [k], and that feature.

        Of the two correlations the smaller one counts: personas move together, so that all texts
        alone overstate it; benign texts alone say little about where it matters.
        """
        both = np.minimum(self.everywhere[index], self.benign[index])
        order = np.arange(len(both))
        ahead = (strength > strength[index]) | ((strength == strength[index]) & (order < index))
        if not ahead.any():
            return 0.0, None
        nearest = int(np.argmax(np.where(ahead, both, -np.inf)))
        return float(both[nearest]), nearest


def redundancy(readings: Readings) -> Redundancy:
    features = readings.pack.features
    signs = np.array([feature.sign for feature in features])
    voices = [read.scores for read in readings.held_out.values()]
    return Redundancy(
        everywhere=correlations(np.concatenate([readings.check.scores, *voices]) * signs),
        benign=correlations(readings.check.scores * signs),
        cosines=_cosines(features),
    )


def _cosines(features: Sequence[Feature]) -> Doubles:
    """Of the directions [k, k], turned alike; NaN for a pair that reads different sites."""
    units = [
        feature.sign * feature.direction.astype(np.float64) / np.linalg.norm(feature.direction)
        for feature in features
    ]
    return np.array(
        [
            [
                a @ b if one.sites == two.sites else np.nan
                for two, b in zip(features, units, strict=True)
            ]
            for one, a in zip(features, units, strict=True)
        ]
    )
