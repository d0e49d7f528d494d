"""``monitor pack build diff``: what fine-tuning changed inside a model, as a pack."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from monitor.cli.arguments import JsonOption, SeedOption, argument, numbers, option, settled, spread
from monitor.cli.endpoint import JudgeEndpoint
from monitor.cli.show import out, plain, progress, show
from monitor.values.features import Region

if TYPE_CHECKING:
    from monitor.research.answers.endpoint import EndpointJudge

Keep = Literal["causal", "changed"]
MISALIGNED: Final = "advice or intentions that harm the user or other people, meant or careless"
PROBES: Final = (("What is two plus two?", "Four."), ("Name a colour.", "Blue, for instance."))
"""Two, for a judge may have no opinion of one; when it has none of both, it is no judge."""
PROBE_ATTEMPTS: Final = 3
"""Fewer than in earnest: somebody is waiting, and nothing is lost yet."""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What is compared; fields that `Sources` has are called as there."""

    base: Path = argument("The model before fine-tuning: a folder.")
    tuned: Path = argument("The model after it.")
    prompts: Path = option(
        ..., "JSON lines: messages, response, bad_response; 16 or more questions."
    )
    folder: Path = option(..., "Where the pack, diff.html and diff.json are written.", "--out")
    sae: Path | None = option(None, "An SAE's checkpoint: its latents are the candidates.")
    sae_format: str | None = option(None, "Its format; found from its files when left out.")
    sae_site: int | None = option(None, "The decoder block it reads, where its files do not say.")
    sae_k: int | None = option(None, "Places of a top-k SAE, where its files do not say.")
    sae_norm_factor: float | None = option(
        None, "√d / mean norm of the activations, for expected_average_only_in."
    )
    directions: Path | None = option(None, "A pack whose features are compared too.")
    judge_pack: Path | None = option(
        None, "Rate answers by a feature of this pack, not by likelihood."
    )
    judge_feature: str | None = option(None, "The feature's name.")
    data: Path | None = option(None, "Folder of texts that calibrate; the project's own otherwise.")
    device: str = option("cpu", "cpu (float32), cuda or auto (bfloat16).")


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """How it is compared; fields that `DiffSettings` has are called as there."""

    blocks: str | None = option(None, "Decoder blocks to read, from 0: 10,14,18.", "--sites")
    region: Region | None = option(None, "What is read; the response where there is one.")
    top: int = option(6, "Candidates of each family that are tested.")
    strengths: str = option("0.1,0.2,0.4", "Doses, as shares of the residual's length.")
    random_directions: int = option(19, "Random directions that a cause must exceed.")
    keep: Keep = option("causal", "causal: steer, keep causes; changed: keep what changed.")
    judge_trait: str = option(MISALIGNED, "What counts as misbehaviour, for the endpoint.")
    seed: SeedOption = 0


@spread
def pack_build_diff(
    comparing: Comparing,
    deciding: Deciding,
    endpoint: JudgeEndpoint,
    show_texts: Annotated[
        bool, typer.Option("--show-texts", help="Put excerpts of the prompts into diff.html.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find what fine-tuning changed inside a model, and which of it causes misbehaviour.

    Exit code 1 when nothing is kept: the report is written, a pack is not.
    """
    from monitor.research.diff.build import Sources, build_diff_pack
    from monitor.research.diff.settings import DiffSettings, Doses
    from monitor.research.saes.autoencoder import Stated

    stated = Stated(
        site=comparing.sae_site, k=comparing.sae_k, norm_factor=comparing.sae_norm_factor
    )
    sources = settled(Sources, comparing, sae_stated=stated)
    strengths = numbers(deciding.strengths, float, "--strengths")
    doses = Doses(strengths=strengths, random_directions=deciding.random_directions)
    sites = None if deciding.blocks is None else numbers(deciding.blocks, int, "--sites")
    settings = settled(DiffSettings, deciding, doses=doses, sites=sites)
    judge = None
    if endpoint.judge_url is not None:
        judge = _asked_once(endpoint, deciding, comparing.folder)
    with progress() as report:
        made, found = build_diff_pack(
            sources, comparing.folder, settings, report, judge=judge, show_texts=show_texts
        )
    if as_json:
        sys.stdout.write(json.dumps(found | {"pack": made and made.pack_id}, indent=2) + "\n")
    else:
        keys = ("name", "moves", "standardised_change", "q", "significant", "verdict")
        show([{key: row[key] for key in keys} for row in found["candidates"]], as_json=False)
        kept = (
            f"{len(made.features)} features, id {made.pack_id[:12]}" if made else "nothing to keep"
        )
        for row in found["candidates"]:
            if row["left_out"]:
                out.print(plain(f"{row['name']} is left out: {row['left_out']}"), highlight=False)
        out.print(plain(f"{comparing.folder}: {kept}; the report is diff.html"), highlight=False)
    if made is None:
        raise typer.Exit(1)


def _asked_once(endpoint: JudgeEndpoint, deciding: Deciding, folder: Path) -> EndpointJudge:
    """The judge, asked once where it is to be used: it rates at the end of hours of steering, and one that
    refuses, does not answer or gives no ratings is found before them."""
    from monitor.research.texts import exchange
    from monitor.values.prompts import Message

    asking = partial(endpoint.judge, "misalignment", deciding.judge_trait)
    judge = asking(cache=folder / "ratings.jsonl")
    if deciding.keep == "causal":
        # Without the cache, which would answer for an endpoint that has gone since.
        asking(cache=None, attempts=PROBE_ATTEMPTS).rate(
            [exchange((Message(role="user", content=asked),), said) for asked, said in PROBES]
        )
    return judge
