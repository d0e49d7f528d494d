"""``monitor model``: a checkpoint on disk, made ready for an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.arguments import JsonOption
from monitor.cli.show import progress, show

model = typer.Typer(help="Checkpoints: cut one for an engine that loads whole folders.")


@model.callback()
def _group() -> None:
    """A group with one command stays a group."""


@model.command("cut")
def model_cut(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model folder (safetensors).")],
    after_block: Annotated[
        int,
        typer.Option(min=0, help="Last block that is kept: the deepest site that the pack reads."),
    ],
    to: Annotated[Path, typer.Option(help="New folder for the copy.")],
    head: Annotated[
        bool,
        typer.Option("--head", help="Keep the LM head, for engines that do not load without."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a checkpoint up to one block, so that an engine such as vLLM loads and runs no more than that.

    Packs made for the model fit the copy, which reads the same. It can answer nothing: without --head its
    configuration ties the LM head to the embeddings. Files that are taken whole are hard links where the disk
    allows it. Code, pickles, and what reads images or sound are left out.
    """
    from monitor.replay.cutting import cut_checkpoint

    with progress() as report:
        made = cut_checkpoint(folder, after_block, to, head=head, report=report)
    show(
        [
            {
                "folder": str(made.folder),
                "blocks": made.blocks,
                "of": made.of,
                "linked_bytes": made.linked_bytes,
                "copied_bytes": made.copied_bytes,
                "head": made.head,
            }
        ],
        as_json,
    )
