"""What rules would have done on stored history, beside those in force."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import Progress

from monitor.cli.arguments import ConfigOption, JsonOption, moment, readable, span
from monitor.cli.show import err, out, plain, show
from monitor.settings import laid_over, load

if TYPE_CHECKING:
    from monitor.proof.backtest import Backtest, Told

backtests = typer.Typer()

RULES_SECTIONS: Final = ("drift", "identity", "twin")

FromOption = Annotated[
    str,
    typer.Option(
        "--from", help="Where it begins: 2026-03-01, 2026-03-01T12:00 (UTC), or how long ago: 7d."
    ),
]
ToOption = Annotated[str, typer.Option("--to", help="Where it ends, written likewise; now.")]


@backtests.command()
def backtest(
    begin: FromOption = "1d",
    end: ToOption = "0s",
    rules: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with what to try: a section drift (rules, windows, confidence …), identity "
            "and twin (rule …). It is laid over the configuration in force; a list replaces the one there."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Id of a baseline to try in place of the one that was in force."),
    ] = None,
    warm_up: Annotated[
        str,
        typer.Option(
            help="How long before --from detectors and alerts begin; at least the longest window."
        ),
    ] = "1d",
    plot: Annotated[
        Path | None, typer.Option(help="Draw when alerts fired into this SVG file.")
    ] = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which alerts would have fired with other rules, or another baseline, on stored history.

    Replays stored buckets through the watcher's own evaluation, and shows what the rules in force raise
    there, what the ones to try raise, and what was really raised. Writes nothing to the store, and tells
    nobody. docs/backtest.md says what it can and cannot repeat.
    """
    from monitor.proof.backtest import replay, span_of, trial
    from monitor.store.database import database_time, snapshot

    settings = load(config_file)
    others = laid_over(settings, rules, RULES_SECTIONS) if rules else None
    with snapshot(readable(settings)) as c:
        now = database_time(c)
        tried = trial(c, settings, others, baseline)
        asked = span_of(
            c,
            [settings, *([tried.settings] if tried else [])],
            moment(begin, "--from", now),
            moment(end, "--to", now),
            now,
            span(warm_up),
        )
        for note in asked.notes:
            err.print(f"note: {plain(note)}", highlight=False, soft_wrap=True)
        with bar("evaluations") as told:
            found = replay(c, settings, tried, asked, progress=told)
    if plot:
        _draw(found, plot)
    if as_json:
        sys.stdout.write(json.dumps(as_row(found), indent=2, default=str) + "\n")
    else:
        _tell(found)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the error stream, for a person who waits."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def as_row(found: Backtest) -> dict[str, Any]:
    """The backtest as JSON values; times are ISO 8601, UTC."""
    asked = found.span

    def told(one: Told | None) -> dict[str, Any] | None:
        if one is None:
            return None
        alerts = [
            {**asdict(alert), "firing_seconds": alert.lasted(asked.end).total_seconds()}
            for alert in one.alerts
        ]
        return {**one.figures(asked), "alerts": [_iso(alert) for alert in alerts]}

    return {
        **_iso({"from": asked.start, "to": asked.end, "warm_up_from": asked.warm_from}),
        "notes": list(asked.notes),
        "evaluations": found.evaluations,
        "not_replayed": list(found.not_replayed),
        "in_force": told(found.in_force),
        "tried": told(found.candidate),
        "recorded": told(found.recorded),
    }


def _iso(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in row.items()
    }


def _sides(found: Backtest) -> list[Told]:
    return [found.in_force, *([found.candidate] if found.candidate else []), found.recorded]


def _tell(found: Backtest) -> None:
    asked = found.span
    out.print(
        f"{asked.start:%Y-%m-%d %H:%M} to {asked.end:%Y-%m-%d %H:%M} UTC, {found.evaluations} evaluations",
        highlight=False,
    )
    rows = []
    for side in _sides(found):
        figures = side.figures(asked)
        firing = _length(timedelta(seconds=figures.pop("firing_seconds")))
        shown = {key.replace("_", " "): value for key, value in figures.items()}
        rows.append({"rules": side.name, **shown, "firing": firing})
    show(rows, as_json=False)
    alerts = [
        {
            "rules": side.name,
            "rule": alert.rule,
            "what": " ".join(filter(None, (alert.feature, alert.segment))) or alert.kind,
            "severity": alert.severity,
            "fired": alert.fired_at,
            "lasted": _length(alert.lasted(asked.end))
            + (" (open)" if alert.ended_at is None else ""),
            "cause": alert.cause,
        }
        for side in _sides(found)
        for alert in side.alerts
    ]
    if alerts:
        show(alerts, as_json=False)
    if found.not_replayed:
        names = ", ".join(found.not_replayed)
        err.print(
            f"note: nothing stored tells whether these silence rules held: {names}",
            highlight=False,
            soft_wrap=True,
        )


def _length(length: timedelta) -> str:
    minutes = round(length.total_seconds() / 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"


def _draw(found: Backtest, path: Path) -> None:
    from monitor.research.report import span_plot

    asked = found.span
    rows: dict[str, dict[str, list[tuple[datetime, datetime]]]] = {}
    for side in _sides(found):
        for alert in side.alerts:
            name = " ".join(filter(None, (alert.feature, alert.segment))) or alert.rule
            begun = max(alert.fired_at, asked.start)
            rows.setdefault(name, {}).setdefault(side.name, []).append(
                (begun, alert.ended_at or asked.end)
            )
    drawing = span_plot(
        rows,
        kinds=[side.name for side in _sides(found)],
        title=f"Alerts, {asked.start:%Y-%m-%d %H:%M} to {asked.end:%Y-%m-%d %H:%M} UTC",
        bounds=(asked.start, asked.end),
    )
    path.write_text(drawing, encoding="utf-8")
    err.print(f"{plain(str(path))} is drawn", highlight=False, soft_wrap=True)
