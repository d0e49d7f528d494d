"""The comparison of detectors: what its rows say, and that the monitor's is the monitor's own."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from benchmarks import detectors


def test_a_row_has_medians_and_says_what_was_not_seen() -> None:
    row = {
        "benign": [0.0, 2.0, 1.0],
        "0.2": [40.0, 60.0, 20.0],
        "0.05": [math.inf, 400.0, 100.0],
        "0.01": [math.inf, math.inf, 900.0],
    }
    made = detectors.summary(row)
    assert made["false_alarms_in_30_days"] == 1.0
    assert made["0.05"] == {"median_prompts": 400.0, "seen": 2}
    assert made["0.01"] == {"median_prompts": None, "seen": 1}
    shown = detectors.table({"seeds": 3, "detectors": {"one": made}})
    assert "| one | 1 | 40 (3 of 3) | 400 (2 of 3) | not in a week (1 of 3) |" in shown


def test_the_monitors_alarms_are_alerts_that_fire_each_begun_anew() -> None:
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(size=24_000), generator.normal(5.0, 1.0, 4_000)])
    streams = SimpleNamespace(scores=scores)
    watch = detectors.monitor(detectors.world_of(streams), detectors.SETTINGS.rules)
    benign = np.arange(20_000, 24_000).reshape(-1, detectors.PER_MINUTE)
    persona = np.arange(24_000, 26_000).reshape(-1, detectors.PER_MINUTE)
    assert list(watch(benign, 0)) == []
    alarms = list(watch(np.concatenate([benign, persona]), len(benign)))
    assert alarms[0] <= 5
    assert len(alarms) >= 2
    assert alarms == sorted(set(alarms))
