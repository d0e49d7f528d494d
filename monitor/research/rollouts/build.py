"""Build a pack from the model's own rollouts under opposing instructions (persona vectors, arXiv 2507.21509).

Per trait: the mean residual stream over the answers that show it minus that over answers that do not,
one mean per question first, so that no question counts for more on one side. The block is chosen by
cross-validation over the training questions; the figures of the report come from the held-out ones.

Legend: n = rollouts, q = questions, s = candidate sites, d = model width, k = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.replay.residuals import ResidualReader
from monitor.research.answers.behaviour import BuiltInJudge, Coherence, Judge
from monitor.research.contrast.build import METHODS, read_two_ways
from monitor.research.contrast.directions import (
    BENIGN_COMPONENTS,
    LEAST_TRAINING,
    Kind,
    Side,
    candidate_sites,
    contrasted,
)
from monitor.research.packs.assemble import SITE_CONVENTION, assembled, instrument
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, load_whole, replay_settings, response_residuals
from monitor.research.rollouts.draw import (
    Judges,
    RolloutSettings,
    rated,
    rolled_out,
    traits_hash,
)
from monitor.research.rollouts.obedience import Rolled
from monitor.research.rollouts.report import rollout_report
from monitor.research.texts import DATA, Texts, load_texts
from monitor.research.traits import SPLITS, Trait
from monitor.score.fit import require_fit
from monitor.score.pack import Pack, save_pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Floats


def built_in_judges(loaded: LoadedModel, settings: ReplaySettings, pack: Pack) -> Judges:
    """For each trait the feature of ``pack`` with its name, read off ``loaded``.

    Raises `PackError` when the pack is for another model, and (from the judges) `BadInput` when it has
    no such feature.
    """
    require_fit(
        pack,
        loaded.identity,
        "the model whose answers it is to judge",
        hint="give a pack made for this model: --judge-pack",
    )
    coherence = Coherence(loaded)

    def judge(trait: Trait) -> BuiltInJudge:
        for feature in pack.features:
            if feature.name == trait.name:
                return BuiltInJudge(loaded, feature, coherence, settings)
        names = ", ".join(feature.name for feature in pack.features)
        raise BadInput(
            f"trait {trait.name}: the judge's pack has no feature of that name, only {names}",
            hint="name an endpoint with --judge-url, another pack with --judge-pack, or filter "
            "nothing with --unfiltered",
        )

    return judge


def build_rollout_pack(
    model: Path,
    out: Path,
    traits: Sequence[Trait],
    settings: RolloutSettings,
    judges: Judges | Pack | None,
    work: Path,
    data: Path | None = None,
    progress: Progress = quiet,
    *,
    kind: Kind = "direction",
    device: str = "cpu",
) -> Pack:
    """Roll out, rate, filter, find a direction per trait, and save the pack to ``out``.

    ``judges`` makes a judge for a trait; a pack stands for `built_in_judges`, null keeps all that is
    not empty. Rollouts and ratings are kept in ``work``: a run that was stopped goes on from there,
    one with other settings is refused. ``data`` holds the benign texts and canaries.

    Blocks for as long as the model talks. Raises `ModelError`, `PackError` when ``out`` cannot be
    written, and `BadInput`, also when too few rollouts of a trait are left.
    """
    _require_questions(traits, settings.least_questions)
    texts = load_texts(data or DATA, answers=False)
    replay = replay_settings(model, device)
    loaded = load_whole(replay)
    sites = candidate_sites(len(loaded.blocks))
    make = built_in_judges(loaded, replay, judges) if isinstance(judges, Pack) else judges
    # Made before anything is rolled out: a trait that nobody can judge is known in a second.
    judging = {trait.name: make(trait) for trait in traits} if make else None
    rolled = _rolled(loaded, traits, settings, judging, work, progress)

    residuals = ResidualReader(loaded, replay)
    read = _residuals(residuals, rolled, traits, sites, progress)
    progress(f"reading {len(texts.fit)} benign exchanges at {len(sites)} sites")
    benign = response_residuals(residuals, texts.fit, sites)
    contrasts = [(trait.name, *_sides(rolled, trait, read)) for trait in traits]
    chosen = contrasted(contrasts, benign, sites, settings.seed, kind)
    features = [
        feature
        for one, trait in zip(chosen, traits, strict=True)
        for feature in read_two_ways(one, kind, trait.description)
    ]
    reader = Reader(loaded, features, replay, progress)
    version = f"1.{int(rolled.kept.sum())}"
    pack, readings = assembled(f"{loaded.model_id}-rollouts", version, loaded, texts, reader)
    pack = replace(
        pack,
        provenance=_provenance(traits, settings, judging, texts, sites, kind)
        | instrument(replay.model_copy(update={"dtype": str(loaded.dtype).removeprefix("torch.")})),
        report=rollout_report(
            pack, chosen, sites, rolled, traits, read, (texts, readings), reader, settings.seed
        ),
    )
    save_pack(pack, out)
    return pack


def _rolled(
    loaded: LoadedModel,
    traits: Sequence[Trait],
    settings: RolloutSettings,
    judging: Mapping[str, Judge] | None,
    work: Path,
    progress: Progress,
) -> Rolled:
    """Answered, rated and filtered; raises `BadInput` when too few are left."""
    rollouts = rolled_out(loaded, traits, settings, work / "rollouts.jsonl", progress)
    ratings = (
        rated(rollouts, traits, judging, work / "ratings.jsonl", progress) if judging else None
    )
    rolled = Rolled(rollouts, ratings, settings)
    for trait in traits:
        rolled.require(trait.name, settings.least_questions)
    return rolled


def _provenance(
    traits: Sequence[Trait],
    settings: RolloutSettings,
    judging: Mapping[str, Judge] | None,
    texts: Texts,
    sites: Sequence[int],
    kind: Kind,
) -> dict[str, Any]:
    return {
        "method": METHODS[kind].replace("persona against good", "positive against negative"),
        "command": f"monitor pack build contrast --rollouts FILE --model PATH --out DIR "
        f"--seed {settings.seed}",
        "rollouts": asdict(settings),
        "judges": judging and {name: dict(one.identity) for name, one in judging.items()},
        "traits": {
            trait.name: {
                "instruction_pairs": len(trait.instructions),
                "questions": {split: len(trait.questions(split)) for split in SPLITS},
            }
            for trait in traits
        },
        "traits_sha256": traits_hash(traits),
        "texts_sha256": texts.sha256,
        "read": "answers behind their question alone, without the instruction",
        "benign": {"fit": len(texts.fit), "check": len(texts.check)},
        "benign_components": BENIGN_COMPONENTS,
        "site_convention": SITE_CONVENTION,
        "candidate_sites": list(sites),
    }


def _require_questions(traits: Sequence[Trait], least: int) -> None:
    """Known in a second, where `Rolled.require` knows it after hours of rollouts."""
    for trait in traits:
        for split in SPLITS:
            asked = len(trait.questions(split))
            if asked < least:
                raise BadInput(
                    f"trait {trait.name} has {asked} {split} questions, {least} are needed",
                    hint=f"ask more, or lower --least-questions (not below {LEAST_TRAINING})",
                )


def _residuals(
    reader: ResidualReader,
    rolled: Rolled,
    traits: Sequence[Trait],
    sites: Sequence[int],
    progress: Progress,
) -> Floats:
    """Mean residuals [n, s, d] of every kept answer behind its bare question; NaN elsewhere."""
    by_name = {trait.name: trait for trait in traits}
    kept = np.flatnonzero(rolled.kept).tolist()
    progress(f"reading {len(kept)} rollouts at {len(sites)} sites")
    prompts = [rolled.rollouts[index].bare(by_name) for index in kept]
    values = response_residuals(reader, prompts, sites)
    everywhere = np.full((len(rolled.rollouts), *values.shape[1:]), np.nan, dtype=np.float32)
    everywhere[kept] = values
    return everywhere


def _sides(rolled: Rolled, trait: Trait, read: Floats) -> tuple[Side, Side]:
    """The positive and the negative side: per question the mean over its kept answers, [q, s, d]."""
    means = {
        split: [
            np.stack(
                [read[both[place]].mean(axis=0) for both in rolled.by_question(trait.name, split)]
            )
            for place in (0, 1)
        ]
        for split in SPLITS
    }
    positive, negative = zip(means["train"], means["held_out"], strict=True)
    return Side(*positive), Side(*negative)
