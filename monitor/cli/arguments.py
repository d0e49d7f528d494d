"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import getpass
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file; MONITOR_* variables win over it.",
        envvar="MONITOR_CONFIG",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelOption = Annotated[Path, typer.Option(help="Model folder or GGUF file.")]
SeedOption = Annotated[
    int, typer.Option(min=0, help="Decides all that is drawn; the same seed, the same result.")
]

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def span(value: str) -> timedelta:
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not number.isdigit() or not 0 < int(number) < 1_000_000:
        raise typer.BadParameter(f"{value!r} is no length of time; write 90m, 24h or 7d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def who(by: str) -> str:
    try:
        return by or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise typer.BadParameter(
            "the user of this process has no name; say who with --by"
        ) from None


def database(settings: Settings) -> AbstractContextManager[Connection]:
    from monitor.store.database import connect, require_schema, transaction

    engine = connect(settings.postgres)
    require_schema(engine)
    return transaction(engine)
