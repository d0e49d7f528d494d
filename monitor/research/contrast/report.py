"""The report of directions by contrast: what each feature does on texts that had no part in it.

Legend: n = texts, k = features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from monitor.research.contrast.asked import Asked, asked_figures
from monitor.research.contrast.directions import Chosen
from monitor.research.hard_texts import HARMFUL_ADVICE, HardTexts
from monitor.research.packs.figures import RANDOM, benign_figures, quantiles, rounded
from monitor.research.packs.hard_figures import HardScores
from monitor.research.reading import Reader
from monitor.research.statistics import auc, bootstrap, length_matched, random_direction_aucs
from monitor.research.texts import Texts, answer_prompts
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature

Scored = tuple[Floats, Counts]
"""Scores and pooled tokens [n, k]."""
Own = Callable[[int, Feature, Chosen, Scored], dict[str, Any]]
"""Index of a feature, the feature, what it was chosen by, its benign scores and tokens [n]: its figures."""


def contrast_report(
    pack: Pack,
    chosen: Sequence[Chosen],
    sites: Sequence[int],
    texts: Texts,
    hard: HardTexts,
    asked: Mapping[str, Asked],
    benign: tuple[Floats, Counts],
    reader: Reader,
    seed: int,
) -> dict[str, Any]:
    """Figures on held-out questions, hard texts and benign texts, per feature.

    ``asked`` are the held-out prompts of prompt-side features, by their names; ``benign`` the readings and
    tokens of ``(*fit, *check)``.
    """
    scorer = Scorer(pack)
    held_out = {
        persona: (scorer.score(*read), read[1])
        for persona in (None, *texts.personas)
        for read in [reader.read("held-out answers", answer_prompts(texts.held_out, persona))]
    }

    calm = {
        name: (scorer.score(*read), read[1])
        for name, prompts in (
            (None, [row.good_prompt for row in hard.judged_calm]),
            (HARMFUL_ADVICE, [row.calm_prompt for row in hard.judged_calm]),
        )
        for read in [reader.read("calm pairs", prompts)]
    }
    negatives = scorer.score(*reader.read("negatives", [n.prompt for n in hard.judged_negatives]))

    def own(index: int, feature: Feature, one: Chosen, check: Scored) -> dict[str, Any]:
        if one.name in asked:
            return asked_figures(pack, index, asked[one.name], one, reader, check[0], seed)
        answers = calm if one.name == HARMFUL_ADVICE else held_out
        found = _figures(index, feature, one, answers, check, seed)
        if hard.given:
            scores = HardScores(
                feature=feature,
                hard=hard,
                negatives=negatives[:, index],
                good=calm[None][0][:, index],
                calm=calm[HARMFUL_ADVICE][0][:, index],
                check=check[0],
            )
            found["hard_texts"] = scores.figures(np.random.default_rng([seed, 1, index]))
        return found

    return {
        "held_out": "questions on topics that training did not have; benign: the check split",
        "length": "answers to one question are within about a quarter of each other in tokens; "
        "auc_against_benign takes the benign exchange nearest in length for every answer",
        "features": feature_figures(pack, chosen, sites, len(texts.fit), benign, own),
    }


def feature_figures(
    pack: Pack,
    chosen: Sequence[Chosen],
    sites: Sequence[int],
    fitted: int,
    benign: tuple[Floats, Counts],
    own: Own,
) -> dict[str, Any]:
    """By feature: its site, how that was chosen, its ``own`` figures, and its benign scores.

    ``fitted`` of the benign readings calibrated the pack and are left out.
    """
    readings, tokens = benign[0][fitted:], benign[1][fitted:]
    scores = Scorer(pack).score(readings, tokens)
    found = {}
    for index, feature in enumerate(pack.features):
        one = next(c for c in chosen if c.name == feature.name.partition(".")[0])
        check = scores[:, index], tokens[:, index]
        found[feature.name] = {
            "site": feature.site,
            **({"sites": list(feature.sites)} if feature.parts else {}),
            "separation_by_site": {
                str(site): rounded(value)
                for site, value in zip(sites, one.separations, strict=True)
            },
            **own(index, feature, one, check),
            "benign": benign_figures(feature, *check),
        }
    return found


def random_figures(
    chosen: Chosen, held_out: tuple[Floats, Floats], generator: np.random.Generator
) -> dict[str, Any]:
    """Separation by random directions at the chosen site, on ``held_out`` residuals of both sides."""
    train = chosen.persona.train, chosen.good.train
    random = random_direction_aucs(train, held_out, generator)
    return {"count": len(random), **quantiles(random, RANDOM)}


def _figures(
    index: int,
    feature: Feature,
    chosen: Chosen,
    held_out: Mapping[str | None, Scored],
    check: Scored,
    seed: int,
) -> dict[str, Any]:
    """AUCs of one feature, signed so that 1 is perfect, and those of random directions."""
    generator = np.random.default_rng([seed, index])
    good = feature.toward(held_out[None][0][:, index])
    # The assistant is held against every persona in turn; a persona's feature against its own.
    names = [n for n in held_out if n is not None] if feature.sign < 0 else [chosen.name]
    answers = feature.toward(np.concatenate([held_out[name][0][:, index] for name in names]))
    tokens = np.concatenate([held_out[name][1][:, index] for name in names])[: len(check[1])]
    against = feature.toward(check[0][length_matched(tokens, check[1])])
    repeated = np.tile(good, len(names))
    interval = bootstrap(lambda rows: auc(answers[rows], repeated[rows]), len(answers), generator)
    return {
        "auc": rounded(auc(answers, repeated)),
        "auc_interval_95": [rounded(end) for end in interval],
        "auc_against_benign": rounded(auc(answers[: len(tokens)], against)),
        "shift": rounded(feature.toward(answers.mean() - repeated.mean())),
        "other_personas": {
            name: rounded(auc(feature.toward(scores[:, index]), good))
            for name, (scores, _) in held_out.items()
            if name is not None and name not in names
        },
        "random_directions": random_figures(
            chosen, (chosen.persona.held_out, chosen.good.held_out), generator
        ),
    }
