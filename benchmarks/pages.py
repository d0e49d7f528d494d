"""Tables that commands make, in pages that people write: each between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def run(
    module: str, made: Callable[[], Mapping[str, str]], arguments: Sequence[str] | None = None
) -> int:
    """``python -m MODULE [--write PAGE]``: print the tables that ``made`` gives by name, and put them into the page."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    given = parser.parse_args(arguments)
    tables = made()
    sys.stdout.write("\n\n".join(tables.values()) + "\n")
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(placed(page, tables), encoding="utf-8")
    return 0


def placed(page: str, tables: Mapping[str, str]) -> str:
    """``page`` with each table between its marks; `SystemExit` where marks are missing."""
    for name, lines in tables.items():
        head, begin, _, end, rest = _parted(page, name)
        page = f"{head}{begin}{lines}\n{end}{rest}"
    return page


def shown(page: str, name: str) -> str:
    """What stands between the marks of one table."""
    return _parted(page, name)[2].strip()


def _parted(page: str, name: str) -> tuple[str, str, str, str, str]:
    begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
    if begin not in page or end not in page:
        raise SystemExit(f"the page has no marks for table {name}")
    head, _, more = page.partition(begin)
    lines, _, rest = more.partition(end)
    return head, begin, lines, end, rest
