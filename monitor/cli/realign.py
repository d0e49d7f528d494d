"""Bringing a drifted model back, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import typer

from monitor.cli.arguments import JsonOption, SeedOption, option, settled, spread
from monitor.cli.show import out as console
from monitor.cli.show import progress, show

if TYPE_CHECKING:
    from monitor.research.realign.run import Realigned, RealignSettings

Method = Literal["lora", "full"]
Watch = Literal["given", "own", "both"]

RATES: Final[Mapping[Method, float]] = {"lora": 2e-4, "full": 2e-5}

realigns = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class Treated:
    model: Path = option(..., "The drifted model: a folder.")
    reference: Path = option(..., "The model as it was before it drifted.")
    pack: Path = option(..., "The pack whose features must come back.")
    examples: Path = option(..., "JSON lines of good exchanges: messages and response.")
    out: Path = option(..., "Where model/, report.html and report.json are written.")
    held_out: Path | None = option(
        None, "JSON lines that features are measured on; a fifth of the examples without."
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 …")
    resume: bool = option(False, "Go on with the run in --out.")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Fields of `TuneSettings`, and called as there."""

    steps: int = option(150, "Most optimiser steps.")
    method: Method = option("lora", "lora, or full: all weights.")
    rate: float | None = option(
        None, "2e-4 for lora and 2e-5 for full when left out.", "--learning-rate"
    )
    batch: int = option(4, "Examples in one step.")
    max_tokens: int = option(512, "Longest training example.")
    bfloat16: bool = option(False, "Train in bfloat16 over float32 weights.")
    seed: SeedOption = 0


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """When it is back; fields that `RealignSettings` has are called as there."""

    every: int = option(10, "Steps between measurements.")
    stay: int = option(3, "Measurements in a row that must be inside.")
    measure: Watch = option(
        "given", "What decides: given exchanges, own answers, or both.", "--watch"
    )
    rule: list[str] | None = option(
        None, 'Features and margins: "reckless* shift=0.2", "assistant ignore".'
    )
    alpha: float = option(0.05, "One-sided error of each upper bound.")
    answer_tokens: int = option(48, "Longest own answer; 0 leaves own answers out.")
    show_texts: bool = option(False, "Quote held-out questions and answers in the report.")


@realigns.command("realign")
@spread
def realign(
    treated: Treated, tuning: Tuning, measuring: Measuring, as_json: JsonOption = False
) -> None:
    """Fine-tune a drifted model on good examples until its features are back, and stay back.

    Exit code 0: back (or never away); 1: not back within --steps.
    """
    from monitor.research.realign.run import realign as treat
    from monitor.research.texts import load_chats
    from monitor.score.pack import load_pack
    from monitor.settings import ReplaySettings

    settings, out = _settings(tuning, measuring), treated.out
    with progress() as report:
        found = treat(
            ReplaySettings(model=treated.model, device=treated.device, dtype="float32"),
            ReplaySettings(model=treated.reference, device=treated.device, dtype="float32"),
            load_pack(treated.pack),
            load_chats(treated.examples),
            None if treated.held_out is None else load_chats(treated.held_out),
            out,
            settings,
            resume=treated.resume,
            progress=report,
        )
    if as_json:
        sys.stdout.write((out / "report.json").read_text(encoding="utf-8"))
    else:
        show(_standings(found), as_json=False)
        console.print(
            f"{out}: {found.outcome.replace('_', ' ')} after {found.curve[-1].step} steps; the report is "
            "report.html",
            highlight=False,
        )
    if found.outcome == "not_returned":
        raise typer.Exit(1)


def _settings(tuning: Tuning, measuring: Measuring) -> RealignSettings:
    from monitor.research.gate.rules import parse_rule
    from monitor.research.realign.run import RealignSettings
    from monitor.research.tuning.tune import TuneSettings

    rate = RATES[tuning.method] if tuning.rate is None else tuning.rate
    return settled(
        RealignSettings,
        measuring,
        tune=settled(TuneSettings, tuning, learning_rate=rate, schedule="constant"),
        watch=("given", "own") if measuring.measure == "both" else (measuring.measure,),
        rules=tuple(map(parse_rule, measuring.rule or ())),
    )


def _standings(found: Realigned) -> list[dict[str, Any]]:
    first, last = found.curve[0], found.curve[-1]
    starts = {(one.feature, one.measure): one.shift.value for one in first.standings}
    return [
        {
            "feature": one.feature,
            "measure": one.measure,
            "shift before": starts[one.feature, one.measure],
            "after": one.shift.value,
            "upper bound": one.shift.high,
            "margin": one.margin,
            "inside": one.inside,
        }
        for one in last.standings
    ]
