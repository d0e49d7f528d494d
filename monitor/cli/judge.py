"""Does a pack deserve to ship?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.arguments import JsonOption, ModelOption, SeedOption
from monitor.cli.asking import YesOption, ask
from monitor.cli.show import out, plain, progress, show
from monitor.writing import write_whole


def pack_judge(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="The pack's folder.")],
    model: ModelOption,
    data: Annotated[
        Path | None, typer.Option(help="Folder of texts; the project's own when left out.")
    ] = None,
    other_models: Annotated[
        list[Path] | None,
        typer.Option(
            "--other-model",
            help="Model whose answers to the held-out questions the copy reads too; may be repeated.",
        ),
    ] = None,
    report_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for judge.html and judge.json.")
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Put the report into the pack, which gets a new id."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="One dose, fewer answers, controls and texts.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what steering found, to continue from; OUT.work when left out."
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Measure every feature of a pack on held-out texts: ship, watch-only or reject.

    A verdict holds for texts like those judged: give texts like your traffic with --data. A run that was killed goes on where it was
    when it is begun again with the same --out or --work. Exit code 1 when a feature is rejected.
    """
    from monitor.research.judge.run import judge_pack, with_report
    from monitor.score.pack import load_pack, save_pack

    found = load_pack(folder)
    if write:
        lost = f"{found.name} loses the id {found.pack_id[:12]}, that baselines and scores name"
        ask([lost], "Write the report into the pack?", yes=yes)
    with progress() as said:
        report = judge_pack(
            found, model, data=data, others=other_models or (), seed=seed, quick=quick,
            device=device, work=work or _beside(report_folder), progress=said,
        )  # fmt: skip
    _report(report, found.name, report_folder, as_json)
    if write:
        pack_id = save_pack(with_report(found, report), folder)
        if not as_json:
            out.print(plain(f"{folder}: the report is inside, id {pack_id[:12]}"), highlight=False)
    if report["decision"] == "reject":
        raise typer.Exit(1)


def _beside(report_folder: Path | None) -> Path | None:
    """Where what steering found is kept, unless somebody says."""
    if report_folder is None:
        return None
    place = report_folder.resolve()  # "." has no name of its own
    return place.parent / f"{place.name}.work"


def _report(
    report: Mapping[str, Any], pack: str, report_folder: Path | None, as_json: bool
) -> None:
    from monitor.research.judge.page import judge_page

    written = json.dumps(report, indent=2) + "\n"
    if report_folder is not None:
        write_whole(report_folder / "judge.json", written)
        write_whole(report_folder / "judge.html", judge_page(pack, report))
    if as_json:
        sys.stdout.write(written)
    else:
        _tell(report)


def _tell(report: Mapping[str, Any]) -> None:
    """The verdicts, why each is not better, and what was not judged at all."""
    from monitor.research.judge.page import verdict_rows

    show(verdict_rows(report), as_json=False)
    told = [
        f"{name}: {reason}" for name, one in report["features"].items() for reason in one["reasons"]
    ]
    if not report["texts"]["contents_in_styles"]:
        told.append("not judged: the same content in other styles (styles.jsonl)")
    if not report["texts"]["answers_by_other_models"]:
        told.append("not judged: answers by other models (--other-model)")
    for line in told:
        out.print(plain(line), highlight=False, soft_wrap=True)
