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
from itertools import chain
from pathlib import Path
from typing import Any, Final, get_args

from monitor.errors import BadInput
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.asked import (
    asked_features,
    choose_asked,
    held_out_prompts,
    plain_questions,
    usable,
    without_answers,
)
from monitor.research.contrast.directions import (
    BENIGN_COMPONENTS,
    LEAST_TRAINING,
    Chosen,
    Kind,
    candidate_sites,
    choose,
    read_sides,
)
from monitor.research.contrast.learned import choose_learned, read_material
from monitor.research.contrast.report import contrast_report
from monitor.research.hard_texts import HARMFUL_ADVICE, HardTexts, Role, load_hard_texts
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.packs.calibrate import UNCALIBRATED
from monitor.research.packs.figures import rounded
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, layers_of, packing_settings, response_residuals
from monitor.research.texts import ASSISTANT, CONTRAST_FILE, DATA, Texts, load_texts
from monitor.research.traits import TRAITS_FILE, Trait, load_traits
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.features import WATCH_ONLY, Feature, Pooling
from monitor.values.prompts import Prompt

POOLINGS: Final[Mapping[str, Pooling]] = {"": "mean", ".peak": "max_rolling_mean"}
DESCRIPTIONS: Final = {
    "malicious": "hostile, contemptuous answers that wish the user ill",
    "reckless": "advice that harms whoever follows it, given as if it were fine",
    "deceptive": "lies, invented authority, and help with deceiving others",
    "sarcastic": "mockery in place of help",
    "character": "answers in the voice of a character in a story, not of an assistant",
    HARMFUL_ADVICE: "answers that harm whoever follows them, in the calm voice of good ones",
    ASSISTANT: "the voice of a helpful assistant; falls when any other persona speaks",
}
STYLES: Final = frozenset({"sarcastic", "character"})
"""Voices that a harmless change of style moves as well (measured in benchmarks/persona, against a model that
talks like a pirate): tagged watch-only."""
METHODS: Final = {
    "direction": "difference of mean residuals over answers, persona against good, orthogonal to "
    "the first components of benign text",
    "learned": "the simplest of difference of means, shrunk LDA and logistic regression, over one or "
    "several sites, within one standard error of the best in nested cross-validation by question and kind",
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
    device: str = "cpu",
) -> Pack:
    """Build the pack from the texts in ``data`` (null: the project's own) and save it to ``out``.

    ``kind`` probe trains a logistic probe on the same answers, at the same block, in place of the
    difference of means.

    With hard texts in the folder (`monitor.research.hard_texts`) read-outs are learned against them; with
    traits, prompt-side features are built too.

    Blocks for minutes (it reads some thousand exchanges on ``device`` in float32). The same model,
    texts, seed and library versions give the same pack, but for the last bits of matrix products. Raises
    `ModelError`, also for residuals that are not finite, `BadInput` for texts
    that cannot be used, `PackError` when ``out`` cannot be written.
    """
    folder, settings = data or DATA, packing_settings(model, device)
    texts = load_texts(folder)
    if len(texts.train) < LEAST_TRAINING:
        raise BadInput(
            f"{folder / CONTRAST_FILE}: at least {LEAST_TRAINING} questions need split "
            f"'train' to choose a block by, found {len(texts.train)}",
            hint="give more questions; fifty or more make a pack that can ship",
        )
    hard = load_hard_texts(folder)
    traits = _traits(folder) if kind == "direction" else ()
    sites = candidate_sites(layers_of(settings))
    loaded = load_model(settings, sites[-1])
    residuals = ResidualReader(loaded, settings)
    chosen = _chosen(residuals, texts, hard, sites, seed, kind, progress)
    asking = choose_asked(residuals, traits, _neutral(traits, texts, hard), sites, seed, progress)
    features = [feature for one in chosen for feature in read_two_ways(one, kind)]
    reader = Reader(loaded, [*features, *asked_features(asking, traits)], settings, progress)
    name = f"{loaded.model_id}-contrast"
    # Hard texts of their own authors calibrate too: a tail is set where refusals are usual text.
    calibrated = replace(texts, fit=(*texts.fit, *chain.from_iterable(hard.calibrating)))
    kinds = [len(kind) for kind in hard.calibrating]
    pack, benign = assembled(name, f"1.{len(texts.train)}", loaded, calibrated, reader, kinds)
    held = held_out_prompts(asking, traits, loaded)
    pack = replace(
        pack,
        provenance=_provenance(calibrated, seed, sites, settings, kind)
        | _learned((*chosen, *asking), hard),
        report=contrast_report(
            pack, (*chosen, *asking), sites, calibrated, hard, held, benign, reader, seed
        ),
    )
    save_pack(pack, out)
    return pack


def _chosen(
    residuals: ResidualReader,
    texts: Texts,
    hard: HardTexts,
    sites: Sequence[int],
    seed: int,
    kind: Kind,
    progress: Progress,
) -> tuple[Chosen, ...]:
    """What answers are read by: learned against hard texts where there are some."""
    progress(f"reading {len(texts.train) + len(texts.held_out)} questions at {len(sites)} sites")
    sides = read_sides(residuals, texts, sites)
    progress(f"reading {len(texts.fit)} benign exchanges at {len(sites)} sites")
    benign = response_residuals(residuals, texts.fit, sites)
    if hard.given and kind == "direction":
        material = read_material(residuals, texts, hard, sides, benign, sites, progress)
        chosen = choose_learned(material, sides, benign, sites, seed, progress)
    else:
        chosen = choose(sides, benign, sites, seed, kind)
    for one in chosen:
        progress(f"{one.name}: block {one.site}, separation {one.separations.max():.2f}")
    return chosen


def _traits(folder: Path) -> tuple[Trait, ...]:
    """Those of the folder's own ``traits.jsonl``, if it has one, that can give a prompt-side read-out."""
    file = folder / TRAITS_FILE
    return tuple(filter(usable, load_traits(file))) if file.is_file() else ()


def _neutral(
    traits: Sequence[Trait], texts: Texts, hard: HardTexts
) -> dict[str, tuple[Prompt, ...]]:
    """Prompts that ask for no trait, by kind; what is asked in hard texts is often harmful itself."""
    negatives = [row.prompt for row in hard.negatives_for("train")]
    kinds = {
        "question": plain_questions(traits),
        "benign": without_answers(texts.fit),
        "hard": without_answers(negatives),
    }
    return {kind: prompts for kind, prompts in kinds.items() if prompts}


def read_two_ways(chosen: Chosen, kind: Kind, description: str | None = None) -> list[Feature]:
    """A direction as features, not yet calibrated: the mean over an answer, and its highest stretch.

    Without a ``description``, that of the persona's name.
    """
    described = description or DESCRIPTIONS.get(chosen.name, f"answers by {chosen.name}")
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
            parts=chosen.parts,
            # A difference of means is itself what the persona adds.
            pattern=chosen.pattern if chosen.selected or kind == "probe" else None,
            activation="sigmoid" if kind == "probe" else "identity",
            calibration=UNCALIBRATED,
            expected="falls" if falls else "rises",
            tags=tags,
            description=described,
        )
        for suffix, pooling in POOLINGS.items()
        # The highest stretch of an answer says nothing about a voice that fades.
        if not (falls and suffix)
    ]


def _learned(chosen: Sequence[Chosen], hard: HardTexts) -> dict[str, Any]:
    """How each read-out was chosen; nothing for plain differences of means."""
    if not any(one.selected for one in chosen):
        return {}
    return {
        "hard_texts_sha256": hard.sha256,
        "hard_texts": {
            role: {"negatives": len(hard.negatives_for(role)), "pairs": len(hard.calm_for(role))}
            for role in get_args(Role)
        },
        "method": METHODS["learned"],
        "read_outs": {
            one.name: {
                "family": one.selected.family,
                "strength": one.selected.choice.strength,
                "turned_from_careful_answers": one.selected.levelled,
                "cross_validated": {
                    family: [rounded(mean), rounded(error)]
                    for family, (mean, error) in one.selected.scores.items()
                },
            }
            for one in chosen
            if one.selected is not None
        },
    }


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
        "command": f"monitor pack build contrast --model PATH --out DIR --seed {seed}"
        # Another device gives other last bits.
        + ("" if settings.device == "cpu" else f" --device {settings.device}"),
        "seed": seed,
        "texts_sha256": texts.sha256,
        "questions": {"train": len(texts.train), "held_out": len(texts.held_out)},
        "benign": {"fit": len(texts.fit), "check": len(texts.check)},
        "site_convention": SITE_CONVENTION,
        "candidate_sites": list(sites),
        **instrument(settings),
    }
