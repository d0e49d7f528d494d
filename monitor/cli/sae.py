"""``monitor pack import sae``: latents of published sparse autoencoders as a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from monitor.cli.arguments import JsonOption, ModelOption
from monitor.cli.asking import YesOption, ask, replaced_pack
from monitor.cli.show import err, out, plain, progress, show
from monitor.values.features import Pooling, Region


def pack_import_sae(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Folder or file of a published SAE; docs/research/sae.md lists them."),
    ],
    latent: Annotated[
        list[int], typer.Option(help="Number of a latent; may be given several times.")
    ],
    model: ModelOption,
    folder: Annotated[Path, typer.Option("--out", help="Where the pack is written.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a feature, in the order of --latent; latent.NUMBER if left out."
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Force a format in place of detecting it.")
    ] = None,
    site: Annotated[
        int | None, typer.Option(help="Decoder block, from 0, where the files do not say it.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(help="Places of a top-k SAE, where the files do not say it.")
    ] = None,
    norm_factor: Annotated[
        float | None,
        typer.Option(help="√d / mean norm of the activations, for expected_average_only_in."),
    ] = None,
    falls: Annotated[
        list[int] | None,
        typer.Option(
            metavar="LATENT",
            help="One of --latent that falls when a persona appears: tagged assistant. Repeatable.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Tag of the others, in place of misaligned. Repeatable."),
    ] = None,
    region: Annotated[Region, typer.Option(help="Tokens that a feature reads.")] = "response",
    pooling: Annotated[Pooling, typer.Option(help="How it pools them.")] = "mean",
    rolling_tokens: Annotated[int, typer.Option(min=1, help="Window of max_rolling_mean.")] = 16,
    skip_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="First tokens never pooled; as the SAE was trained if left out."),
    ] = None,
    norm_multiple: Annotated[
        float | None,
        typer.Option(
            min=0, help="Do not pool tokens longer than this many median norms; 0 pools all."
        ),
    ] = None,
    expect_l0: Annotated[
        float | None, typer.Option(help="Mean L0 to verify against; goes before the publisher's.")
    ] = None,
    expect_variance: Annotated[
        float | None, typer.Option(help="Fraction of variance explained to verify against.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of benign texts; the project's own when left out.")
    ] = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Make a pack of chosen latents: verified and calibrated on benign text. Exit code 1 if the SAE
    is not as published."""
    from monitor.research.latents.build import LatentChoice, build_latent_pack
    from monitor.research.latents.fidelity import Expected
    from monitor.research.texts import DATA
    from monitor.score.sae.autoencoder import Stated
    from monitor.score.sae.detect import load_autoencoder

    ask(replaced_pack(folder), "Replace it?", yes=yes)
    stated = Stated(site=site, k=k, norm_factor=norm_factor)
    choice = LatentChoice(
        latents=tuple(latent),
        names=tuple(name) if name else None,
        region=region,
        pooling=pooling,
        rolling_tokens=rolling_tokens,
        skip_tokens=skip_tokens,
        norm_multiple=norm_multiple,
        falls=tuple(falls or ()),
        tags=tuple(tag) if tag else ("misaligned",),
    )
    expected = Expected(l0=expect_l0, variance_explained=expect_variance)
    with progress() as report:
        sae = load_autoencoder(checkpoint, format, stated)
        made = build_latent_pack(
            sae,
            choice,
            model,
            folder,
            report,
            expected=expected,
            data=data or DATA,
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
