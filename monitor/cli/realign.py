"""Bringing a drifted model back, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from monitor.cli.arguments import JsonOption, SeedOption
from monitor.cli.show import out as console
from monitor.cli.show import progress, show

Method = Literal["lora", "full"]
Watch = Literal["given", "own", "both"]

RATES: Final[Mapping[Method, float]] = {"lora": 2e-4, "full": 2e-5}

realigns = typer.Typer()


@realigns.command("realign")
def realign(
    model: Annotated[Path, typer.Option(help="The drifted model: a folder.")],
    reference: Annotated[Path, typer.Option(help="The model as it was before it drifted.")],
    pack: Annotated[Path, typer.Option(help="The pack whose features must come back.")],
    examples: Annotated[
        Path, typer.Option(help="JSON lines of good exchanges: messages and response.")
    ],
    out: Annotated[
        Path, typer.Option(help="Where model/, report.html and report.json are written.")
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines that features are measured on; a fifth of the examples without."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Most optimiser steps.")] = 150,
    every: Annotated[int, typer.Option(help="Steps between measurements.")] = 10,
    stay: Annotated[int, typer.Option(help="Measurements in a row that must be inside.")] = 3,
    watch: Annotated[
        Watch, typer.Option(help="What decides: given exchanges, own answers, or both.")
    ] = "given",
    rule: Annotated[
        list[str] | None,
        typer.Option(help='Features and margins: "reckless* shift=0.2", "assistant ignore".'),
    ] = None,
    alpha: Annotated[float, typer.Option(help="One-sided error of each upper bound.")] = 0.05,
    answer_tokens: Annotated[
        int, typer.Option(help="Longest own answer; 0 leaves own answers out.")
    ] = 48,
    method: Annotated[Method, typer.Option(help="lora, or full: all weights.")] = "lora",
    learning_rate: Annotated[
        float | None, typer.Option(help="2e-4 for lora and 2e-5 for full when left out.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Examples in one step.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Longest training example.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Train in bfloat16 over float32 weights.")
    ] = False,
    show_texts: Annotated[
        bool,
        typer.Option("--show-texts", help="Quote held-out questions and answers in the report."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a drifted model on good examples until its features are back, and stay back.

    Exit code 0: back (or never away); 1: not back within --steps.
    """
    from monitor.research.gate.rules import parse_rule
    from monitor.research.realign.run import RealignSettings
    from monitor.research.realign.run import realign as treat
    from monitor.research.texts import load_chats
    from monitor.research.tuning.tune import TuneSettings
    from monitor.score.pack import load_pack
    from monitor.settings import ReplaySettings

    settings = RealignSettings(
        tune=TuneSettings(
            learning_rate=RATES[method] if learning_rate is None else learning_rate,
            steps=steps,
            method=method,
            batch=batch,
            max_tokens=max_tokens,
            schedule="constant",
            bfloat16=bfloat16,
            seed=seed,
        ),
        every=every,
        stay=stay,
        watch=("given", "own") if watch == "both" else (watch,),
        rules=tuple(map(parse_rule, rule or ())),
        alpha=alpha,
        answer_tokens=answer_tokens,
        show_texts=show_texts,
    )
    with progress() as report:
        found = treat(
            ReplaySettings(model=model, device=device, dtype="float32"),
            ReplaySettings(model=reference, device=device, dtype="float32"),
            load_pack(pack),
            load_chats(examples),
            None if held_out is None else load_chats(held_out),
            out,
            settings,
            resume=resume,
            progress=report,
        )
    if as_json:
        sys.stdout.write((out / "report.json").read_text(encoding="utf-8"))
    else:
        first, last = found.curve[0], found.curve[-1]
        starts = {(one.feature, one.measure): one.shift.value for one in first.standings}
        show(
            [
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
            ],
            as_json=False,
        )
        console.print(
            f"{out}: {found.outcome.replace('_', ' ')} after {last.step} steps; the report is "
            "report.html",
            highlight=False,
        )
    if found.outcome == "not_returned":
        raise typer.Exit(1)
