"""Arguments, output and exit codes; nothing else.

Exit codes: 0 well, 1 stopped loudly or found something wrong, 2 refused (configuration, pack, model,
schema, bad input).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from monitor import __version__
from monitor.errors import MonitorError, StopLoudly
from monitor.settings import Settings, load

app = typer.Typer(
    help="Watches inside a served language model while it serves: replays sampled prompts, scores "
    "misaligned-persona features, and raises alerts when they drift.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
baseline = typer.Typer(help="What drift is compared with: capture, look at, approve, retire.")
alerts = typer.Typer(help="List, acknowledge and silence alerts.")
deliveries = typer.Typer(help="What endpoints were told, and replaying it.")
pack = typer.Typer(help="Feature packs: look at, verify, build, import.")
build = typer.Typer(help="Build a pack.")
imports = typer.Typer(help="Import features from published checkpoints.")
config = typer.Typer(help="Show the configuration in force, or its schema.")
for name, group in (
    ("baseline", baseline),
    ("alerts", alerts),
    ("deliveries", deliveries),
    ("pack", pack),
    ("config", config),
):
    app.add_typer(group, name=name, no_args_is_help=True)
pack.add_typer(build, name="build", no_args_is_help=True)
pack.add_typer(imports, name="import", no_args_is_help=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file; MONITOR_* variables win over it.", envvar="MONITOR_CONFIG"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

out = Console()
err = Console(stderr=True)


def main() -> None:
    """The console script: every error a person can act on is one sentence and a hint."""
    try:
        app()
    except MonitorError as error:
        err.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False)
        if error.hint:
            err.print(f"  {_plain(error.hint)}", highlight=False)
        sys.exit(1 if isinstance(error, StopLoudly) else 2)


# --- the loops -----------------------------------------------------------------------------------


@app.command()
def run(config_file: ConfigOption = None) -> None:
    """Run all loops in one process: worker, watcher, courier and the web face."""
    _serve(config_file, ("worker", "watcher", "courier", "web"))


@app.command()
def worker(config_file: ConfigOption = None) -> None:
    """Replay prompts from Kafka and store their scores (with the web face)."""
    _serve(config_file, ("worker", "web"))


@app.command()
def watcher(config_file: ConfigOption = None) -> None:
    """Compare windows with the approved baseline and raise alerts (with the web face)."""
    _serve(config_file, ("watcher", "web"))


@app.command()
def courier(config_file: ConfigOption = None) -> None:
    """Deliver alerts to their endpoints (with the web face)."""
    _serve(config_file, ("courier", "web"))


@app.command()
def web(config_file: ConfigOption = None) -> None:
    """Serve the dashboard, the read-only API, health and metrics."""
    _serve(config_file, ("web",))


def _serve(config_file: Path | None, loops: Sequence[str]) -> None:
    from monitor.app import run_loops
    from monitor.telemetry import configure

    settings = load(config_file)
    configure(settings.log)
    run_loops(settings, loops)


@app.command()
def migrate(
    config_file: ConfigOption = None,
    revision: Annotated[str, typer.Option(help="Target revision; -1 goes down one.")] = "head",
) -> None:
    """Bring the database schema to this version."""
    from monitor.store.database import migrate as to_revision

    to_revision(load(config_file).postgres, revision)
    out.print(f"schema at {revision}")


@app.command()
def doctor(
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    skip_model: Annotated[bool, typer.Option(help="Do not load the model.")] = False,
) -> None:
    """Check configuration, pack, model, Postgres, baseline, Kafka and endpoints."""
    from monitor.doctor import examine

    findings = list(examine(load(config_file), with_model=not skip_model))
    rows = [
        {"part": f.subject, "well": f.well, "seen": f.seen, "mend": f.mend} for f in findings
    ]
    _show(rows, as_json, marks={"well"})
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Records, one per line, of any supported format; - reads stdin.")],
    config_file: ConfigOption = None,
    model: Annotated[Path | None, typer.Option(help="Model folder, in place of replay.model.")] = None,
    pack_folder: Annotated[Path | None, typer.Option("--pack", help="Pack folder, in place of pack.path.")] = None,
    table: Annotated[bool, typer.Option("--table", help="A table instead of JSON lines.")] = False,
) -> None:
    """Score a file of records offline: ids, token counts, lineage and every feature's score.

    Prints one JSON line per prompt; records that cannot be read are lines with their reason, and
    make the exit code 1.
    """
    from monitor.app import build_instrument
    from monitor.offline import score_file

    overrides: dict[str, Any] = {}
    if model:
        overrides["replay"] = {"model": model}
    if pack_folder:
        overrides["pack"] = {"path": pack_folder}
    settings = load(config_file, overrides)
    instrument = build_instrument(settings)
    unread = 0
    rows = []
    for row in score_file(file, instrument, settings):
        unread += row["outcome"] == "dead_letter"
        if table:
            rows.append(_flat(row))
        else:
            sys.stdout.write(json.dumps(row) + "\n")
    if table:
        _show(rows, as_json=False)
    if unread:
        err.print(f"{unread} records could not be scored; their lines say why", highlight=False)
        raise typer.Exit(1)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("line", "outcome", "id", "prompt_tokens", "response_tokens", "reason", "detail")
    shown = {key: row.get(key) for key in kept}
    return shown | {name: value for name, value in row.get("scores", {}).items()}


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave everything running at the end.")] = False,
    record: Annotated[Path | None, typer.Option(help="Save the last screen as an SVG.")] = None,
    state: Annotated[Path, typer.Option(help="Everything the demo writes; deleted at its start.")] = Path(
        ".state/demo"
    ),
    cache: Annotated[Path, typer.Option(help="Where the converted model is kept.")] = Path(".cache"),
) -> None:
    """The main job on embedded real parts: a persona appears, a signed alert arrives, it resolves."""
    from monitor.demo.story import tell

    raise typer.Exit(0 if tell(state=state, cache=cache, keep=keep, record=record) else 1)
