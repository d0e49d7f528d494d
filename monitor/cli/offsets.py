"""Where a consumer group reads on: look, and move."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.arguments import ConfigOption, JsonOption, who
from monitor.cli.asking import YesOption, ask
from monitor.cli.show import show
from monitor.settings import Settings, load

if TYPE_CHECKING:
    from sqlalchemy import Engine

offsets = typer.Typer(help="Where a group reads on: show it, move it while no worker runs.")

TopicOption = Annotated[
    list[str] | None,
    typer.Option("--topic", help="Several times for several; default: kafka.topics."),
]


@offsets.command("show")
def offsets_show(
    topic: TopicOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Of every partition: where the store reads on, what the log holds, what is committed in Kafka."""
    from monitor.offsets import offsets_shown

    settings = load(config_file)
    show(offsets_shown(_engine(settings), settings, topic or ()), as_json)


@offsets.command("move")
def offsets_move(
    to: Annotated[
        str,
        typer.Option(
            help="earliest, latest, an offset, or a time with its zone: 2026-03-01T12:00:00Z."
        ),
    ],
    topic: TopicOption = None,
    partition: Annotated[
        list[int] | None,
        typer.Option("--partition", help="Only this one; several times for several."),
    ] = None,
    by: Annotated[str, typer.Option(help="Who moves it.")] = "",
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Move the reading point. What was read already is passed over: no record counts twice.

    Refused while workers of the group are alive. Kafka's own committed offsets follow with the next chunk.
    """
    from monitor.offsets import move, planned
    from monitor.store.clock import DatabaseClock

    settings = load(config_file)
    engine = _engine(settings)
    clock = DatabaseClock(engine)
    topics = topic or list(settings.kafka.topics)
    moves, logs = planned(engine, settings, topics, set(partition or ()), _target(to), clock())
    show([asdict(one) for one in moves], as_json)
    skipped = sum(one.skipped for one in moves)
    losses = [f"{skipped} offsets that were never read are skipped."] if skipped else []
    ask([*losses, f"{len(moves)} partitions are moved."], "Move them?", yes=yes)
    move(engine, settings, moves, logs, who(by), clock())


def _engine(settings: Settings) -> Engine:
    from monitor.store.database import connect, require_schema

    engine = connect(settings.postgres)
    require_schema(engine)
    return engine


def _target(to: str) -> int | datetime | str:
    if to in ("earliest", "latest"):
        return to
    if to.isdigit():
        return int(to)
    try:
        moment = datetime.fromisoformat(to)
    except ValueError:
        raise typer.BadParameter(
            f"--to {to!r}: write earliest, latest, an offset, or a time like 2026-03-01T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"--to {to!r}: say the zone: {to}Z for UTC")
    return moment
