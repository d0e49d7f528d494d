"""Baselines: capture, list, approve, retire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from monitor.cli.arguments import ConfigOption, JsonOption, database, span, who
from monitor.cli.show import err, out, plain, show
from monitor.settings import load

baseline = typer.Typer(help="What drift is compared with: capture, look at, approve, retire.")


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
    from monitor.store.baselines import approve_baseline

    settings = load(config_file)
    now = datetime.now(UTC)
    with database(settings) as c:
        made = operate.capture_baseline(
            c,
            settings,
            name=name or f"captured {now:%Y-%m-%d %H:%M}",
            start=now - span(last),
            end=now,
            now=now,
        )
        if approve:
            approve_baseline(c, made.baseline_id, who(by), now)
        unknown = operate.tails_not_known(c, made)
    status = "approved" if approve else "draft"
    show([{"baseline_id": made.baseline_id, "n": made.n, "status": status}], as_json)
    _warn(unknown)


def _warn(unknown: str) -> None:
    """Say on the error stream which tails a baseline does not know, and the mend."""
    from monitor.operate import TAILS_MEND

    if unknown:
        err.print(f"[bold yellow]warning:[/] {plain(unknown)}", highlight=False, soft_wrap=True)
        err.print(f"  {plain(TAILS_MEND)}", highlight=False, soft_wrap=True)


@baseline.command("list")
def baseline_list(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All baselines, newest first."""
    from monitor.store.baselines import list_baselines

    with database(load(config_file)) as c:
        show(list_baselines(c), as_json)


@baseline.command("approve")
def baseline_approve(
    baseline_id: str,
    by: Annotated[str, typer.Option(help="Who approves.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Compare with this baseline from now on; the one approved before is retired."""
    from monitor.operate import tails_not_known
    from monitor.store.baselines import approve_baseline, load_baseline

    with database(load(config_file)) as c:
        approve_baseline(c, baseline_id, who(by), datetime.now(UTC))
        approved = load_baseline(c, baseline_id)
        unknown = tails_not_known(c, approved) if approved else ""
    out.print(f"{baseline_id} is approved")
    _warn(unknown)


@baseline.command("retire")
def baseline_retire(
    baseline_id: str,
    by: Annotated[str, typer.Option(help="Who retires it.")] = "",
    config_file: ConfigOption = None,
) -> None:
    """Compare with this baseline no more."""
    from monitor.store.baselines import retire_baseline

    with database(load(config_file)) as c:
        retire_baseline(c, baseline_id, who(by), datetime.now(UTC))
    out.print(f"{baseline_id} is retired")
