"""What the rules could see on stored traffic."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from monitor.cli.arguments import ConfigOption, JsonOption, SeedOption, moment, readable
from monitor.cli.backtest import RULES_SECTIONS, FromOption, ToOption
from monitor.cli.show import err, out, plain, show
from monitor.settings import Settings, laid_over, load

if TYPE_CHECKING:
    from monitor.proof.power import Least, Power
    from monitor.proof.studied import Studied

powers = typer.Typer()


@powers.command()
def power(
    begin: FromOption = "14d",
    end: ToOption = "0s",
    features: Annotated[
        list[str] | None,
        typer.Option("--feature", help="Only features of this name or glob; may be given again."),
    ] = None,
    rules: Annotated[
        Path | None,
        typer.Option(
            help="Rules to study in place of those in force, as `monitor backtest` takes."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Id of a baseline in place of the approved one.")
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option(
            help="Of which pack, by the beginning of its id; needed while several are live."
        ),
    ] = None,
    persona: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="How many deviations a persona's prompts score from benign ones; else what the pack's report "
            "says of each feature, or 4.",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=5, help="Runs of each size.")] = 10,
    seed: SeedOption = 0,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The smallest shift, and the smallest share of persona prompts, that each rule would see in your traffic.

    Draws stored history anew in blocks, mixes a persona in, and asks the watcher's own evaluation when it
    fires: within an hour, a day, a week, with the false alarms of each rule beside it. Writes nothing to the
    store. Takes some minutes for each feature.
    """
    settings = load(config_file)
    settings = laid_over(settings, rules, RULES_SECTIONS) if rules else settings
    chosen = Chosen(pack=pack, baseline=baseline, features=features or ("*",), persona=persona)
    rows = _study(_history(settings, begin, end, chosen), runs, seed)
    if as_json:
        sys.stdout.write(json.dumps([_row(one) for one in rows], indent=2) + "\n")
    else:
        _tell(rows, runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Whose history is studied, and against what."""

    pack: str | None
    baseline: str | None
    features: Sequence[str]
    persona: float | None


def _history(settings: Settings, begin: str, end: str, chosen: Chosen) -> Sequence[Studied]:
    from monitor.operate import pack_meant
    from monitor.proof.studied import Asked, history_from, studied
    from monitor.store.database import database_time, snapshot
    from monitor.store.packs import pack_presence

    with snapshot(readable(settings)) as c:
        now = database_time(c)
        since = moment(begin, "--from", now)
        if (kept := history_from(c, since)) > since:
            _note(
                f"fine buckets before {kept:%Y-%m-%d %H:%M} UTC were dropped; history begins there"
            )
        asked = Asked(
            pack_id=pack_meant(pack_presence(c, now), chosen.pack),
            since=since,
            until=min(moment(end, "--to", now), now),
            baseline=chosen.baseline,
            features=chosen.features,
            persona=chosen.persona,
        )
        return studied(c, settings, asked)


def _study(found: Sequence[Studied], runs: int, seed: int) -> list[Power]:
    from monitor.proof.power import power as study

    rows: list[Power] = []
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=len(found))
        for one in found:
            if one.watched is None:
                _note(f"{one.name}: the baseline holds no stream of it, so it is not watched")
            else:
                rows += study(
                    one.watched,
                    persona=one.persona,
                    persona_by=one.persona_by,
                    runs=runs,
                    seed=seed,
                    progress=lambda what: progress.update(task, description=plain(what)),
                )
            progress.advance(task)
    return rows


def _note(said: str) -> None:
    err.print(f"note: {plain(said)}", highlight=False, soft_wrap=True)


def _row(one: Power) -> dict[str, Any]:
    row = asdict(one)
    for name in ("history", "needed"):
        value = row.pop(name)
        row[f"{name}_hours"] = None if value is None else value / timedelta(hours=1)
    return row


def _tell(rows: list[Power], runs: int) -> None:
    if not rows:
        out.print("nothing to show")
        return
    show(
        [
            {
                "feature": one.feature,
                "rule": one.rule,
                **{
                    f"{kind} in a{'n' if horizon == 'hour' else ''} {horizon}": _shown(kind, least)
                    for kind, its in one.least.items()
                    for horizon, least in its.items()
                },
                "false alarms in 30 days": _alarms(one),
            }
            for one in rows
        ],
        as_json=False,
    )
    first = rows[0]
    blocks = "by their hour of the day" if first.by_hour else "whatever their hour of the day"
    out.print(
        f"shift: in deviations of the baseline; share: of prompts that score {_personas(rows)} deviations "
        f"towards the persona. Seen in at least 8 of 10 runs ({runs} each). History: "
        f"{first.history / timedelta(hours=1):g} h in blocks of an hour, drawn {blocks}.",
        highlight=False,
        soft_wrap=True,
    )
    short = [one for one in rows if one.needed is not None]
    if short:
        needed = max(one.needed for one in short if one.needed is not None)
        _note(
            f"undecided: the history beside the baseline's own interval is too short; {needed.days} days of it "
            "decide all"
        )


def _personas(rows: list[Power]) -> str:
    sizes = sorted({one.persona for one in rows})
    of = "as the pack states, " if any(one.persona_by == "pack" for one in rows) else ""
    low, high = f"{sizes[0]:.2g}", f"{sizes[-1]:.2g}"
    return of + (low if low == high else f"{low} to {high}")


def _shown(kind: str, least: Least) -> str:
    if least.verdict != "seen" or least.size is None:
        return least.verdict
    return f"{least.size:g}" if kind == "shift" else f"{least.size:.1%}"


def _alarms(one: Power) -> str:
    if one.false_alarms is None or one.false_alarms_at_most is None:
        return "undecided"
    return f"{one.false_alarms:.3g} (at most {one.false_alarms_at_most:.3g})"
