"""The test of paired differences on simulated scores: false alarms and delays, by fixed seeds.

A question has a level of its own that wanders with the hour and that the prompts of one conversation share; an
answer lies around its question's level, with a spread that the question has too and a skew. The served answer of
another model lies ``shift`` deviations off. ``python -m tests.drift.twin_simulation`` prints the figures.

Legend: n = prompts, r = runs.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from monitor.drift.histogram import histogram_of
from monitor.drift.sequential import SHIFTS
from monitor.drift.twin import gains

PER_BUCKET = 4
PROMISED = 100
"""Buckets between false alarms."""
HORIZON = 3 * PROMISED
A_CONVERSATION = 3


def apart(
    random: np.random.Generator, n: int, *, begin: float, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] of served answers and of their twins."""
    hours = begin + np.arange(n) / 800.0
    level = (
        np.sin(hours) + np.repeat(random.normal(size=n // A_CONVERSATION + 1), A_CONVERSATION)[:n]
    )
    spread = np.exp(random.normal(-0.3, 0.4, size=n))
    skewed = random.gamma(2.0, size=(2, n)) - 2.0
    served, twin = level + spread * skewed / math.sqrt(2.0)
    return served + shift, twin


@cache
def alarms(shift: float, *, tolerance: float, runs: int = 60) -> np.ndarray:
    """Bucket of the first alarm in each run [r]; the horizon where there was none."""
    found = []
    for seed in range(runs):
        random = np.random.default_rng(seed)
        served, twin = apart(random, HORIZON * PER_BUCKET, begin=seed, shift=shift)
        values = np.full(2 * len(SHIFTS), -math.inf)
        alarm = HORIZON
        for bucket, part in enumerate((served - twin).reshape(HORIZON, PER_BUCKET)):
            values = np.logaddexp(values, 0.0) + gains(histogram_of(part), tolerance)
            if np.logaddexp.reduce(values) - math.log(len(values)) >= math.log(PROMISED):
                alarm = bucket + 1
                break
        found.append(alarm)
    return np.array(found)


if __name__ == "__main__":
    for tolerance in (0.0, 0.1):
        for shift in (0.0, 0.25, 0.5, 1.0):
            told = alarms(shift, tolerance=tolerance)
            print(
                f"shift {shift}, tolerance {tolerance}: mean {told.mean():.0f}, median"
                f" {np.median(told):.0f} buckets of {PER_BUCKET} pairs (horizon {HORIZON})"
            )
