"""Before something is destroyed, or cannot be undone: say what will be lost, and ask."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.show import err, plain
from monitor.errors import BadInput, PackError

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask; what will be lost is said all the same.")
]


def ask(losses: Sequence[str], question: str, *, yes: bool) -> None:
    """Say what will be lost, and return only when that is agreed to, by a person or by ``yes``.

    Without losses nothing is asked. Raises `BadInput` where nobody sits at a terminal, and
    `typer.Exit` with code 1 after a no. Hold no transaction meanwhile: people take their time.
    """
    for loss in losses:
        err.print(plain(loss), highlight=False, soft_wrap=True)
    if yes or not losses:
        return
    if not sys.stdin.isatty():
        raise BadInput(
            "this cannot be undone, and nobody is here to be asked; nothing was changed",
            hint="Give --yes when it is what you want.",
        )
    if not typer.confirm(question, err=True):
        err.print("nothing was changed")
        raise typer.Exit(1)


def replaced_pack(folder: Path) -> list[str]:
    """What is lost when a pack is written into ``folder``: the pack that is there."""
    from monitor.score.pack import load_pack

    if not (folder / "pack.json").exists():
        return []
    try:
        there = load_pack(folder)
    except PackError as error:
        return [f"{folder} holds a pack that cannot be read; it is replaced: {error}"]
    return [
        f"{folder} holds the pack {there.name} {there.version}, id {there.pack_id[:12]}; it is "
        "replaced, and baselines and scores that name it can no longer be traced to its features"
    ]


def span(since: datetime | None, until: datetime | None) -> str:
    """``2026-01-02 03:04 to 2026-01-03 04:05``; empty when there is nothing."""
    if since is None or until is None:
        return ""
    return f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}"
