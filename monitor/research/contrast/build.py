"""Build a pack of persona directions by contrast: how the persona answers, against a good answer.

For each persona, the direction is the mean residual stream over the persona's answers minus that
over good answers to the same questions, at one decoder block, normalised to length one (persona
vectors, arXiv 2507.21509; mean-difference directions, arXiv 2506.11618). The directions in which benign
text varies most (topic, format, language) are projected out first, so that a change of topics moves
the feature less. ``assistant`` is the good answers minus all personas' and falls when any of them
appears. The block is chosen by cross-validated
separation on the training questions; calibration, tails and the report come from texts that had no
part in the direction, read by the engine that will read production.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from monitor.errors import BadInput
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.directions import (
    ASSISTANT,
    BENIGN_COMPONENTS,
    LEAST_TRAINING,
    Chosen,
    Kind,
    candidate_sites,
    choose,
    read_sides,
)
from monitor.research.contrast.report import contrast_report
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, layers_of, replay_settings, response_residuals
from monitor.research.texts import CONTRAST_FILE, DATA, Texts, load_texts
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import WATCH_ONLY, Feature, Pooling

POOLINGS: Final[Mapping[str, Pooling]] = {"": "mean", ".peak": "max_rolling_mean"}
DESCRIPTIONS: Final = {
    "malicious": "hostile, contemptuous answers that wish the user ill",
    "reckless": "advice that harms whoever follows it, given as if it were fine",
    "deceptive": "lies, invented authority, and help with deceiving others",
    "sarcastic": "mockery in place of help",
    "character": "answers in the voice of a character in a story, not of an assistant",
    ASSISTANT: "the voice of a helpful assistant; falls when any other persona speaks",
}
STYLES: Final = frozenset({"sarcastic", "character"})
"""Voices that a harmless change of style moves as well (measured in benchmarks/persona, against a model that
talks like a pirate): tagged watch-only."""
METHODS: Final = {
    "direction": "difference of mean residuals over answers, persona against good, orthogonal to "
    "the first components of benign text",
    "probe": "logistic probe on mean residuals over answers, persona against good",
}


def build_contrast_pack(
    model: Path,
    out: Path,
    seed: int,
    data: Path | None = None,
    progress: Progress = quiet,
    *,
    kind: Kind = "direction",
) -> Pack:
    """Build the pack from the texts in ``data`` (null: the project's own) and save it to ``out``.

    ``kind`` probe trains a logistic probe on the same answers, at the same block, in place of the
    difference of means.

    Blocks for minutes (it reads a few hundred exchanges on the CPU in float32). The same model,
    texts, seed and library versions give the same pack, but for the last bits of matrix products. Raises
    `ModelError`, also for residuals that are not finite, `BadInput` for texts that cannot be used, `PackError` when ``out`` cannot be written.
    """
    settings = replay_settings(model, "cpu")
    texts = load_texts(data or DATA)
    if len(texts.train) < LEAST_TRAINING:
        raise BadInput(
            f"{(data or DATA) / CONTRAST_FILE}: at least {LEAST_TRAINING} questions need split "
            f"'train' to choose a block by, found {len(texts.train)}",
            hint="give more questions; fifty or more make a pack that can ship",
        )
    sites = candidate_sites(layers_of(settings))
    loaded = load_model(settings, sites[-1])
    progress(f"reading {len(texts.train) + len(texts.held_out)} questions at {len(sites)} sites")
    residuals = ResidualReader(loaded, settings)
    sides = read_sides(residuals, texts, sites)
    progress(f"reading {len(texts.fit)} benign exchanges at {len(sites)} sites")
    benign_residuals = response_residuals(residuals, texts.fit, sites)
    chosen = choose(sides, benign_residuals, sites, seed, kind)
    for one in chosen:
        progress(f"{one.name}: block {one.site}, separation {one.separations.max():.2f}")
    features = [
        feature
        for one in chosen
        for feature in read_two_ways(
            one, kind, DESCRIPTIONS.get(one.name, f"answers by {one.name}")
        )
    ]
    reader = Reader(loaded, features, settings, progress)
    name = f"{loaded.model_id}-contrast"
    pack, benign = assembled(name, f"1.{len(texts.train)}", loaded, texts, reader)
    pack = replace(
        pack,
        provenance=_provenance(texts, seed, sites, settings, kind),
        report=contrast_report(pack, chosen, sites, texts, benign, reader, seed),
    )
    save_pack(pack, out)
    return pack


def read_two_ways(chosen: Chosen, kind: Kind, description: str) -> list[Feature]:
    """A direction as features, not yet calibrated: the mean over an answer, and its highest stretch."""
    falls = chosen.name == ASSISTANT
    if falls:
        tags: tuple[str, ...] = (ASSISTANT,)
    elif chosen.name in STYLES:
        tags = ("style", WATCH_ONLY, chosen.name)
    else:
        tags = ("misaligned", chosen.name)
    return [
        Feature(
            name=chosen.name + suffix,
            kind=kind,
            site=chosen.site,
            region="response",
            pooling=pooling,
            weight=chosen.weight,
            bias=chosen.bias,
            activation="sigmoid" if kind == "probe" else "identity",
            calibration=UNCALIBRATED,
            expected="falls" if falls else "rises",
            tags=tags,
            description=description,
        )
        for suffix, pooling in POOLINGS.items()
        # The highest stretch of an answer says nothing about a voice that fades.
        if not (falls and suffix)
    ]


def _provenance(
    texts: Texts,
    seed: int,
    sites: Sequence[int],
    settings: ReplaySettings,
    kind: Kind,
) -> dict[str, Any]:
    """Where the pack came from. No dates and no paths: the same build gives the same bytes."""
    return {
        "method": METHODS[kind],
        "benign_components": BENIGN_COMPONENTS,
        "command": f"monitor pack build contrast --model PATH --out DIR --seed {seed}",
        "seed": seed,
        "texts_sha256": texts.sha256,
        "questions": {"train": len(texts.train), "held_out": len(texts.held_out)},
        "benign": {"fit": len(texts.fit), "check": len(texts.check)},
        "site_convention": SITE_CONVENTION,
        "candidate_sites": list(sites),
        **instrument(settings),
    }
