"""Baselines: capture, list, approve, retire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.arguments import ConfigOption, JsonOption, database, span, who
from monitor.cli.asking import YesOption, ask
from monitor.cli.asking import span as from_to
from monitor.cli.show import err, out, plain, show
from monitor.settings import load

if TYPE_CHECKING:
    from monitor.values.drift import Baseline

baseline = typer.Typer(help="What drift is compared with: capture, look at, approve, retire.")


@baseline.command("capture")
def baseline_capture(
    last: Annotated[
        str, typer.Option(help="How far back the baseline reaches: 24h, 90m, 7d.")
    ] = "24h",
    name: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    pack: Annotated[
        str | None,
        typer.Option(
            help="Of which pack, by the beginning of its id; needed while several are live."
        ),
    ] = None,
    approve: Annotated[bool, typer.Option(help="Approve it at once.")] = False,
    by: Annotated[str, typer.Option(help="Who approves.")] = "",
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Freeze recent scores as a draft baseline; it is compared with nothing until approved."""
    from monitor import operate
    from monitor.store.baselines import approve_baseline, load_baseline
    from monitor.store.database import database_time
    from monitor.store.packs import pack_presence

    settings = load(config_file)
    with database(settings) as c:
        now = database_time(c)
    if approve:
        with database(settings) as c:
            meant = operate.pack_meant(pack_presence(c, now), pack)
            in_force = load_baseline(c, pack_id=meant)
        ask(_replaced(in_force), "Capture and approve another?", yes=yes)
    with database(settings) as c:
        made = operate.capture_baseline(
            c,
            settings,
            pack=pack,
            name=name or f"captured {now:%Y-%m-%d %H:%M}",
            start=now - span(last),
            end=now,
            now=now,
        )
        if approve:
            approve_baseline(c, made.baseline_id, who(by), now)
        unknown = operate.tails_not_known(c, made)
        notes = operate.notes(c, made, settings)
    status = "approved" if approve else "draft"
    row = {
        "baseline_id": made.baseline_id,
        "pack_id": made.pack_id,
        "n": made.n,
        "features_given_the_prompt": len(made.expectations),
        "law": str(made.law) if made.law else None,
        "numerics": str(made.numerics) if made.numerics else None,
        "status": status,
    }
    show([row], as_json)
    _warn(unknown)
    _note(notes)


def _warn(unknown: str) -> None:
    """Say on the error stream which tails a baseline does not know, and the mend."""
    from monitor.operate import TAILS_MEND

    if unknown:
        err.print(f"[bold yellow]warning:[/] {plain(unknown)}", highlight=False, soft_wrap=True)
        err.print(f"  {plain(TAILS_MEND)}", highlight=False, soft_wrap=True)


def _note(notes: Iterable[str]) -> None:
    """Say on the error stream what is to be known of a baseline."""
    for told in notes:
        err.print(f"note: {plain(told)}", highlight=False, soft_wrap=True)


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
    yes: YesOption = False,
) -> None:
    """Compare with this baseline from now on; the one approved before is retired."""
    from monitor import operate
    from monitor.store.baselines import approve_baseline, load_baseline
    from monitor.store.database import database_time

    settings = load(config_file)
    with database(settings) as c:
        draft = load_baseline(c, baseline_id)
        in_force = load_baseline(c, pack_id=draft.pack_id) if draft else None
    if draft and draft.status == "draft":
        ask(_replaced(in_force), f"Approve {baseline_id} in its place?", yes=yes)
    with database(settings) as c:
        approve_baseline(c, baseline_id, who(by), database_time(c))
        approved = load_baseline(c, baseline_id)
        unknown = operate.tails_not_known(c, approved) if approved else ""
        notes = operate.notes(c, approved, settings) if approved else ()
    out.print(plain(f"{baseline_id} is approved"))
    _warn(unknown)
    _note(notes)


@baseline.command("retire")
def baseline_retire(
    baseline_id: str,
    by: Annotated[str, typer.Option(help="Who retires it.")] = "",
    config_file: ConfigOption = None,
    yes: YesOption = False,
) -> None:
    """Compare with this baseline no more."""
    from monitor.store.baselines import load_baseline, retire_baseline
    from monitor.store.database import database_time

    settings = load(config_file)
    with database(settings) as c:
        found = load_baseline(c, baseline_id)
    if found and found.status != "retired":
        losses = [f"{_described(found)} is retired; it cannot be approved again"]
        if found.status == "approved":
            losses.append("no drift is seen until another baseline is approved")
        ask(losses, "Retire it?", yes=yes)
    with database(settings) as c:
        retire_baseline(c, baseline_id, who(by), database_time(c))
    out.print(plain(f"{baseline_id} is retired"))


def _replaced(in_force: Baseline | None) -> list[str]:
    """What is lost when another baseline is approved."""
    if in_force is None:
        return []
    return [
        f"{_described(in_force)} is retired; it cannot be approved again, and the sequential "
        "detectors begin anew"
    ]


def _described(found: Baseline) -> str:
    state = f"approved by {found.approved_by}" if found.approved_by else str(found.status)
    return (
        f"the baseline {found.name} ({found.baseline_id}, {found.n} prompts, "
        f"{from_to(found.window_start, found.window_end)}, {state})"
    )
