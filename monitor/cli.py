"""Arguments, output and exit codes; nothing else.

Exit codes: 0 well, 1 stopped loudly or found something wrong, 2 refused (configuration, pack, model,
schema, bad input, or a service that a command needs does not answer).
"""

from __future__ import annotations

import getpass
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from monitor.errors import MonitorError, StopLoudly
from monitor.records import DeliveryState
from monitor.settings import Settings, load

if TYPE_CHECKING:
    from sqlalchemy import Connection

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
    typer.Option(
        "--config",
        "-c",
        help="YAML file; MONITOR_* variables win over it.",
        envvar="MONITOR_CONFIG",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

out = Console()
err = Console(stderr=True)


def main() -> None:
    """The console script: every error a person can act on is one sentence and a hint."""
    try:
        app()
    except MonitorError as error:
        err.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        if error.hint:
            err.print(f"  {_plain(error.hint)}", highlight=False, soft_wrap=True)
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
    rows = [{"part": f.subject, "well": f.well, "seen": f.seen, "mend": f.mend} for f in findings]
    _show(rows, as_json)
    if not all(finding.well for finding in findings):
        raise typer.Exit(1)


@app.command()
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
    return {**shown, **row.get("scores", {})}


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave everything running at the end.")] = False,
    record: Annotated[Path | None, typer.Option(help="Save the last screen as an SVG.")] = None,
    state: Annotated[
        Path, typer.Option(help="Everything the demo writes; deleted at its start.")
    ] = Path(".state/demo"),
    cache: Annotated[Path, typer.Option(help="Where the converted model is kept.")] = Path(
        ".cache"
    ),
) -> None:
    """The main job on embedded real parts: a persona appears, a signed alert arrives, it resolves."""
    from monitor.demo.story import tell

    raise typer.Exit(0 if tell(state=state, cache=cache, keep=keep, record=record) else 1)


# --- baselines -----------------------------------------------------------------------------------


@baseline.command("capture")
def baseline_capture(
    last: Annotated[
        str, typer.Option(help="How far back the baseline reaches: 24h, 90m, 7d.")
    ] = "24h",
    name: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    approve: Annotated[bool, typer.Option(help="Approve it at once.")] = False,
    by: Annotated[str, typer.Option(help="Who approves.")] = "",
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze recent scores as a draft baseline; it is compared with nothing until approved."""
    from monitor import operate
    from monitor.store import drift

    settings = load(config_file)
    now = datetime.now(UTC)
    with _database(settings) as c:
        made = operate.capture_baseline(
            c,
            settings,
            name=name or f"captured {now:%Y-%m-%d %H:%M}",
            start=now - _span(last),
            end=now,
            now=now,
        )
        if approve:
            drift.approve_baseline(c, made.baseline_id, _who(by), now)
    status = "approved" if approve else "draft"
    _show([{"baseline_id": made.baseline_id, "n": made.n, "status": status}], as_json)


@baseline.command("list")
def baseline_list(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All baselines, newest first."""
    from monitor.store import drift

    with _database(load(config_file)) as c:
        _show(drift.list_baselines(c), as_json)


@baseline.command("approve")
def baseline_approve(
    baseline_id: str,
    by: Annotated[str, typer.Option(help="Who approves.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Compare with this baseline from now on; the one approved before is retired."""
    from monitor.store import drift

    with _database(load(config_file)) as c:
        drift.approve_baseline(c, baseline_id, _who(by), datetime.now(UTC))
    out.print(f"{baseline_id} is approved")


@baseline.command("retire")
def baseline_retire(
    baseline_id: str,
    by: Annotated[str, typer.Option(help="Who retires it.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Compare with this baseline no more."""
    from monitor.store import drift

    with _database(load(config_file)) as c:
        drift.retire_baseline(c, baseline_id, _who(by), datetime.now(UTC))
    out.print(f"{baseline_id} is retired")


# --- alerts and deliveries -----------------------------------------------------------------------


@alerts.command("list")
def alerts_list(
    every: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open alerts, newest first."""
    from monitor import operate
    from monitor.store.alerts import list_alerts

    states = None if every else ("pending", "firing")
    with _database(load(config_file)) as c:
        _show([operate.alert_row(alert) for alert in list_alerts(c, states=states)], as_json)


@alerts.command("ack")
def alerts_ack(
    alert_id: str,
    by: Annotated[str, typer.Option(help="Who takes it.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Say that somebody is on it: reminders end, its resolution is still announced."""
    from monitor.store.alerts import acknowledge

    with _database(load(config_file)) as c:
        acknowledge(c, alert_id, _who(by), datetime.now(UTC))
    out.print(f"{alert_id} is acknowledged")


@alerts.command("silence")
def alerts_silence(
    match: Annotated[
        list[str], typer.Argument(help="label=glob, e.g. feature=toxic-* segment=all")
    ],
    length: Annotated[str, typer.Option("--for", help="How long: 2h, 30m, 1d.")] = "2h",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str, typer.Option(help="Who.")] = "",
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Announce nothing about alerts whose labels match, for a while."""
    from monitor import operate

    matchers = dict(_pair(item) for item in match)
    if len(matchers) < len(match):
        raise typer.BadParameter("a label is given twice; make a silence for each")
    with _database(load(config_file)) as c:
        made = operate.silence(
            c,
            matchers=matchers,
            length=_span(length),
            by=_who(by),
            comment=comment,
            now=datetime.now(UTC),
        )
    _show([operate.silence_row(made)], as_json)


@alerts.command("silences")
def alerts_silences(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Silences in force."""
    from monitor import operate
    from monitor.store.alerts import active_silences

    with _database(load(config_file)) as c:
        found = active_silences(c, datetime.now(UTC))
        _show([operate.silence_row(silence) for silence in found], as_json)


@alerts.command("unsilence")
def alerts_unsilence(silence_id: str, config_file: ConfigOption = None) -> None:
    """End a silence now: alerts that still hold are announced."""
    from monitor.store.alerts import end_silence

    with _database(load(config_file)) as c:
        end_silence(c, silence_id, datetime.now(UTC))
    out.print(f"{silence_id} has ended")


@deliveries.command("list")
def deliveries_list(
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only this endpoint.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the endpoints were told, newest first."""
    from monitor import operate
    from monitor.store.alerts import list_deliveries

    states = [state] if state else None
    with _database(load(config_file)) as c:
        rows = list_deliveries(c, states=states, endpoint=endpoint, limit=limit)
        _show([operate.delivery_row(row) for row in rows], as_json)


@deliveries.command("replay")
def deliveries_replay(delivery_id: int, config_file: ConfigOption = None) -> None:
    """Send a delivery once more, with the same webhook-id."""
    from monitor.store.alerts import replay_delivery

    with _database(load(config_file)) as c:
        replay_delivery(c, delivery_id, datetime.now(UTC))
    out.print(f"delivery {delivery_id} will be sent again")


@deliveries.command("enable")
def deliveries_enable(endpoint: str, config_file: ConfigOption = None) -> None:
    """Send to an endpoint again that was disabled because it answered 410."""
    from monitor.store.alerts import enable_endpoint

    with _database(load(config_file)) as c:
        enable_endpoint(c, endpoint)
    out.print(f"{endpoint} is enabled")


# --- packs ---------------------------------------------------------------------------------------


@pack.command("inspect")
def pack_inspect(folder: Path, as_json: JsonOption = False) -> None:
    """What a pack holds: its model, features, sites, and how well they separate held-out text."""
    from monitor.score.pack import load_pack, manifest

    found = load_pack(folder)
    if as_json:
        sys.stdout.write(json.dumps(manifest(found), indent=2) + "\n")
        return
    out.print(f"[bold]{_plain(found.name)}[/] {found.version}  id {found.pack_id[:12]}")
    out.print(
        f"made for {found.model.model_id}: {found.model.architecture}, {found.model.layers} blocks"
    )
    held_out = found.report.get("features", {})
    _show(
        [
            {
                "feature": feature.name,
                "kind": feature.kind,
                "site": f"layers.{feature.site}",
                "region": feature.region,
                "pooling": feature.pooling,
                "expected": feature.expected,
                "tail above": feature.tail_threshold,
                **_figures(held_out.get(feature.name, {})),
            }
            for feature in found.features
        ],
        as_json=False,
    )


@pack.command("verify")
def pack_verify(
    folder: Path,
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.")],
    as_json: JsonOption = False,
) -> None:
    """Compare a pack with a model: sizes, hashes, and its canaries replayed. Exit code 1 if it differs."""
    from monitor.research.verify import verify_pack
    from monitor.score.pack import load_pack
    from monitor.settings import ReplaySettings

    report = verify_pack(load_pack(folder), ReplaySettings(model=model))
    _show([asdict(report)], as_json)
    if not report.ok:
        raise typer.Exit(1)


@build.command("contrast")
def pack_build_contrast(
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
    seed: Annotated[
        int, typer.Option(help="Decides splits and controls; the same seed, the same pack.")
    ] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder of contrast texts; the project's own when left out.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Logistic probes in place of directions.")
    ] = False,
) -> None:
    """Build persona directions from contrasting answers, with calibration, canaries and a report."""
    from monitor.research.contrast import build_contrast_pack
    from monitor.research.directions import Kind

    kind: Kind = "probe" if probe else "direction"
    with _progress() as progress:
        made = build_contrast_pack(model, folder, seed, data, progress, kind=kind)
    out.print(f"{folder}: {len(made.features)} features, id {made.pack_id[:12]}")


@imports.command("sae")
def pack_import_sae(
    checkpoint: Annotated[
        Path, typer.Argument(help="SAELens folder: cfg.json, sae_weights.safetensors.")
    ],
    latent: Annotated[
        list[int], typer.Option(help="Number of a latent; may be given several times.")
    ],
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
) -> None:
    """Make a pack of chosen latents of a SAELens checkpoint, calibrated on the project's benign texts."""
    from monitor.research.latents import build_latent_pack

    with _progress() as progress:
        made = build_latent_pack(checkpoint, latent, model, folder, progress)
    out.print(f"{folder}: {len(made.features)} features, id {made.pack_id[:12]}")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    with err.status("building") as status:
        yield lambda line: status.update(_plain(line))


# --- configuration -------------------------------------------------------------------------------


@config.command("show")
def config_show(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The configuration in force, secrets hidden."""
    import yaml

    content = _without_secrets(load(config_file).model_dump(mode="json", by_alias=True))
    sys.stdout.write(
        json.dumps(content, indent=2) + "\n"
        if as_json
        else yaml.safe_dump(content, sort_keys=False)
    )


@config.command("schema")
def config_schema() -> None:
    """JSON Schema of the configuration file: every key, its meaning and default."""
    sys.stdout.write(json.dumps(Settings.model_json_schema(), indent=2) + "\n")


# --- reading arguments, showing rows ---------------------------------------------------------------

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _span(value: str) -> timedelta:
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not number.isdigit() or not 0 < int(number) < 1_000_000:
        raise typer.BadParameter(f"{value!r} is no length of time; write 90m, 24h or 7d")
    return timedelta(seconds=int(number) * _UNITS[unit])


def _pair(item: str) -> tuple[str, str]:
    label, found, pattern = item.partition("=")
    if not found or not pattern:
        raise typer.BadParameter(f"{item!r} is no label=glob")
    return label, pattern


def _figures(held_out: Mapping[str, Any]) -> dict[str, Any]:
    if not held_out:
        return {}
    low, high = held_out["auc_interval_95"]
    return {
        "held-out AUC": f"{held_out['auc']:.2f} ({low:.2f} to {high:.2f})",
        "against benign": held_out["auc_against_benign"],
        "95% of random below": held_out["random_directions"]["q95"],
    }


def _without_secrets(content: dict[str, Any]) -> dict[str, Any]:
    """Secret fields are hidden by their type; these two may hold one in plain text."""
    options = content["kafka"]["client_options"]
    content["kafka"]["client_options"] = {
        name: "**********" if re.search("pass|secret|token|key", name) else value
        for name, value in options.items()
    }
    for endpoint in content["alerts"]["endpoints"]:
        scheme, _, rest = endpoint["url"].partition("://")
        host, slash, _ = rest.rpartition("@")[2].partition("/")
        endpoint["url"] = f"{scheme}://{host}{slash}{'**********' if slash else ''}"
    return content


def _who(by: str) -> str:
    try:
        return by or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        raise typer.BadParameter(
            "the user of this process has no name; say who with --by"
        ) from None


def _database(settings: Settings) -> AbstractContextManager[Connection]:
    from monitor.store.database import connect, require_schema, transaction

    database = connect(settings.postgres)
    require_schema(database)
    return transaction(database)


def _show(rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    rows = list(rows)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
        return
    if not rows:
        out.print("nothing to show")
        return
    # Folded, not cut: an id must be whole to be copied.
    headers = dict.fromkeys(key for row in rows for key in row)
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
    return _plain(f"{value:.3g}" if isinstance(value, float) else str(value))


def _plain(value: str) -> str:
    return escape(value)


if __name__ == "__main__":
    main()
