from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitor.drift.histogram import histogram_of
from monitor.values.drift import Window
from monitor.values.scores import Bucket

START = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NORMAL_1_PERCENT = 2.3263


@pytest.fixture
def window_of() -> Callable[..., Window]:
    """A window of given scores, one minute long, `at` minutes after 1 March 2026."""

    def make(scores, *, at=0, tail=NORMAL_1_PERCENT, feature=0, segment="all"):
        values = np.asarray(scores, dtype=np.float64)
        return Window(
            feature=feature,
            segment=segment,
            start=START + at * MINUTE,
            end=START + (at + 1) * MINUTE,
            n=values.size,
            total=float(values.sum()),
            total_squares=float((values**2).sum()),
            histogram=histogram_of(values),
            tail_count=int((values > tail).sum()),
        )

    return make


@pytest.fixture
def bucket_of(window_of: Callable[..., Window]) -> Callable[..., Bucket]:
    """The same as a bucket."""

    def make(scores, **given):
        window = window_of(scores, **given)
        return Bucket(
            bucket_start=window.start,
            bucket_seconds=60,
            feature=window.feature,
            segment=window.segment,
            source="prompts/0",
            n=window.n,
            total=window.total,
            total_squares=window.total_squares,
            histogram=window.histogram,
            tail_count=window.tail_count,
        )

    return make


@pytest.fixture
def clustered() -> Callable[..., np.ndarray]:
    """n standard normal scores in conversations of `size`, correlated `rho` inside one."""

    def draw(random: np.random.Generator, n: int, *, size: int = 5, rho: float = 0.6) -> np.ndarray:
        shared = np.repeat(random.normal(size=-(-n // size)), size)[:n]
        return np.sqrt(rho) * shared + np.sqrt(1 - rho) * random.normal(size=n)

    return draw
