"""Options that several commands share, how their texts are read, and options in groups (`spread`)."""

from __future__ import annotations

import getpass
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import MISSING, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from monitor.errors import BadInput
from monitor.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

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

TYPER = "typer"
Settled = TypeVar("Settled")
Number = TypeVar("Number", int, float)

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def span(value: str) -> timedelta:
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not number.isdigit() or not 0 < int(number) < 1_000_000:
        raise typer.BadParameter(f"{value!r} is no length of time; write 90m, 24h or 7d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def moment(value: str, option: str, now: datetime) -> datetime:
    """A date or time (UTC unless it says otherwise), or how long before ``now``. Names ``option`` when it is none."""
    try:
        if value[-1:] in _UNITS and value[:-1].isdigit():
            return now - timedelta(seconds=int(value[:-1]) * _UNITS[value[-1]])
        found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise BadInput(
            f"{option}: {value!r} is no date or time",
            hint="Write 2026-03-01, 2026-03-01T12:00 (UTC), or how long ago: 90m, 24h, 7d.",
        ) from None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def who(by: str) -> str:
    try:
        return by or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise typer.BadParameter(
            "the user of this process has no name; say who with --by"
        ) from None


def database(settings: Settings) -> AbstractContextManager[Connection]:
    from monitor.store.database import transaction

    return transaction(readable(settings))


def readable(settings: Settings) -> Engine:
    """An engine on a database whose schema this release knows."""
    from monitor.store.database import connect, require_schema

    engine = connect(settings.postgres)
    require_schema(engine)
    return engine


def numbers(text: str, kind: type[Number], option: str) -> tuple[Number, ...]:
    """``text`` as numbers with commas between them. Raises `BadInput` naming ``option``."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise BadInput(f"{option}: {text!r}: write {what} with commas between") from None


def option(default: Any, help: str, *names: str, **more: Any) -> Any:
    """A field of a group of options: its default (``...``: it must be given) and how ``--help`` puts it.

    ``names`` in place of the field's own, ``more`` as `typer.Option` takes it. A flag has no opposite.
    """
    made = partial(typer.Option, help=help, **more)
    return field(default=MISSING if default is ... else default, metadata={TYPER: (made, names)})


def argument(help: str) -> Any:
    """A field of a group of options that has a place in the line instead of a name."""
    return field(metadata={TYPER: (partial(typer.Argument, help=help), ())})


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer, its groups of options spread out.

    A parameter whose type is a dataclass stands for the fields of that class: each is an option (or
    an argument) of its own, documented there, and the command is given the object made of them.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    given: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            given.append((parameter.name, parameter.default, hints[parameter.name]))
            continue
        group = groups[parameter.name]
        of_group = get_type_hints(group, include_extras=True)
        for one in fields(group):
            default = inspect.Parameter.empty if one.default is MISSING else one.default
            hint = of_group[one.name]
            if TYPER in one.metadata:
                made, names = one.metadata[TYPER]
                if isinstance(default, bool) and not names:
                    names = (f"--{one.name.replace('_', '-')}",)
                hint = Annotated[hint, made(*names)]
            given.append((one.name, default, hint))

    def called(**values: Any) -> None:
        objects = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **objects)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {name: hint for name, _, hint in given}
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
            )
            for name, default, hint in given
        ]
    )
    return called


def settled(kind: Callable[..., Settled], options: Any, **given: Any) -> Settled:
    """A settings object of ``kind``: ``given``, and what ``options`` has by the names of its fields."""
    names = [one.name for one in fields(kind) if hasattr(options, one.name)]  # type: ignore[arg-type]
    return kind(**({name: getattr(options, name) for name in names} | given))
