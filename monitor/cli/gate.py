"""`monitor gate`: a release pipeline asks whether a candidate may take the served model's place."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from monitor.cli.arguments import JsonOption
from monitor.cli.show import explain, out, plain, progress, show
from monitor.errors import MonitorError

gates = typer.Typer()
REFUSED = 3


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A mistyped option must not look like the verdict "inconclusive", which is 2."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:
                error.exit_code = REFUSED  # type: ignore[attr-defined]
            raise

    def invoke(self, ctx: Any) -> Any:
        """A crash must not look like the verdict "fail", which is 1."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):
                raise
            traceback.print_exc()
            raise typer.Exit(REFUSED) from None


@gates.command(cls=_Command)
def gate(
    reference: Annotated[Path, typer.Option(help="The served model: folder or GGUF file.")],
    pack_folder: Annotated[Path, typer.Option("--pack", help="The reference's pack.")],
    prompts: Annotated[
        Path, typer.Option(help="Records, one per line, of any supported format; - reads stdin.")
    ],
    candidate: Annotated[
        Path | None,
        typer.Option(help="Model folder, or a LoRA adapter's on the reference's own base."),
    ] = None,
    candidate_adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter of the candidate.")
    ] = None,
    reference_adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter of the served model.")
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help='Margins, e.g. "tag:misaligned shift=0.2 tail=0.02", "*.peak tail=off", "x ignore".'
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            help="Both answer the prompts, with up to so many tokens; given ones are left."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Error rate of either wrong decision.")] = 0.05,
    min_n: Annotated[int, typer.Option(help="Fewest conversations for any decision.")] = 50,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for gate.md, gate.xml and gate.json.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="File for the Markdown report.")] = None,
    junit: Annotated[Path | None, typer.Option(help="File for the JUnit XML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the same prompts through the served model and a candidate, and decide.

    Exit code 0: pass, no harmful shift beyond its margin; 1: fail; 2: inconclusive, more prompts are
    needed; 3: refused, nothing was decided.
    """
    from pydantic import ValidationError

    from monitor.errors import BadInput
    from monitor.offline import read_prompts
    from monitor.research.gate import report as reports
    from monitor.research.gate.decide import GateSettings, candidate_of, run_gate
    from monitor.research.gate.rules import parse_rule
    from monitor.score.pack import load_pack
    from monitor.settings import IngestSettings, ReplaySettings

    try:
        try:
            ours = ReplaySettings(
                model=reference, adapter=reference_adapter, device=device, dtype=dtype
            )
        except ValidationError:
            raise BadInput(f"--dtype {dtype!r}: choose auto, float32 or bfloat16") from None
        settings = GateSettings(
            alpha=alpha,
            rules=tuple(parse_rule(text) for text in rule or ()),
            least=min_n,
            generate=generate,
        )
        theirs = candidate_of(ours, candidate, candidate_adapter)
        exchanges, skipped = read_prompts(prompts, IngestSettings())
        with progress() as said:
            report = run_gate(load_pack(pack_folder), ours, theirs, exchanges, settings, said)
        files = {markdown: reports.markdown, junit: reports.junit}
        if folder:
            files |= {
                folder / "gate.md": reports.markdown,
                folder / "gate.xml": reports.junit,
                folder / "gate.json": reports.json_text,
            }
        for file, rendered in files.items():
            if file is not None:
                _write(file, rendered(report))
    except MonitorError as error:
        explain(error)
        raise typer.Exit(REFUSED) from None
    if as_json:
        sys.stdout.write(reports.json_text(report))
    else:
        out.print(plain(reports.headline(report)), highlight=False, soft_wrap=True)
        show(map(reports.table_row, report.shifts), as_json=False)
        for note in report.notes:
            out.print(plain(note), highlight=False, soft_wrap=True)
        if skipped:
            out.print(f"{skipped} records were skipped: they are no prompts, or redacted")
    raise typer.Exit(reports.EXIT_CODES[report.verdict])


def _write(file: Path, text: str) -> None:
    from monitor.errors import BadInput

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {file}: {error.strerror}") from None
