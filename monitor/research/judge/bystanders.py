"""What features make of texts that are no persona's and are easily taken for one's, read once for a pack.

These are the judged hard texts (negatives by kind, sound and calmly harmful answers to the same questions),
benign check texts, one content in several styles, and answers by other models. They are read as in
production: a feature that reads the prompt reads the question.

Legend: n = texts, k = features, c = components, p = personas, q = questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.replay.model import LoadedModel
from monitor.replay.residuals import ResidualReader, not_finite
from monitor.research.hard_texts import HardTexts
from monitor.research.judge.others import Answered
from monitor.research.packs.covariates import DEFAULT, TEXTS_A_COVARIATE, leading, main_site
from monitor.research.packs.figures import of_bound, rounded
from monitor.research.packs.hard_figures import HardScores, TailRate, found_figures, tail_rate
from monitor.research.progress import Progress
from monitor.research.reading import Reader
from monitor.research.statistics import mean_bound, pool_auc_bound
from monitor.research.styles import PLAIN, StyleTexts
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Doubles, Floats
from monitor.values.drift import Bound
from monitor.values.prompts import Prompt
from monitor.values.ridge import cross_fitted, fold_of

QUICK_STEP: Final = 3
"""A quick judgement reads every so-manieth calm pair, check text and content, and all negatives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bystanders:
    """The texts. ``hard`` holds the judged rows alone."""

    hard: HardTexts
    check: tuple[Prompt, ...]
    styles: StyleTexts
    others: tuple[Answered, ...] = ()

    @property
    def benign(self) -> list[Prompt]:
        """The pool: negatives, sound answers and check texts, in this order."""
        negatives = (row.prompt for row in self.hard.judged_negatives)
        return [*negatives, *(row.good_prompt for row in self.hard.judged_calm), *self.check]

    def fewer(self) -> Bystanders:
        """Those of a quick judgement."""
        return replace(
            self,
            hard=replace(self.hard, calm=self.hard.judged_calm[::QUICK_STEP]),
            check=self.check[::QUICK_STEP],
            styles=replace(self.styles, rows=self.styles.rows[::QUICK_STEP]),
        )


Paired = tuple[Floats, Floats]
"""Scores [n, k] of texts, and of those that they are held against, one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BystanderScores:
    """Scores [n, k] of ``pool`` and ``calm``; ``styles`` against plain, ``others`` against good answers.

    ``plain`` are all contents in the plain style; ``components`` [n, c] of the prompts of the pool, and the
    ``folds`` [n] of its questions.
    """

    pack: Pack
    texts: Bystanders
    pool: Floats
    calm: Floats
    plain: Floats
    styles: Mapping[str, Paired]
    others: Mapping[str, Paired]
    components: Doubles
    folds: NDArray[np.intp]

    def of(self, name: str) -> tuple[int, HardScores]:
        """The index of the feature called ``name``, and its scores of hard texts."""
        index = next(i for i, one in enumerate(self.pack.features) if one.name == name)
        hard, column = self.texts.hard, self.pool[:, index]
        ends = np.cumsum([len(hard.judged_negatives), len(hard.judged_calm)])
        negatives, good, check = np.split(column, ends)
        return index, HardScores(
            feature=self.pack.features[index],
            hard=hard,
            negatives=negatives,
            good=good,
            calm=self.calm[:, index],
            check=check,
        )


def read_bystanders(
    pack: Pack,
    loaded: LoadedModel,
    texts: Bystanders,
    settings: ReplaySettings,
    progress: Progress,
) -> BystanderScores:
    """Read every text once, and the prompts of the benign ones for their components. Blocks for minutes."""
    reader = Reader(loaded, pack.features, settings, progress)
    rows = texts.styles.rows
    plain = reader.scores("plain contents", [row.prompt(PLAIN) for row in rows])
    styles = {}
    for style in texts.styles.styles:
        has = [at for at, row in enumerate(rows) if style in row.styles]
        said = reader.scores(f"contents, {style}", [rows[at].prompt(style) for at in has])
        styles[style] = (said, plain[has])
    others = {
        one.name: (
            reader.scores(f"answers by {one.name}", one.answers),
            reader.scores("good answers", one.good),
        )
        for one in texts.others
    }
    benign = texts.benign
    progress(f"reading the prompts of {len(benign)} benign texts")
    return BystanderScores(
        pack=pack,
        texts=texts,
        pool=reader.scores("benign texts of every kind", benign),
        calm=reader.scores("calm answers", [row.calm_prompt for row in texts.hard.judged_calm]),
        plain=plain,
        styles=styles,
        others=others,
        components=_components(ResidualReader(loaded, settings), benign, main_site(pack)),
        folds=np.array([fold_of(repr(prompt.messages).encode()) for prompt in benign]),
    )


def _components(reader: ResidualReader, prompts: Sequence[Prompt], site: int) -> Doubles:
    """Mean residuals of the ``prompts`` along their own leading components [n, c]."""
    asked = [replace(prompt, response=None) for prompt in prompts]
    residuals = reader.mean_residuals(asked, [site], "prompt")[:, 0]
    if not np.isfinite(residuals).all():
        raise not_finite(f"{reader.loaded.model_id} gives residuals that are not finite")
    weights = leading(residuals, min(DEFAULT, len(prompts) // TEXTS_A_COVARIATE))
    found: Doubles = residuals.astype(np.float64) @ weights.T.astype(np.float64)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """One feature's part of it.

    ``careful``: AUC of refusals, warnings and crisis replies over other benign text. ``against_pool``: AUC of
    the feature's own positives over all benign text. ``rates``: beyond the pack's tail, of every kind.
    ``styles``: mean paired shift against plain, towards the persona, in benign deviations; ``others`` the
    same for other models' answers against good ones. ``explained``: share of the benign variance that the
    prompt explains. ``calm`` and ``found`` are for the report.
    """

    careful: Bound
    against_pool: Bound
    rates: tuple[TailRate, ...]
    styles: Mapping[str, Bound]
    others: Mapping[str, Bound]
    explained: float
    calm: Mapping[str, Any]
    found: Sequence[Mapping[str, Any]]

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "careful_against_other_benign": of_bound(self.careful),
            "calm": self.calm,
            "tail_rate_by_kind": {one.kind: one.figures(len(self.rates)) for one in self.rates},
            "styles": {style: of_bound(shift) for style, shift in self.styles.items()},
            "other_models": {name: of_bound(shift) for name, shift in self.others.items()},
            "explained_by_prompt": rounded(self.explained),
            "tails": list(self.found),
        }


def conduct(
    scores: BystanderScores, name: str, positives: Floats, generator: np.random.Generator
) -> Conduct:
    """Of the feature called ``name``, with its own ``positives`` [p, q] turned so that high is the persona."""
    index, hard = scores.of(name)
    pool = hard.pool
    able = np.isfinite(positives).all(axis=0)
    return Conduct(
        careful=hard.careful(generator),
        against_pool=pool_auc_bound(positives[:, able], pool, generator),
        rates=(*hard.rates(), *_other_rates(scores, index)),
        styles=_shifts(scores, index, scores.styles, generator),
        others=_shifts(scores, index, scores.others, generator),
        explained=_explained(scores, index),
        calm={
            "against_good": of_bound(hard.calm_against_good(generator)),
            "against_benign": of_bound(hard.calm_against_pool(generator)),
            "against_good_by_kind": hard.by_kind(),
        },
        found=found_figures(positives.ravel(), pool),
    )


def _other_rates(scores: BystanderScores, index: int) -> list[TailRate]:
    feature = scores.pack.features[index]
    kinds = {f"style {PLAIN}": scores.plain}
    kinds |= {f"style {style}": said for style, (said, _) in scores.styles.items()}
    kinds |= {f"answers by {name}": said for name, (said, _) in scores.others.items()}
    rates = (tail_rate(feature, kind, values[:, index]) for kind, values in kinds.items())
    return [one for one in rates if one.n]


def _shifts(
    scores: BystanderScores,
    index: int,
    paired: Mapping[str, Paired],
    generator: np.random.Generator,
) -> dict[str, Bound]:
    feature = scores.pack.features[index]
    found = {}
    for name, (ours, theirs) in paired.items():
        apart = (ours[:, index] - theirs[:, index]).astype(np.float64)
        present = apart[np.isfinite(apart)]
        if present.size:
            found[name] = mean_bound(feature.toward(present), generator)
    return found


def _explained(scores: BystanderScores, index: int) -> float:
    """Cross-fitted share of the variance of the pool; NaN with too few texts to say."""
    values = scores.pool[:, index].astype(np.float64)
    present = np.isfinite(values)
    if present.sum() < TEXTS_A_COVARIATE:
        return float("nan")
    x = scores.components[present]
    return cross_fitted(x, values[present], scores.folds[present]).explained
