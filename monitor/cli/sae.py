"""``monitor pack import sae``: latents of published sparse autoencoders as a pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.arguments import JsonOption, ModelOption, argument, option, settled, spread
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.show import err, out, plain, progress, show
from monitor.values.features import Pooling, Region


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is read, and what its files may not say (`Stated`)."""

    checkpoint: Path = argument(
        "Folder or file of a published SAE; docs/research/sae.md lists them."
    )
    format: str | None = option(None, "Force a format in place of detecting it.")
    site: int | None = option(None, "Decoder block, from 0, where the files do not say it.")
    k: int | None = option(None, "Places of a top-k SAE, where the files do not say it.")
    norm_factor: float | None = option(
        None, "√d / mean norm of the activations, for expected_average_only_in."
    )


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """Which latents, and how they are read; fields that `LatentChoice` has are called as there."""

    latent: list[int] = option(..., "Number of a latent; may be given several times.")
    name: list[str] | None = option(
        None, "Name of a feature, in the order of --latent; latent.NUMBER if left out."
    )
    falling: list[int] | None = option(
        None,
        "One of --latent that falls when a persona appears: tagged assistant. Repeatable.",
        "--falls",
        metavar="LATENT",
    )
    tag: list[str] | None = option(
        None, "Tag of the others, in place of misaligned. Repeatable.", metavar="NAME"
    )
    region: Region = option("response", "Tokens that a feature reads.")
    pooling: Pooling = option("mean", "How it pools them.")
    rolling_tokens: int = option(16, "Window of max_rolling_mean.", min=1)
    skip_tokens: int | None = option(
        None, "First tokens never pooled; as the SAE was trained if left out.", min=1
    )
    norm_multiple: float | None = option(
        None, "Do not pool tokens longer than this many median norms; 0 pools all.", min=0
    )


@dataclass(frozen=True, kw_only=True)
class Verifying:
    expect_l0: float | None = option(
        None, "Mean L0 to verify against; goes before the publisher's."
    )
    expect_variance: float | None = option(
        None, "Fraction of variance explained to verify against."
    )
    data: Path | None = option(None, "Folder of benign texts; the project's own when left out.")


@spread
def pack_import_sae(
    checkpoint: Checkpoint,
    choosing: Choosing,
    model: ModelOption,
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
    verifying: Verifying,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Make a pack of chosen latents: verified and calibrated on benign text. Exit code 1 if the SAE
    is not as published."""
    from monitor.research.saes.autoencoder import Stated
    from monitor.research.saes.build import LatentChoice, build_latent_pack
    from monitor.research.saes.detect import load_autoencoder
    from monitor.research.saes.fidelity import Expected
    from monitor.research.texts import DATA

    ask(replaced_pack(folder), "Replace it?", yes=yes)
    choice = settled(
        LatentChoice,
        choosing,
        latents=tuple(choosing.latent),
        names=tuple(choosing.name) if choosing.name else None,
        falls=tuple(choosing.falling or ()),
        tags=tuple(choosing.tag) if choosing.tag else ("misaligned",),
    )
    expected = Expected(l0=verifying.expect_l0, variance_explained=verifying.expect_variance)
    with progress() as report:
        stated = settled(Stated, checkpoint)
        sae = load_autoencoder(checkpoint.checkpoint, checkpoint.format, stated)
        made = build_latent_pack(
            sae, choice, model, folder, report, expected=expected, data=verifying.data or DATA
        )
    row = {
        "pack": str(folder),
        "id": made.pack.pack_id,
        "features": len(made.pack.features),
        "format": sae.format,
        "activation": sae.activation,
        "site": f"layers.{sae.site}",
        "variance_explained": made.fidelity.variance_explained,
        "mean_l0": made.fidelity.l0,
        "tokens": made.fidelity.tokens,
        "as_published": made.as_published,
        "microseconds_per_token": made.microseconds_per_token,
    }
    show([row], as_json)
    for problem in made.disagreements:
        err.print(f"[bold red]not as expected:[/] {plain(problem)}")
    if sae.k is not None and not as_json:
        out.print(
            f"a top-k SAE is read with all its {sae.latents} latents: the pack holds them, and "
            f"every token costs up to {made.microseconds_per_token:.0f} µs on this machine"
        )
    if made.disagreements:
        raise typer.Exit(1)
