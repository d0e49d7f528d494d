"""The loops, and what is done once around them: migrate, doctor, demo, offline scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from monitor.cli.arguments import ConfigOption, JsonOption
from monitor.cli.asking import YesOption, ask, span
from monitor.cli.show import err, explain, out, plain, show
from monitor.errors import ConfigurationError
from monitor.settings import PostgresSettings, load

if TYPE_CHECKING:
    from monitor.store.losses import StepDown

commands = typer.Typer()

SCORE_COLUMNS: Final = ("line", "id", "outcome", "tokens", "feature or reason", "score")


@commands.command()
def run(config_file: ConfigOption = None) -> None:
    """Run all loops in one process: worker, watcher, courier and the web face."""
    _serve(config_file, ("worker", "watcher", "courier", "web"))


@commands.command()
def worker(config_file: ConfigOption = None) -> None:
    """Replay prompts from Kafka and store their scores (with the web face)."""
    _serve(config_file, ("worker", "web"))


@commands.command()
def watcher(config_file: ConfigOption = None) -> None:
    """Compare windows with the approved baseline and raise alerts (with the web face)."""
    _serve(config_file, ("watcher", "web"))


@commands.command()
def courier(config_file: ConfigOption = None) -> None:
    """Deliver alerts to their endpoints (with the web face)."""
    _serve(config_file, ("courier", "web"))


@commands.command()
def web(config_file: ConfigOption = None) -> None:
    """Serve the dashboard, the read-only API, health and metrics."""
    _serve(config_file, ("web",))


@commands.command()
def sidecar(config_file: ConfigOption = None) -> None:
    """Run all loops beside a serving container: a run that ends is started again, for ever."""
    from monitor.sidecar import keep_running

    keep_running(config_file)


def _serve(config_file: Path | None, loops: Sequence[str]) -> None:
    from monitor.app import run_loops
    from monitor.logs import configure

    settings = load(config_file)
    configure(settings.log)
    run_loops(settings, loops)


@commands.command()
def migrate(
    config_file: ConfigOption = None,
    revision: Annotated[str, typer.Option(help="Target revision; -1 goes down one.")] = "head",
    yes: YesOption = False,
) -> None:
    """Bring the database schema to this version.

    An older revision drops what came after it: what is lost is said, and asked about.
    """
    from monitor.store.database import migrate as to_revision
    from monitor.store.losses import step_down

    settings = load(config_file).postgres
    down = step_down(settings, revision)
    if down:
        ask(_lost(down, revision), "Drop all this?", yes=yes)
    to_revision(settings, revision)
    out.print(plain(f"schema at {revision}"))
    if not down and settings.reader_role is not None:
        _warn_of_reader(settings, settings.reader_role)


def _warn_of_reader(settings: PostgresSettings, role: str) -> None:
    """A role that could not be made fails no migration; whoever ran it hears of it."""
    from monitor.store.database import connect, transaction
    from monitor.store.roles import require_reader

    try:
        with transaction(connect(settings)) as c:
            require_reader(c, role)
    except ConfigurationError as error:
        explain(error)


def _lost(down: StepDown, revision: str) -> list[str]:
    lines = [f"the schema goes down from {down.current} to {revision}; lost for good:"]
    for loss in down.losses:
        where = f"{loss.table}, columns {', '.join(loss.columns)}" if loss.columns else loss.table
        rows = "more rows than could be counted" if loss.rows is None else f"{loss.rows} rows"
        when = span(loss.since, loss.until)
        lines.append(f"  {where}: {rows}{', ' + when if when else ''}")
    if not down.losses:
        lines.append("  no row of any table")
    if down.views:
        lines.append(f"  views, with all that asks them: {', '.join(down.views)}")
    return lines


@commands.command()
def doctor(
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    skip_model: Annotated[bool, typer.Option(help="Do not load the model.")] = False,
    send_test: Annotated[
        bool, typer.Option("--send-test", help="Post a signed test event to every endpoint.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="Exchanges a second that you expect: says which sampling rate fits."
        ),
    ] = None,
) -> None:
    """Check configuration, pack, rules, model, Postgres, baseline, Kafka, its records and endpoints.

    A few hundred of the topic's newest records are read, outside of the group and without committing, to
    say what they hold, and about how many a second one worker on this machine reads; none of their text is printed. Every part that is not well says how to mend it, and makes the exit code 1.
    """
    from monitor.doctor import examine

    settings = load(config_file)
    found = examine(settings, with_model=not skip_model, send_tests=send_test, rate=rate)
    findings = list(found)
    rows = [{"part": f.subject, "well": f.well, "seen": f.seen, "mend": f.mend} for f in findings]
    if as_json:
        rows = [
            row | ({"figures": f.figures} if f.figures else {})
            for row, f in zip(rows, findings, strict=True)
        ]
    show(rows, as_json)
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


@commands.command()
def score(
    file: Annotated[
        Path, typer.Argument(help="Records, one per line, of any supported format; - reads stdin.")
    ],
    config_file: ConfigOption = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, in place of replay.model.")
    ] = None,
    pack_folder: Annotated[
        Path | None, typer.Option("--pack", help="Pack folder, in place of pack.path.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="A table instead of JSON lines.")] = False,
) -> None:
    """Score a file of records offline: ids, token counts, lineage and every feature's score.

    Prints one JSON line per prompt; records that cannot be read are lines with their reason, and
    make the exit code 1.
    """
    from monitor.instrument import build_instrument
    from monitor.offline import score_file

    overrides: dict[str, Any] = {}
    if model:
        overrides["replay"] = {"model": model}
    if pack_folder:
        overrides["pack"] = {"path": pack_folder}
    settings = load(config_file, overrides)
    instrument = build_instrument(settings)
    unread = 0
    rows: list[dict[str, Any]] = []
    for row in score_file(file, instrument, settings):
        unread += row["outcome"] == "dead_letter"
        if table:
            rows += _entries(row)
        else:
            sys.stdout.write(json.dumps(row) + "\n")
    if table:
        show(rows, as_json=False, columns=SCORE_COLUMNS)
    if unread:
        err.print(
            plain(f"{unread} records could not be scored; their lines say why"), highlight=False
        )
        raise typer.Exit(1)


def _entries(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record's lines in a table: one for each feature, the first with what is known of the record.

    A column for each feature would be cut to nothing: packs have a dozen and terminals 80 columns.
    """
    about = {
        "line": row["line"],
        "id": row.get("id"),
        "outcome": row["outcome"],
        "tokens": _tokens(row),
    }
    scores = row.get("scores", {})
    if not scores:
        yield about | {"feature or reason": f"{row['reason']}: {row['detail']}".rstrip(": ")}
    for number, (name, score) in enumerate(scores.items()):
        yield (about if number == 0 else {}) | {"feature or reason": name, "score": score}


def _tokens(row: Mapping[str, Any]) -> str | None:
    """Of prompt and answer, reasoning included, as they were run."""
    if "prompt_tokens" not in row:
        return None
    return f"{row['prompt_tokens']} + {row['reasoning_tokens'] + row['response_tokens']}"


@commands.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave everything running at the end.")] = False,
    record: Annotated[Path | None, typer.Option(help="Save the last screen as an SVG.")] = None,
    state: Annotated[
        Path, typer.Option(help="Everything the demo writes; an earlier demo's is deleted.")
    ] = Path(".state/demo"),
    cache: Annotated[Path, typer.Option(help="Where the converted model is kept.")] = Path(
        ".cache"
    ),
    yes: YesOption = False,
) -> None:
    """The main job on embedded real parts: a persona appears, a signed alert arrives, it resolves."""
    from monitor.demo.stage import left_running
    from monitor.demo.story import tell

    names = left_running(state)
    if names:
        lost = f"the demo in {state} that was kept is ended and deleted: {', '.join(names)}"
        ask([lost], "End it?", yes=yes)

    raise typer.Exit(0 if tell(state=state, cache=cache, keep=keep, record=record) else 1)
