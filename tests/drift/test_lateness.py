"""Where windows end: at what every partition has read, within bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitor.drift.lateness import reach
from monitor.settings import DriftSettings
from monitor.values.progress import Progress

NOW = datetime(2026, 3, 1, 12, 0, 10, tzinfo=UTC)
CLOCK = datetime(2026, 3, 1, 11, 59, tzinfo=UTC)
SETTINGS = DriftSettings(wait_for_late=timedelta(minutes=15))


def partition(number: int, late: float | None, *, known: bool = True, lag: int = 9) -> Progress:
    """``late`` seconds behind; None: how far is not known."""
    return Progress(
        topic="prompts",
        partition=number,
        lag=lag,
        asked_at=NOW,
        watermark=None if late is None else NOW - timedelta(seconds=late),
        known_since=NOW - timedelta(days=1) if known else None,
    )


@pytest.mark.parametrize(
    ("late", "until"),
    [
        ([], "11:59"),
        ([0, 0], "11:59"),
        ([30, 0], "11:59"),
        ([31, 0], "11:59"),
        ([45, 0], "11:58"),
        ([0, 300, 20], "11:54"),
        ([900], "11:44"),
        ([901], "11:44"),
        ([86_400, 0], "11:44"),
        ([None, 0], "11:44"),
    ],
)
def test_the_partition_read_least_far_decides_within_the_bound(
    late: list[float | None], until: str
) -> None:
    seen = reach([partition(n, one) for n, one in enumerate(late)], SETTINGS, NOW)
    assert f"{seen.until:%H:%M}" == until
    assert seen.by_the_clock == CLOCK
    assert seen.behind == CLOCK - seen.until
    assert (seen.waiting_for is not None) == (seen.until < CLOCK)
    assert bool(seen.sentence) == (seen.until < CLOCK)


def test_it_is_said_which_one_and_how_far() -> None:
    seen = reach([partition(0, 0), partition(1, 600, lag=1_062)], SETTINGS, NOW)
    assert seen.sentence == (
        "evaluation is 10 min behind: prompts/1 is read up to 11:50 UTC, "
        "1062 records behind its end"
    )


def test_beyond_the_bound_it_is_said_that_nobody_waits() -> None:
    seen = reach([partition(1, 3_600, lag=5)], SETTINGS, NOW)
    assert seen.given_up
    assert seen.sentence == (
        "evaluation is 15 min behind: prompts/1 is read up to 11:00 UTC, 5 records behind its end; "
        "it is waited for no longer (drift.wait_for_late is 15 min)"
    )
    assert not reach([partition(1, 840)], SETTINGS, NOW).given_up


def test_without_waiting_windows_end_by_the_clock_and_say_what_is_late() -> None:
    settings = DriftSettings(wait_for_late=timedelta(0))
    seen = reach([partition(1, 3_600)], settings, NOW)
    assert seen.until == CLOCK
    assert seen.given_up


def test_partitions_of_which_nothing_is_known_hold_nothing_back() -> None:
    assert reach([partition(0, None, known=False)], SETTINGS, NOW).until == CLOCK
