"""The report of a pack made from rollouts: figures on questions that had no part in it.

Legend: n = rollouts, h = held-out rollouts that say anything, k = features, s = sites, d = width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.research.contrast.directions import Chosen
from monitor.research.packs import validation
from monitor.research.packs.assemble import Reader
from monitor.research.rollouts.obedience import Rolled
from monitor.research.rollouts.traits import Trait
from monitor.research.texts import Texts
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.values.arrays import Counts, Floats

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
    scorer = Scorer(pack)
    texts, (readings, tokens) = benign
    fitted = len(texts.fit)
    check = scorer.score(readings[fitted:], tokens[fitted:]), tokens[fitted:]
    scores, lengths = _read(rolled, traits, reader, scorer)
    figures = {}
    for index, feature in enumerate(pack.features):
        one = next(c for c in chosen if c.name == feature.name.partition(".")[0])
        figures[feature.name] = {
            "site": feature.site,
            "separation_by_site": {
                str(site): validation.rounded(value)
                for site, value in zip(sites, one.separations, strict=True)
            },
            **_figures(
                one.name,
                rolled,
                scores[:, index],
                lengths[:, index],
                (check[0][:, index], check[1][:, index]),
                np.random.default_rng([seed, index]),
            ),
            "random_directions": _random(
                one,
                rolled,
                residuals[:, sites.index(one.site)],
                np.random.default_rng([seed, index]),
            ),
            "benign": validation.benign_figures(check[0][:, index], check[1][:, index], feature),
        }
    return {
        "held_out": HELD_OUT,
        "unfiltered": UNFILTERED,
        "rollouts": rolled.counts,
        "features": figures,
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
    trait: str,
    rolled: Rolled,
    scores: Floats,
    lengths: Counts,
    check: tuple[Floats, Counts],
    generator: np.random.Generator,
) -> dict[str, Any]:
    """``scores`` and ``lengths`` [n] of one feature; ``check`` the same of benign texts."""
    positive, negative = (
        rolled.where(trait, "held_out", side) for side in ("positive", "negative")
    )
    ours, theirs = positive & rolled.kept, negative & rolled.kept
    low, high = _interval(rolled, scores, ours, theirs, generator)
    # The benign texts are fewer than the rollouts may be, and each is matched once.
    few = np.sort(generator.permutation(np.flatnonzero(ours))[: len(check[0])])
    matched = validation.length_matched(lengths[few], check[1])
    others = sorted({one.trait for one in rolled.rollouts} - {trait})
    return {
        "auc": validation.rounded(validation.auc(scores[ours], scores[theirs])),
        "auc_interval_95": [validation.rounded(low), validation.rounded(high)],
        "auc_unfiltered": validation.rounded(
            validation.auc(scores[positive & rolled.spoken], scores[negative & rolled.spoken])
        ),
        "auc_against_benign": validation.rounded(validation.auc(scores[few], check[0][matched])),
        "shift": validation.rounded(scores[ours].mean() - scores[theirs].mean()),
        "answers": {"positive": int(ours.sum()), "negative": int(theirs.sum())},
        "other_traits": {
            name: validation.rounded(
                validation.auc(
                    *(
                        scores[rolled.where(name, "held_out", side) & rolled.kept]
                        for side in ("positive", "negative")
                    )
                )
            )
            for name in others
        },
    }


def _interval(
    rolled: Rolled, scores: Floats, ours: Which, theirs: Which, generator: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUC, questions drawn with all their answers."""
    questions = np.array([one.question for one in rolled.rollouts])
    members = [
        (np.flatnonzero(ours & (questions == q)), np.flatnonzero(theirs & (questions == q)))
        for q in np.unique(questions[ours | theirs])
    ]
    values: list[float] = []
    while len(values) < validation.BOOTSTRAP_ROUNDS:
        drawn = [members[i] for i in generator.integers(len(members), size=len(members))]
        sides = [np.concatenate([both[place] for both in drawn]) for place in (0, 1)]
        if all(map(len, sides)):
            values.append(validation.auc(scores[sides[0]], scores[sides[1]]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _random(
    chosen: Chosen, rolled: Rolled, residuals: Floats, generator: np.random.Generator
) -> dict[str, Any]:
    """Held-out AUCs of random directions on the kept answers' ``residuals`` [n, d] at the site."""
    held = [
        residuals[rolled.where(chosen.name, "held_out", side) & rolled.kept]
        for side in ("positive", "negative")
    ]
    random = validation.random_direction_aucs(
        (chosen.persona.train, chosen.good.train), (held[0], held[1]), generator
    )
    return {
        "count": len(random),
        **{
            name: validation.rounded(np.quantile(random, q))
            for name, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95), ("max", 1.0))
        },
    }
