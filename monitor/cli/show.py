"""What commands print: tables for people, JSON for programs, progress on the error stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from monitor.errors import MonitorError

out = Console()
err = Console(stderr=True)


def show(rows: Iterable[Mapping[str, Any]], as_json: bool, *, columns: Sequence[str] = ()) -> None:
    """The rows as JSON, whole, or as a table of ``columns`` (all of them by default)."""
    rows = list(rows)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
        return
    if not rows:
        out.print("nothing to show")
        return
    # Folded, not cut: an id must be whole to be copied.
    headers = columns or tuple(dict.fromkeys(key for row in rows for key in row))
    table = Table(*(Column(header, overflow="fold") for header in headers))
    for row in rows:
        table.add_row(*(_cell(row.get(str(column.header))) for column in table.columns))
    out.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "[green]yes[/]" if value else "[bold red]no[/]"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return plain(f"{value:.3g}" if isinstance(value, float) else str(value))


def plain(value: str) -> str:
    """As text alone: no markup of ours, and nothing that a terminal would do or could not write."""
    return escape(
        "".join(one if one in "\n\t" or one.isprintable() else _named(one) for one in value)
    )


def _named(character: str) -> str:
    return character.encode("unicode_escape").decode()


def explain(error: MonitorError) -> None:
    """An error that a person can act on: one sentence and a hint, on the error stream."""
    err.print(f"[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)
    if error.hint:
        err.print(f"  {plain(error.hint)}", highlight=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    with err.status("building") as status:
        yield lambda line: status.update(plain(line))
