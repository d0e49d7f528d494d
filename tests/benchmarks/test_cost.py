"""The table of costs in docs/replay.md is what the results say, and the shares that doctor uses enclose them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cost import TABLE, runs, table
from benchmarks.pages import shown
from monitor.replay.cost import SHARES

PAGE = Path(__file__).parents[2] / "docs" / "replay.md"


def test_the_page_shows_the_table_that_is_made() -> None:
    found = shown(PAGE.read_text(encoding="utf-8"), TABLE)
    assert found.splitlines() == table()


def test_every_measured_share_lies_within_the_range_that_is_told() -> None:
    found = list(runs())
    assert {(run.device, run.dtype) for run in found} == SHARES.keys()
    for run in found:
        low, high = SHARES[run.device, run.dtype]
        assert low <= run.share <= high, run
