"""Which read-out: nested cross-validation over schemes, sites and strengths; the simplest that is good enough.

The outer folds judge schemes, the inner ones choose sites and strength within a scheme. A fold leaves
out questions *and* kinds of text: what is scored on it has a question, or a kind, that was not learned.

Legend: n = answers, s = candidate sites, d = model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from monitor.research.contrast.learners import STRENGTHS, Readout, Rows, Scheme, fit
from monitor.research.statistics import auc
from monitor.values.arrays import Counts, Doubles

OUTER: Final = 4
INNER: Final = 3
SEVERAL: Final = 5
"""Sites of a composite, and as many alone, evenly spaced over the candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A ``scheme`` over the sites with these indices, with its strength."""

    scheme: Scheme
    sites: tuple[int, ...]
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Choices of one simplicity, from which cross-validation takes one."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """``choice``, its ``readout`` of all rows, and by family the mean and standard error over outer folds."""

    family: str
    choice: Choice
    readout: Readout
    scores: dict[str, tuple[float, float]]
    levelled: float = 0.0
    """How far the read-out was turned from careful answers: see `monitor.research.contrast.levelling`."""


def families(
    sites: int, schemes: Sequence[Scheme] = ("difference", "lda", "logistic")
) -> tuple[Family, ...]:
    """The simplest first: one site before several, the difference of means before what is learned."""
    few = sorted({round(i) for i in np.linspace(0, sites - 1, SEVERAL)})
    alone = [
        Family(
            name=f"{scheme}, one site",
            choices=tuple(
                Choice(scheme=scheme, sites=(site,), strength=strength)
                for site in (range(sites) if scheme == "difference" else few)
                for strength in STRENGTHS[scheme]
            ),
        )
        for scheme in schemes
    ]
    if len(few) < 2:
        return tuple(alone)
    together = [
        Family(
            name=f"{scheme}, {len(few)} sites",
            choices=tuple(
                Choice(scheme=scheme, sites=tuple(few), strength=strength)
                for strength in STRENGTHS[scheme]
            ),
        )
        for scheme in schemes
        if scheme != "difference"
    ]
    return (*alone, *together)


def select(
    rows: Rows,
    scale: Doubles,
    nuisance: Sequence[Doubles],
    seed: int,
    among: Sequence[Family],
) -> Selected:
    """The read-out of ``rows``: of the first of the families ``among`` within one standard error of the best
    (of their difference, fold by fold).

    ``scale`` [s, d] and ``nuisance`` (by site) are those of `fit`.
    """

    def learned(choice: Choice, part: Rows) -> Readout:
        left_out = nuisance[choice.sites[0]] if choice.scheme == "difference" else None
        return fit(choice.scheme, part, choice.sites, scale, choice.strength, left_out)

    def held_out(choice: Choice, part: Rows, folds: Sequence[Fold]) -> Doubles:
        return np.array(
            [
                separation(part.part(fold.test), learned(choice, part.part(fold.train)), choice)
                for fold in folds
            ]
        )

    def best(family: Family, part: Rows) -> Choice:
        if len(family.choices) == 1:
            return family.choices[0]
        folds = dealt(part, INNER, seed + 1)
        return max(family.choices, key=lambda choice: held_out(choice, part, folds).mean())

    outer = dealt(rows, OUTER, seed)
    found = {
        family.name: np.array(
            [held_out(best(family, rows.part(fold.train)), rows, [fold])[0] for fold in outer]
        )
        for family in among
    }
    scores = {
        name: (float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
        for name, values in found.items()
    }
    highest = max(found.values(), key=lambda values: float(values.mean()))
    chosen = next(family for family in among if as_good(found[family.name], highest))
    choice = best(chosen, rows)
    return Selected(family=chosen.name, choice=choice, readout=learned(choice, rows), scores=scores)


def as_good(values: Doubles, highest: Doubles) -> bool:
    """Whether scores [folds] are within one standard error of the best ones on the same folds.

    The error is that of the difference fold by fold: how hard a fold is, both share.
    """
    behind = highest - values
    return bool(behind.mean() <= behind.std(ddof=1) / np.sqrt(len(behind)))


@dataclass(frozen=True, slots=True)
class Fold:
    """Which rows are learned from and which are scored [n]; those of neither share a side with both."""

    train: NDArray[np.bool_]
    test: NDArray[np.bool_]


def dealt(rows: Rows, count: int, seed: int) -> tuple[Fold, ...]:
    """``count`` folds of questions, each leaving out kinds too, where a side has at least ``count`` of them."""
    generator = np.random.default_rng(seed)
    of_question, of_kind = np.full(len(rows), -1), np.full(len(rows), -1)
    # Dealt apart: few positives among many negatives must not leave a fold without any.
    answered = np.isin(rows.question, rows.question[rows.positive])
    for side in (answered, ~answered):
        of_question[side] = _shuffled(rows.question[side], count, generator)
    for side in (rows.positive | rows.twin, ~(rows.positive | rows.twin)):
        if len(np.unique(rows.kind[side])) >= count:
            of_kind[side] = _shuffled(rows.kind[side], count, generator)
    return tuple(
        Fold(train=(of_question != k) & (of_kind != k), test=(of_question == k) | (of_kind == k))
        for k in range(count)
    )


def _shuffled(labels: NDArray[Any], count: int, generator: np.random.Generator) -> Counts:
    names, where = np.unique(labels, return_inverse=True)
    numbers: Counts = (generator.permutation(len(names)) % count)[where]
    return numbers


def separation(rows: Rows, readout: Readout, choice: Choice) -> float:
    """How well ``readout`` tells positives: half the AUC over their twins, half that over other kinds, each
    kind of negative counting alike."""
    readings = readout.of(rows.x[:, list(choice.sites)])
    positives = readings[rows.positive]
    others = ~rows.positive & ~rows.twin
    kinds = [
        auc(positives, readings[others & (rows.kind == kind)])
        for kind in np.unique(rows.kind[others])
    ]
    parts = [auc(positives, readings[rows.twin]), float(np.mean(kinds)) if kinds else np.nan]
    return float(np.nanmean(parts))
