"""Does a pack deserve to ship? Every feature measured on texts it has not seen, and a verdict for each.

What is measured stands in one module each: `separation` (held-out, matched negatives, random
directions), `stability`, `redundancy`, `control` (steering), `bystanders` (what is no persona and is easily
taken for one), `noise`; `verdict` decides.
Texts are those of a contrast build (`texts`): train and held-out questions, benign fit and check.

Legend: k = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import identity_of, placement
from monitor.research.hard_texts import HARMFUL_ADVICE, CalmPair, HardTexts, load_hard_texts
from monitor.research.judge.bystanders import Bystanders, BystanderScores, conduct, read_bystanders
from monitor.research.judge.control import QUICK, DosePlan
from monitor.research.judge.figures import evidence, feature_figures
from monitor.research.judge.kept import kept
from monitor.research.judge.measured import Measured, measure, noise_prompts
from monitor.research.judge.noise import dtype_noise
from monitor.research.judge.others import answered_by
from monitor.research.judge.redundancy import Redundancy
from monitor.research.judge.verdict import Criteria, summary, verdict
from monitor.research.packs.assemble import instrument
from monitor.research.packs.figures import rounded
from monitor.research.progress import Progress, quiet
from monitor.research.reading import opened, packing_settings
from monitor.research.styles import load_styles
from monitor.research.texts import DATA, Contrast, Texts, load_texts
from monitor.score.fit import require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles
from monitor.values.verdicts import JUDGE, judged_tags

LEAST_QUESTIONS: Final = 6
LEAST_CHECK: Final = 20
"""Held-out questions and benign check texts below which no figure is worth its name: five questions
without an error leave an AUC of 0.48 open, and everything would be rejected."""
MATRIX_LIMIT: Final = 40
"""Above so many features the matrices of redundancy are left out of the report."""


def judge_pack(
    pack: Pack,
    model: Path,
    *,
    data: Path | None = None,
    others: Sequence[Path] = (),
    seed: int = 0,
    quick: bool = False,
    device: str = "auto",
    work: Path | None = None,
    criteria: Criteria = Criteria(),  # noqa: B008 - frozen
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The report on ``pack``: JSON values only, without dates and paths, rounded to four digits.

    ``data`` is a folder of texts as `monitor.research.texts`, `.hard_texts` and `.styles` have them (null: the
    project's own); ``others`` are models whose answers the copy reads as benign text; ``quick`` gives one dose,
    fewer answers, controls and texts. ``work`` is a folder that keeps what steering found, direction by
    direction: the same judgement goes on from there. Blocks for minutes. The same model, texts, seed and library versions give
    the same report, but for last digits of matrix products. Raises `PackError` when the pack is not for the
    model, `BadInput` for texts that cannot be used, `ModelError`.
    """
    settings = packing_settings(model, device)
    texts = _texts(pack, settings, data)
    hard = load_hard_texts(data or DATA)
    around = _bystander_scores(pack, settings, texts, hard, data, others, quick, progress)
    plan = QUICK if quick else DosePlan()
    k = len(pack.features)
    matrices = {field.name: np.full((k, k), np.nan) for field in fields(Redundancy)}
    figures: dict[str, Any] = {}
    known = _asked(pack, settings, texts, hard, plan, seed)
    for members, own in _parts(pack, texts, hard):
        part, noisy = _part(pack, members), noise_prompts(own, quick)
        with kept(work, known) as keeping:
            found = measure(part, own, noisy, settings, plan, seed, keeping, progress)
        coarse = dtype_noise(part, settings, noisy, found.reference, progress)
        figures |= _decided(found, around, coarse, criteria, seed)
        for name, whole in matrices.items():
            whole[np.ix_(members, members)] = getattr(found.redundancy, name)
    report: dict[str, Any] = {
        "decision": summary([one["decision"] for one in figures.values()]),
        "pack": _unjudged(pack).pack_id,
        "model": pack.model.model_id,
        "seed": seed,
        "quick": quick,
        **_judged_by(texts, hard, around.texts),
        "doses": asdict(plan) | {"shares": list(plan.shares)},
        "criteria": asdict(criteria),
        "instrument": instrument(settings),
        "features": {feature.name: figures[feature.name] for feature in pack.features},
    }
    if k <= MATRIX_LIMIT:
        report["redundancy"] = {
            name: [[rounded(value) for value in row] for row in matrix]
            for name, matrix in matrices.items()
        }
    return report


def _asked(
    pack: Pack, settings: ReplaySettings, texts: Texts, hard: HardTexts, plan: DosePlan, seed: int
) -> dict[str, Any]:
    """All that the figures of steering depend on."""
    return {
        "pack": _unjudged(pack).pack_id,
        "model": str(identity_of(settings).weights_hash),
        "texts": [texts.sha256, hard.sha256],
        "seed": seed,
        "plan": asdict(plan),
        "device": str(placement(settings)[0]),
        **instrument(settings),
    }


def _judged_by(texts: Texts, hard: HardTexts, read: Bystanders) -> dict[str, Any]:
    """Which texts, and how many; ``read`` are the bystanders that were read."""
    return {
        "texts_sha256": texts.sha256,
        "hard_texts_sha256": hard.sha256,
        "styles_sha256": read.styles.sha256,
        "texts": {
            "train_questions": len(texts.train),
            "held_out_questions": len(texts.held_out),
            "benign_fit": len(texts.fit),
            "benign_check": len(texts.check),
            "calm_train": len(hard.calm_for("train")),
            "calm_held_out": len(hard.judged_calm),
            "judged_negatives": len(hard.judged_negatives),
            "contents_in_styles": len(read.styles.rows),
            "answers_by_other_models": sum(len(one.answers) for one in read.others),
        },
    }


def _bystander_scores(
    pack: Pack,
    settings: ReplaySettings,
    texts: Texts,
    hard: HardTexts,
    data: Path | None,
    others: Sequence[Path],
    quick: bool,
    progress: Progress,
) -> BystanderScores:
    """What all features make of what is no persona, read before the model is needed whole."""
    styles = load_styles(data or DATA)
    answered = answered_by(others, texts, hard, settings.device, quick, progress)
    bystanders = Bystanders(hard=hard, check=texts.check, styles=styles, others=answered)
    with opened(settings, pack.deepest_site) as loaded:
        return read_bystanders(
            pack, loaded, bystanders.fewer() if quick else bystanders, settings, progress
        )


def _decided(
    found: Measured, around: BystanderScores, coarse: Doubles, criteria: Criteria, seed: int
) -> dict[str, Any]:
    """Figures and verdict of every feature that was measured, by its name."""
    strength = np.array([one.shift for one in found.separations])
    figures = {}
    for index, feature in enumerate(found.readings.pack.features):
        own, _ = around.of(feature.name)
        conducted = conduct(
            around,
            feature.name,
            found.positives(index),
            np.random.default_rng([seed, 3, own]),
        )
        rested_on = evidence(found, index, strength, conducted)
        decided = verdict(rested_on, criteria)
        figures[feature.name] = feature_figures(found, index, rested_on, decided, conducted, coarse)
    return figures


def _parts(pack: Pack, texts: Texts, hard: HardTexts) -> list[tuple[list[int], Texts]]:
    """The features, by index, with the texts that judge them: calm harm by calm pairs, the rest by voices.

    Calm pairs are judged by authors that had no part in training; the voices' benign texts stay.
    """
    train, held_out = hard.calm_for("train"), hard.judged_calm
    calm = [
        index
        for index, feature in enumerate(pack.features)
        if feature.name.partition(".")[0] == HARMFUL_ADVICE
        and min(len(train), len(held_out)) >= LEAST_QUESTIONS
    ]
    others = [index for index in range(len(pack.features)) if index not in calm]
    parts = [(others, texts)] if others else []
    if calm:
        own = replace(
            texts,
            train=tuple(map(_as_contrast, train)),
            held_out=tuple(map(_as_contrast, held_out)),
        )
        parts.append((calm, own))
    return parts


def _as_contrast(pair: CalmPair) -> Contrast:
    personas = {HARMFUL_ADVICE: pair.calm}
    return Contrast(topic=pair.domain, question=pair.question, good=pair.good, personas=personas)


def _part(pack: Pack, members: Sequence[int]) -> Pack:
    """``pack`` with the features at ``members`` alone."""
    return replace(
        pack,
        features=tuple(pack.features[index] for index in members),
        canaries=tuple(
            replace(canary, readings=canary.readings[list(members)]) for canary in pack.canaries
        ),
    )


def with_report(pack: Pack, report: Mapping[str, Any]) -> Pack:
    """``pack`` with the report inside, and so with another id; an older report gives way.

    Features that were tagged for want of a verdict lose these tags (`judged_tags`).
    """
    features = tuple(
        replace(one, tags=judged_tags(one.tags)) if one.name in report["features"] else one
        for one in pack.features
    )
    return replace(pack, features=features, report={**pack.report, JUDGE: dict(report)})


def _unjudged(pack: Pack) -> Pack:
    return replace(pack, report={k: v for k, v in pack.report.items() if k != JUDGE})


def _texts(pack: Pack, settings: ReplaySettings, data: Path | None) -> Texts:
    """The texts to judge by, once it is clear that pack, model and texts allow a judgement."""
    require_fit(
        pack,
        identity_of(settings),
        settings.model.name,
        hint="judge a pack with the very model that it was made for.",
    )
    texts = load_texts(data or DATA)
    for size, least, what, file, split in (
        (len(texts.held_out), LEAST_QUESTIONS, "questions", "contrast.jsonl", "held_out"),
        (len(texts.check), LEAST_CHECK, "benign texts", "benign.jsonl", "check"),
    ):
        if size < least:
            raise BadInput(
                f"{size} {what} with split {split!r} cannot judge a feature, at least {least} can",
                hint=f"add such rows to {file}",
            )
    return texts
