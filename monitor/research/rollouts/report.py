"""The report of a pack made from rollouts: figures on questions that had no part in it.

Legend: n = rollouts, h = held-out rollouts that say anything, k = features, s = sites, d = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.research.contrast.directions import Chosen
from monitor.research.contrast.report import Scored, feature_figures, random_figures
from monitor.research.packs.figures import rounded
from monitor.research.reading import Reader
from monitor.research.rollouts.draw import SIDES
from monitor.research.rollouts.obedience import Rolled
from monitor.research.statistics import auc, bootstrap, length_matched
from monitor.research.texts import Texts
from monitor.research.traits import Trait
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature

HELD_OUT: Final = (
    "layer: cross-validated over the training questions, each fold read by a direction from the "
    "other folds; auc and all other figures: the held-out questions, which no direction, layer or "
    "calibration has seen. Not held out: the instructions (both splits were asked under the same "
    "pairs) and the judge"
)
UNFILTERED: Final = (
    "auc_unfiltered takes every held-out rollout by the instruction it was given, whatever the judge "
    "said of it: a judge that reads the same model cannot flatter it"
)
Which = NDArray[np.bool_]


def rollout_report(
    pack: Pack,
    chosen: Sequence[Chosen],
    sites: Sequence[int],
    rolled: Rolled,
    traits: Sequence[Trait],
    residuals: Floats,
    benign: tuple[Texts, tuple[Floats, Counts]],
    reader: Reader,
    seed: int,
) -> dict[str, Any]:
    """Per feature its figures, and per trait what the filter kept.

    ``residuals`` [n, s, d] of the kept rollouts choose random directions; ``benign`` are the texts and
    the readings and tokens [·, k] of ``(*fit, *check)``.
    """
    texts, readings = benign
    scores, lengths = _read(rolled, traits, reader, Scorer(pack))

    def own(index: int, _feature: Feature, one: Chosen, check: Scored) -> dict[str, Any]:
        ours = scores[:, index], lengths[:, index]
        held = [
            residuals[rolled.where(one.name, "held_out", side) & rolled.kept, sites.index(one.site)]
            for side in SIDES
        ]
        return {
            **_figures(one.name, rolled, ours, check, np.random.default_rng([seed, index])),
            "random_directions": random_figures(
                one, (held[0], held[1]), np.random.default_rng([seed, index])
            ),
        }

    return {
        "held_out": HELD_OUT,
        "unfiltered": UNFILTERED,
        "rollouts": rolled.counts,
        "features": feature_figures(pack, chosen, sites, len(texts.fit), readings, own),
    }


def _read(
    rolled: Rolled, traits: Sequence[Trait], reader: Reader, scorer: Scorer
) -> tuple[Floats, Counts]:
    """Scores and tokens [n, k] of every held-out rollout that says anything; NaN and 0 elsewhere."""
    by_name = {trait.name: trait for trait in traits}
    held = np.array([one.split == "held_out" for one in rolled.rollouts]) & rolled.spoken
    prompts = [rolled.rollouts[index].bare(by_name) for index in np.flatnonzero(held).tolist()]
    readings, tokens = reader.read("held-out rollouts", prompts)
    shape = (len(rolled.rollouts), readings.shape[1])
    scores, lengths = np.full(shape, np.nan, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    scores[held], lengths[held] = scorer.score(readings, tokens), tokens
    return scores, lengths


def _figures(
    trait: str, rolled: Rolled, read: Scored, check: Scored, generator: np.random.Generator
) -> dict[str, Any]:
    """``read`` holds scores and tokens [n] of one feature; ``check`` the same of benign texts."""
    scores, lengths = read
    positive, negative = (rolled.where(trait, "held_out", side) for side in SIDES)
    ours, theirs = positive & rolled.kept, negative & rolled.kept
    interval = _interval(rolled, scores, ours, theirs, generator)
    # The benign texts are fewer than the rollouts may be, and each is matched once.
    few = np.sort(generator.permutation(np.flatnonzero(ours))[: len(check[0])])
    matched = length_matched(lengths[few], check[1])
    others = sorted({one.trait for one in rolled.rollouts} - {trait})

    def elsewhere(name: str) -> float:
        sides = [rolled.where(name, "held_out", side) & rolled.kept for side in SIDES]
        return auc(*(scores[side] for side in sides))

    return {
        "auc": rounded(auc(scores[ours], scores[theirs])),
        "auc_interval_95": [rounded(end) for end in interval],
        "auc_unfiltered": rounded(
            auc(scores[positive & rolled.spoken], scores[negative & rolled.spoken])
        ),
        "auc_against_benign": rounded(auc(scores[few], check[0][matched])),
        "shift": rounded(scores[ours].mean() - scores[theirs].mean()),
        "answers": {"positive": int(ours.sum()), "negative": int(theirs.sum())},
        "other_traits": {name: rounded(elsewhere(name)) for name in others},
    }


def _interval(
    rolled: Rolled, scores: Floats, ours: Which, theirs: Which, generator: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap interval of the AUC, questions drawn with all their answers."""
    questions = np.array([one.question for one in rolled.rollouts])
    members = [
        [np.flatnonzero(side & (questions == q)) for side in (ours, theirs)]
        for q in np.unique(questions[ours | theirs])
    ]

    def drawn(rows: Counts) -> float:
        return auc(*(scores[np.concatenate([members[i][place] for i in rows])] for place in (0, 1)))

    return bootstrap(drawn, len(members), generator)
