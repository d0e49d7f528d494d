"""A draft baseline of given windows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from monitor.drift.baseline import capture
from monitor.values.drift import Baseline, Window
from monitor.values.features import Directed, Expected
from monitor.values.identity import BaselineFingerprint

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def draft(windows: Iterable[Window], *, min_n: int = 100, expected: Expected = "rises") -> Baseline:
    return capture(
        windows,
        [Directed(expected=expected)] * 3,
        confidence=0.99,
        baseline_id="b1",
        pack_id="pack",
        name="march",
        start=START,
        end=START + HOUR,
        created_at=START + HOUR,
        fingerprint=BaselineFingerprint(facts={"sampling_rate": "0.5"}),
        min_n=min_n,
    )
