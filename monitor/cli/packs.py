"""Packs: look at one, compare it with a model, build, import, join or make smaller."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.arguments import JsonOption
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.contrast import pack_build_contrast
from monitor.cli.deciding import DecidingCommand
from monitor.cli.diff import pack_build_diff
from monitor.cli.judge import pack_judge
from monitor.cli.requalify import pack_requalify
from monitor.cli.sae import pack_import_sae
from monitor.cli.show import out as console
from monitor.cli.show import plain, progress, show
from monitor.cli.vectors import pack_import_vectors
from monitor.errors import BadInput

pack = typer.Typer(help="Feature packs: look at, verify, build, import, join, select.")
build = typer.Typer(help="Build a pack.")
imports = typer.Typer(help="Import features that others published: SAE latents, vectors.")
build.command("contrast")(pack_build_contrast)
build.command("diff")(pack_build_diff)
imports.command("sae")(pack_import_sae)
imports.command("vectors")(pack_import_vectors)
pack.command("judge")(pack_judge)
pack.command("requalify", cls=DecidingCommand)(pack_requalify)
pack.add_typer(build, name="build", no_args_is_help=True)
pack.add_typer(imports, name="import", no_args_is_help=True)


@pack.command("inspect")
def pack_inspect(folder: Path, as_json: JsonOption = False) -> None:
    """What a pack holds: its model, features, sites, and how well they separate its own held-out texts.

    Separation is of texts like those it was built from; other styles may read high or low.
    """
    from monitor.score.pack import load_pack, manifest
    from monitor.values.verdicts import reports, verdicts

    found = load_pack(folder)
    if as_json:
        sys.stdout.write(json.dumps(manifest(found), indent=2) + "\n")
        return
    console.print(f"[bold]{plain(found.name)}[/] {found.version}  id {found.pack_id[:12]}")
    console.print(
        f"made for {found.model.model_id}: {found.model.architecture}, {found.model.layers} blocks"
    )
    held_out: dict[str, Any] = {}
    judged = verdicts(found.report)
    for report in reports(found.report):
        held_out |= report.get("features", {})
    show(
        [
            {
                "feature": feature.name,
                "kind": feature.kind,
                "site": "layers." + "+".join(map(str, feature.sites)),
                "region": feature.region,
                "pooling": feature.pooling,
                "expected": feature.expected,
                "tail beyond": feature.toward(feature.tail_threshold),
                **_figures(held_out.get(feature.name, {})),
                **({"verdict": judged[feature.name]} if feature.name in judged else {}),
            }
            for feature in found.features
        ],
        as_json=False,
    )


@pack.command("verify")
def pack_verify(
    folder: Path,
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.")],
    as_json: JsonOption = False,
) -> None:
    """Compare a pack with a model: sizes, hashes, and its canaries replayed. Exit code 1 if it differs."""
    from monitor.research.packs.verify import verify_pack
    from monitor.score.pack import load_pack
    from monitor.settings import ReplaySettings

    report = verify_pack(load_pack(folder), ReplaySettings(model=model))
    show([asdict(report)], as_json)
    if not report.ok:
        raise typer.Exit(1)


@pack.command("join")
def pack_join(
    folders: Annotated[
        list[Path], typer.Argument(metavar="PACK PACK…", help="Packs of one model, two or more.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Where the joined pack is written.")],
    name: Annotated[str, typer.Option(help="Name of the joined pack.")],
    version: Annotated[str, typer.Option(help="Its version.")],
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """One pack out of several for the same model: imported latents beside contrast directions."""
    from monitor.score.join import joined
    from monitor.score.pack import load_pack, save_pack

    if folder.resolve() in {one.resolve() for one in folders}:
        raise BadInput(
            f"--out {folder} is one of the packs to join: a pack is never edited in place"
        )
    ask(replaced_pack(folder), "Replace it?", yes=yes)
    made = joined([load_pack(one) for one in folders], name, version)
    save_pack(made, folder)
    row = {"pack": str(folder), "id": made.pack_id, "features": len(made.features)}
    show([row], as_json)


@pack.command("select")
def pack_select(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="Pack to begin with.")],
    selectors: Annotated[
        list[str],
        typer.Argument(
            metavar="FEATURE…", help="Names, globs or tag:GLOB; with ! before it: left out."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the pack with fewer features is written.")],
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """The same pack with fewer features: without those that the judge rejected, for instance."""
    from monitor.score.pack import load_pack, save_pack
    from monitor.score.selecting import selection

    if out.resolve() == folder.resolve():
        raise BadInput(f"--out {out} is the pack itself: a pack is never edited in place")
    made = selection(load_pack(folder), selectors)
    ask(replaced_pack(out), "Replace it?", yes=yes)
    save_pack(made, out)
    show([{"pack": str(out), "id": made.pack_id, "features": len(made.features)}], as_json)


@pack.command("covariates")
def pack_covariates(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="Pack to begin with.")],
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.")],
    out: Annotated[Path, typer.Option(help="Where the pack with covariates is written.")],
    components: Annotated[
        int, typer.Option(min=1, help="Principal components of benign prompts to read.")
    ] = 10,
    data: Annotated[
        Path | None, typer.Option(help="Folder of texts; null: the project's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; in float32.")] = "cpu",
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """The same features, with what is read off the prompt beside them: for scores given the prompt."""
    from monitor.research.packs.covariates import with_covariates
    from monitor.score.pack import load_pack

    if out.resolve() == folder.resolve():
        raise BadInput(f"--out {out} is the pack itself: a pack is never edited in place")
    ask(replaced_pack(out), "Replace it?", yes=yes)
    with progress() as said:
        made = with_covariates(load_pack(folder), model, out, components, data, said, device)
    row = {"pack": str(out), "id": made.pack_id, "covariates": len(made.covariates)}
    show([row], as_json)


def _figures(held_out: Mapping[str, Any]) -> dict[str, Any]:
    if not held_out:
        return {}
    low, high = held_out["auc_interval_95"]
    return {
        "held-out AUC": f"{held_out['auc']:.2f} ({low:.2f} to {high:.2f})",
        "against benign": held_out["auc_against_benign"],
        "95% of random below": held_out["random_directions"]["q95"],
    }
