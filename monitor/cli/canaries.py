"""Canaries to the served model: which questions it is asked, and ask it now."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from monitor.cli.arguments import ConfigOption, JsonOption
from monitor.cli.show import out, plain, progress, show
from monitor.errors import ConfigurationError
from monitor.settings import Settings, load

if TYPE_CHECKING:
    from monitor.server_copy import ServerCopy
    from monitor.values.server_canaries import ServerRound

canaries = typer.Typer(help="Canaries to the served model: the chosen questions, and ask it now.")


@canaries.command("choose")
def canaries_choose(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Which questions the copy chooses, and what it says to them. Asks nobody and stores nothing.

    A worker chooses the same ones by itself. ``margin`` and ``tolerance`` are in nats.
    """
    with progress() as said:
        copy = _copy(load(config_file), said)
        chosen = copy.choose(datetime.now(UTC))
    show([_row(asdict(one)) for one in chosen.questions], as_json)


@canaries.command("ask")
def canaries_ask(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Ask the served endpoint all questions now. Exit code 1 when it is another model, 2 when it is away.

    Nothing is stored, and no round of the schedule is spared by it; it takes `server_canaries.questions` calls.
    """
    from monitor.drift.server import concluded
    from monitor.server_canaries import ask_all, endpoint_of, limit_of
    from monitor.values.server_canaries import ServerRound

    settings = load(config_file)
    now = datetime.now(UTC)
    with progress() as said:
        copy = _copy(settings, said)
        chosen = copy.choose(now)
        said("asking the served endpoint")
        with closing(endpoint_of(settings)) as endpoint:
            found = ask_all(
                copy,
                endpoint,
                chosen.questions,
                max_tokens=settings.server_canaries.max_tokens,
                clock=lambda: datetime.now(UTC),
            )
    answers = [answer for answer, _ in found.answers]
    begun = ServerRound(
        pack_id=chosen.pack_id,
        set_id=chosen.set_id,
        served=str(settings.server_canaries.model),
        asked_at=now,
        asked=sum(calls for _, calls in found.answers),
        problem=found.problem,
    )
    expected = {one.question: one for one in chosen.questions}
    names = [feature.name for feature in copy.pack.features]
    made = begun
    if not found.problem:
        made = concluded(begun, answers, expected, names, limit=limit_of(settings))
    rows = [_row({**asdict(one), "beyond": one.beyond}) for one in answers]
    if as_json:
        content = {**_row(_fields(made)), "crossed": made.crossed, "answers": rows}
        sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
    else:
        columns = ("question", "outcome", "first", "other_first", "deviation", "nats", "beyond")
        show(rows, as_json=False, columns=columns)
        out.print(plain(_told(made)), soft_wrap=True)
    if made.problem:
        raise typer.Exit(2)
    if made.crossed:
        raise typer.Exit(1)


def _copy(settings: Settings, said: Any) -> ServerCopy:
    from monitor.instrument import build_instrument
    from monitor.server_copy import ServerCopy

    if not settings.server_canaries.on:
        raise ConfigurationError(
            "server_canaries.url is not set: there is no served endpoint to ask",
            hint="Set server_canaries.url and server_canaries.model.",
        )
    said("loading the copy")
    instrument = build_instrument(settings)
    assert instrument.examiner is not None
    said("choosing the questions")
    return ServerCopy(instrument.pack, instrument.engine, instrument.examiner, settings)


def _fields(made: ServerRound) -> dict[str, Any]:
    names = ("pack_id", "served", "asked_at", "asked", "questions", "beyond", "other_firsts")
    more = ("with_log_probs", "largest", "evidence", "limit", "problem")
    return {name: getattr(made, name) for name in (*names, *more)} | {"moved": dict(made.moved)}


def _row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the scores, which are an array."""
    return {name: value for name, value in fields.items() if name != "scores"}


def _told(made: ServerRound) -> str:
    if made.problem:
        return f"not known: {made.problem}"
    verdict = "is another model than the copy" if made.crossed else "answers as the copy does"
    return (
        f"{made.served} {verdict}: {made.beyond} of {made.questions} questions are answered otherwise than"
        f" numerics explain (evidence {made.evidence or 0.0:.1f}, limit {made.limit or 0.0:.1f})"
    )
