"""The tables of the benchmarks' page are those of the results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import beside
from benchmarks.pages import shown

PAGE = Path(beside.__file__).with_name("README.md")


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in beside.tables().items():
        assert shown(page, name) == lines
