"""Does a pack deserve to ship? Every feature measured on texts it has not seen, and a verdict for each.

What is measured stands in one module each: `separation` (held-out, matched negatives, random
directions), `stability`, `redundancy`, `control` (steering), `tails`, `noise`; `verdict` decides.
Texts are those of a contrast build (`texts`): train and held-out questions, benign fit and check.

Legend: k = features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import identity_of
from monitor.replay.residuals import ResidualReader
from monitor.research.hard_texts import HARMFUL_ADVICE, CalmPair, HardTexts, load_hard_texts
from monitor.research.judge.control import QUICK, Control, DosePlan, Given, controls
from monitor.research.judge.noise import DTYPE, batch_noise, dtype_noise, scores
from monitor.research.judge.readings import CONTROLS, Readings, take_readings
from monitor.research.judge.redundancy import Redundancy, redundancy
from monitor.research.judge.separation import Separation, separation
from monitor.research.judge.stability import Stability, stability
from monitor.research.judge.tails import RATES, Tail, tail
from monitor.research.judge.verdict import (
    Criteria,
    Evidence,
    Steering,
    Verdict,
    summary,
    verdict,
)
from monitor.research.packs.assemble import instrument
from monitor.research.packs.figures import benign_figures, of_bound, quantiles, rounded
from monitor.research.progress import Progress, quiet
from monitor.research.reading import load_whole
from monitor.research.statistics import correlation_bound, rate_bound
from monitor.research.texts import DATA, Contrast, Texts, answer_prompts, load_texts
from monitor.score.fit import require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.prompts import Prompt

REPORT_KEY: Final = "judge"
RANDOM: Final = {"median": 0.5, "q95": 0.95, "largest": 1.0}
LEAST_QUESTIONS: Final = 6
LEAST_CHECK: Final = 20
"""Held-out questions and benign check texts below which no figure is worth its name: five questions
without an error leave an AUC of 0.48 open, and everything would be rejected."""
NOISE_QUESTIONS: Final = 24
"""So many questions, spaced over all of them, tell the noise floor."""
MATRIX_LIMIT: Final = 40
"""Above so many features the matrices of redundancy are left out of the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    readings: Readings
    separations: tuple[Separation, ...]
    stabilities: Mapping[int, Stability]
    redundancy: Redundancy
    controls: Mapping[int, Control]
    batch_noise: Mapping[str, Doubles]
    reference: Floats


def judge_pack(
    pack: Pack,
    model: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    quick: bool = False,
    device: str = "auto",
    criteria: Criteria = Criteria(),  # noqa: B008 - frozen
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The report on ``pack``: JSON values only, without dates and paths, rounded to four digits.

    ``data`` is a folder of texts as `monitor.research.texts` has them (null: the project's own);
    ``quick`` gives one dose, fewer answers, controls and noise texts. Blocks for minutes. The same model,
    texts, seed and library versions give the same report, but for last digits of matrix products. Raises
    `PackError` when the pack is not for the model, `BadInput` for texts that cannot be used,
    `ModelError`.
    """
    settings = ReplaySettings(model=model, device=device, dtype="float32")
    texts = _texts(pack, settings, data)
    hard = load_hard_texts(data or DATA)
    plan = QUICK if quick else DosePlan()
    k = len(pack.features)
    matrices = {field.name: np.full((k, k), np.nan) for field in fields(Redundancy)}
    figures: dict[str, Any] = {}
    for members, own in _parts(pack, texts, hard):
        part, noise_texts = _part(pack, members), _noise_texts(own, quick)
        found = _measured(part, own, noise_texts, settings, plan, seed, progress)
        coarse = dtype_noise(part, settings, noise_texts, found.reference, progress)
        figures |= _decided(found, coarse, criteria)
        for name, whole in matrices.items():
            whole[np.ix_(members, members)] = getattr(found.redundancy, name)
    report: dict[str, Any] = {
        "decision": summary([one["decision"] for one in figures.values()]),
        "pack": _unjudged(pack).pack_id,
        "model": pack.model.model_id,
        "seed": seed,
        "quick": quick,
        "texts_sha256": texts.sha256,
        "texts": {
            "train_questions": len(texts.train),
            "held_out_questions": len(texts.held_out),
            "benign_fit": len(texts.fit),
            "benign_check": len(texts.check),
            "calm_train": len(hard.calm_for("train")),
            "calm_held_out": len(hard.judged_calm),
        },
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


def _decided(found: _Measured, coarse: Doubles, criteria: Criteria) -> dict[str, Any]:
    """Figures and verdict of every feature that was measured, by its name."""
    strength = np.array([one.shift for one in found.separations])
    figures = {}
    for index, feature in enumerate(found.readings.pack.features):
        evidence = _evidence(found, index, strength)
        figures[feature.name] = _figures(
            found, index, evidence, verdict(evidence, criteria), coarse
        )
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
    """``pack`` with the report inside, and so with another id; an older report gives way."""
    return replace(pack, report={**pack.report, REPORT_KEY: dict(report)})


def _unjudged(pack: Pack) -> Pack:
    return replace(pack, report={k: v for k, v in pack.report.items() if k != REPORT_KEY})


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


def _measured(
    pack: Pack,
    texts: Texts,
    noise_texts: Sequence[Prompt],
    settings: ReplaySettings,
    plan: DosePlan,
    seed: int,
    progress: Progress,
) -> _Measured:
    """Everything that needs the model in float32, which is let go of at the end."""
    progress(f"loading {pack.model.model_id}")
    loaded = load_whole(settings)
    readings = take_readings(
        pack, loaded, texts, settings, np.random.default_rng([seed, 0]), progress
    )
    progress("comparing with matched negatives and random directions")
    separations = tuple(
        separation(readings, index, np.random.default_rng([seed, 1, index]))
        for index in range(len(pack.features))
    )
    return _Measured(
        readings=readings,
        separations=separations,
        stabilities=stability(
            readings,
            ResidualReader(loaded, settings),
            np.random.default_rng([seed, 2]),
            progress,
        ),
        redundancy=redundancy(readings),
        batch_noise=batch_noise(pack, loaded, settings, noise_texts, progress),
        reference=scores(
            pack, loaded, settings, noise_texts, progress, "texts for the noise floor"
        ),
        controls=controls(readings, loaded, plan, seed, progress),
    )


def _noise_texts(texts: Texts, quick: bool) -> list[Prompt]:
    """Answers to the same questions, so that there are prefixes to share."""
    voices = [None, *texts.personas][: 2 if quick else 3]
    asked = texts.held_out[:: math.ceil(len(texts.held_out) / NOISE_QUESTIONS)]
    return [prompt for voice in voices for prompt in answer_prompts(asked, voice)]


def _evidence(found: _Measured, index: int, strength: Doubles) -> Evidence:
    one, readings = found.separations[index], found.readings
    feature = readings.pack.features[index]
    steady = found.stabilities.get(index)
    overlap, other = found.redundancy.overlap(index, strength)
    check = readings.check.scores[:, index]
    benign = _benign(readings, index)
    follows = benign["correlation_with_log_length"]
    return Evidence(
        against_good=one.against_good,
        length_matched=one.length_matched,
        vocabulary_matched=one.vocabulary_matched,
        random=one.random_share,
        stability=None if steady is None else float(steady.halves.mean()),
        steering=found.controls[index].steering,
        benign_correlation=correlation_bound(np.nan if follows is None else follows, benign["n"]),
        tail_rate=rate_bound(int(feature.in_tail(check).sum()), int(np.isfinite(check).sum())),
        noise=float(max(noise[index] for noise in found.batch_noise.values())),
        overlap=overlap,
        overlaps="" if other is None else readings.pack.features[other].name,
    )


def _figures(
    found: _Measured, index: int, evidence: Evidence, decided: Verdict, coarse: Doubles
) -> dict[str, Any]:
    one, readings = found.separations[index], found.readings
    feature = readings.pack.features[index]
    every = feature.toward(np.concatenate([readings.fit.scores, readings.check.scores])[:, index])
    persona = feature.toward(
        np.concatenate([readings.held_out[p].scores[:, index] for p in one.target.personas])
    )
    return {
        "decision": decided.decision,
        "reasons": list(decided.reasons),
        "personas": list(one.target.personas),
        "persona_chosen_on_training_answers": one.target.chosen,
        "separation": {
            "against_good": of_bound(one.against_good),
            "length_matched": of_bound(one.length_matched),
            "vocabulary_matched": of_bound(one.vocabulary_matched),
            "shift_in_benign_deviations": rounded(one.shift),
            "other_personas": {p: rounded(v) for p, v in one.other_personas.items()},
            "left_with_shuffled_words": rounded(one.shuffled_share),
            "words_alone": rounded(one.words),
            "words_alone_after_matching": rounded(one.words_matched),
        },
        "random_directions": {
            "count": CONTROLS,
            "share_as_far": rounded(one.random_share),
            "shift": quantiles(one.random, RANDOM),
            "auc": quantiles(one.random_aucs, RANDOM),
        },
        "stability": _steady(found.stabilities.get(index)),
        "overlap": {"correlation": rounded(evidence.overlap), "with": evidence.overlaps},
        "steering": _steering(evidence.steering),
        "doses": [_dose(dose) for dose in found.controls[index].doses],
        "benign": _benign(readings, index),
        "correlation_with_log_length": of_bound(evidence.benign_correlation),
        "tail_rate_at_pack_threshold": of_bound(evidence.tail_rate),
        "tails": [_tail(tail(every, rate), persona) for rate in RATES],
        "noise": {
            **{name: rounded(values[index]) for name, values in found.batch_noise.items()},
            DTYPE: rounded(coarse[index]),
        },
    }


def _benign(readings: Readings, index: int) -> dict[str, Any]:
    check = readings.check
    return benign_figures(
        readings.pack.features[index], check.scores[:, index], check.tokens[:, index]
    )


def _steady(found: Stability | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "rebuilt": len(found.aucs),
        "cosine_between_halves": rounded(found.halves.mean()),
        "least_cosine_between_halves": rounded(found.halves.min()),
        "cosine_with_pack": rounded(found.whole.mean()),
        "auc_median": rounded(np.median(found.aucs)),
        "auc_least": rounded(found.aucs.min()),
    }


def _steering(found: Steering | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "share": found.share,
        "up": of_bound(found.up),
        "down": of_bound(found.down),
        "slope": rounded(found.slope),
        "largest_random": rounded(max(found.controls)),
        "causal": found.causal,
    }


def _dose(given: Given) -> dict[str, Any]:
    return {
        "share": given.dose.strength,
        "effect": of_bound(given.dose.effect),
        "score": rounded(given.score),
        "perplexity": rounded(given.perplexity),
        "repetition": rounded(given.repetition),
        "incoherent": rounded(given.dose.incoherent),
    }


def _tail(found: Tail, persona: Floats) -> dict[str, Any]:
    return {
        "rate": found.rate,
        "threshold": rounded(found.threshold),
        "benign_texts": found.n,
        "above": found.above,
        "false_positive_rate_95": [round(value, 6) for value in found.interval],
        "known": found.known,
        "persona_answers_above": rounded(np.mean(persona > found.threshold)),
    }
