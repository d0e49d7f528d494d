"""The table of the null path in benchmarks/README.md is what the results say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.null_table import TABLE, table
from benchmarks.pages import shown

PAGE = Path(__file__).parents[2] / "benchmarks" / "README.md"


def test_the_page_shows_the_table_that_is_made() -> None:
    found = shown(PAGE.read_text(encoding="utf-8"), TABLE)
    assert found.splitlines() == table()
