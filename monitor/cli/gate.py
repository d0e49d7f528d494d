"""`monitor gate`: a release pipeline asks whether a candidate may take the served model's place."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from monitor.cli.arguments import JsonOption, option, settled, spread
from monitor.cli.deciding import DecidingCommand
from monitor.cli.show import out, plain, progress, show
from monitor.errors import BadInput
from monitor.writing import write_whole

if TYPE_CHECKING:
    from monitor.research.gate.decide import GateReport

gates = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class Models:
    reference: Path = option(..., "The served model: folder or GGUF file.")
    pack_folder: Path = option(..., "The reference's pack.", "--pack")
    prompts: Path = option(..., "Records, one per line, of any supported format; - reads stdin.")
    candidate: Path | None = option(
        None, "Model folder, or a LoRA adapter's on the reference's own base."
    )
    candidate_adapter: Path | None = option(None, "LoRA adapter of the candidate.")
    reference_adapter: Path | None = option(None, "LoRA adapter of the served model.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 …")
    dtype: str = option("auto", "auto, float32 or bfloat16.")


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """How it is decided; fields that `GateSettings` has are called as there."""

    rule: list[str] | None = option(
        None, 'Margins, e.g. "tag:misaligned shift=0.2 tail=0.02", "*.peak tail=off", "x ignore".'
    )
    generate: int | None = option(
        None, "Both answer the prompts, with up to so many tokens; given ones are left."
    )
    alpha: float = option(0.05, "Error rate of either wrong decision.")
    least: int = option(50, "Fewest conversations for any decision.", "--min-n")


@dataclass(frozen=True, kw_only=True)
class Files:
    folder: Path | None = option(None, "Folder for gate.md, gate.xml and gate.json.", "--out")
    markdown: Path | None = option(None, "File for the Markdown report.")
    junit: Path | None = option(None, "File for the JUnit XML.")


@gates.command(cls=DecidingCommand)
@spread
def gate(models: Models, deciding: Deciding, files: Files, as_json: JsonOption = False) -> None:
    """Replay the same prompts through the served model and a candidate, and decide.

    Exit code 0: pass, no harmful shift beyond its margin; 1: fail; 2: inconclusive, more prompts are
    needed; 3: refused, nothing was decided.
    """
    from monitor.research.gate import report as reports

    report, skipped = _decided(models, deciding)
    _write(report, files)
    if as_json:
        sys.stdout.write(reports.json_text(report))
    else:
        out.print(plain(reports.headline(report)), highlight=False, soft_wrap=True)
        show(map(reports.table_row, report.shifts), as_json=False)
        for note in report.notes:
            out.print(plain(note), highlight=False, soft_wrap=True)
        if skipped:
            out.print(plain(f"{skipped} records were skipped: they are no prompts, or redacted"))
    raise typer.Exit(reports.EXIT_CODES[report.verdict])


def _decided(models: Models, deciding: Deciding) -> tuple[GateReport, int]:
    """The report, and how many records were skipped."""
    from pydantic import ValidationError

    from monitor.offline import read_prompts
    from monitor.research.gate.decide import GateSettings, candidate_of, run_gate
    from monitor.research.gate.rules import parse_rule
    from monitor.score.pack import load_pack
    from monitor.settings import IngestSettings, ReplaySettings

    try:
        ours = ReplaySettings(
            model=models.reference,
            adapter=models.reference_adapter,
            device=models.device,
            dtype=models.dtype,
        )
    except ValidationError:
        raise BadInput(f"--dtype {models.dtype!r}: choose auto, float32 or bfloat16") from None
    rules = tuple(parse_rule(text) for text in deciding.rule or ())
    settings = settled(GateSettings, deciding, rules=rules)
    theirs = candidate_of(ours, models.candidate, models.candidate_adapter)
    exchanges, skipped = read_prompts(models.prompts, IngestSettings())
    with progress() as said:
        report = run_gate(load_pack(models.pack_folder), ours, theirs, exchanges, settings, said)
    return report, skipped


def _write(report: GateReport, files: Files) -> None:
    from monitor.research.gate import report as reports

    wanted = {files.markdown: reports.markdown, files.junit: reports.junit}
    if files.folder:
        wanted |= {
            files.folder / "gate.md": reports.markdown,
            files.folder / "gate.xml": reports.junit,
            files.folder / "gate.json": reports.json_text,
        }
    for file, rendered in wanted.items():
        if file is not None:
            write_whole(file, rendered(report))
