"""``monitor pack import vectors``: persona vectors, assistant axes and steering vectors as a pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.arguments import JsonOption, ModelOption, option, settled, spread
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.show import err, plain, progress, show
from monitor.research.vectors.conventions import Counting, Format
from monitor.values.features import Pooling, Region

if TYPE_CHECKING:
    from monitor.score.pack import Pack


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is read of the files, and what they do not say themselves (`Asked`)."""

    layer: list[int] = option(
        ..., "Layer, as the publisher counts; may be given several times, and goes for every file."
    )
    format: Format | None = option(
        None,
        "Who made the file. Must be said of a .gguf; the others are known by name and content, else plain.",
    )
    layers_are: Counting | None = option(
        None,
        "How a plain file counts: blocks (L is the output of the 0-based decoder block L) or hidden-states "
        "(0 is the embeddings, N the output of block N - 1).",
    )
    tensor: list[str] | None = option(
        None, "Tensor that is the vector, where a file holds several. Repeatable.", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class Becoming:
    """How vectors become features; fields that `Reading` has are called as there."""

    licence: str = option(..., "Licence of the vectors, for the manifest: MIT, say.")
    source: str = option(..., "Where they come from, for the manifest: address, revision, paper.")
    name: list[str] | None = option(
        None, "Name of a feature, in the order of the files; the file's name if left out."
    )
    rises: list[str] | None = option(
        None,
        "Name of a vector whose score rises when the persona appears, as is the rule for all but assistant axes. "
        "Repeatable.",
        metavar="NAME",
    )
    falls: list[str] | None = option(
        None,
        "Name of a vector whose score falls, as an assistant axis's does: tagged assistant. Repeatable.",
        metavar="NAME",
    )
    tag: list[str] | None = option(
        None, "Tag of those that rise, in place of misaligned. Repeatable.", metavar="NAME"
    )
    region: Region | None = option(
        None, "Tokens that a feature reads; as the publisher averaged if left out, else response."
    )
    pooling: Pooling = option("mean", "How it pools them.")
    rolling_tokens: int = option(16, "Window of max_rolling_mean.", min=1)
    skip_tokens: int = option(1, "First tokens never pooled.", min=1)


@spread
def pack_import_vectors(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Vectors: .safetensors, .npy, .gguf or .pt."),
    ],
    given: Files,
    becoming: Becoming,
    model: ModelOption,
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of benign texts and canaries; the project's own when left out."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; in float32.")] = "cpu",
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Make a pack of published vectors: checked against the model and calibrated on benign text.

    The features are watch-only until `monitor pack judge --write` has seen them. docs/packs.md says how each publisher
    counts layers.
    """
    from monitor.research.texts import DATA
    from monitor.research.vectors.build import Reading, build_vector_pack, doubts
    from monitor.research.vectors.published import Asked

    reading = settled(
        Reading,
        becoming,
        names=tuple(becoming.name or ()),
        rises=tuple(becoming.rises or ()),
        falls=tuple(becoming.falls or ()),
        tags=tuple(becoming.tag) if becoming.tag else ("misaligned",),
    )
    asked = Asked(
        layers=tuple(given.layer),
        format=given.format,
        counting=given.layers_are,
        tensors=tuple(given.tensor or ()),
    )
    ask(replaced_pack(folder), "Replace it?", yes=yes)
    with progress() as report:
        made = build_vector_pack(
            files, asked, reading, model, folder, report, data=data or DATA, device=device
        )
    show(_rows(made, {"pack": str(folder), "id": made.pack_id} if as_json else {}), as_json)
    for doubt in doubts(made):
        err.print(f"[bold yellow]doubtful:[/] {plain(doubt)}", highlight=False, soft_wrap=True)
    if not as_json:
        err.print(
            plain(
                f"{folder}: id {made.pack_id[:12]}; watch-only until judged: monitor pack judge {folder} "
                f"--model {model} --write"
            ),
            highlight=False,
            soft_wrap=True,
        )


def _rows(made: Pack, more: dict[str, str]) -> list[dict[str, Any]]:
    """What became of each vector, and ``more``."""
    told, measured = made.provenance["vectors"], made.report["vectors"]
    return [
        {
            "feature": one.name,
            "site": f"layers.{one.site}",
            "layer": f"{told[one.name]['layer']} ({told[one.name]['layers_are']})",
            "format": told[one.name]["format"],
            "region": one.region,
            "expected": one.expected,
            "length": told[one.name]["length"],
            "spread": measured[one.name]["spread"],
            **more,
        }
        for one in made.features
    ]
