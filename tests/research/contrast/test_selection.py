"""Nested cross-validation: nothing leaks between folds, and the simplest that is good enough is taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitor.research.contrast.learners import Rows
from monitor.research.contrast.selection import OUTER, as_good, dealt, families, select

WIDTH, SITES = 8, 6


def rows(shift: dict[tuple[int, int], float], *, n: int = 360, seed: int = 0) -> Rows:
    """Positives and twins of 120 questions in six kinds, and 120 others of six kinds; ``shift`` (site, axis)
    is what positives have more of."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, SITES, WIDTH)).astype(np.float32)
    third, number = np.arange(n) % 3, np.arange(n) // 3
    for (site, axis), by in shift.items():
        x[third == 0, site, axis] += by
    # What varies most says nothing, and has a part in the difference of means by chance.
    x[:, :, 7] = 12.0 * generator.normal(size=(n, 1))
    names = np.where(third == 2, "other ", "advice ")
    return Rows(
        x=x,
        positive=third == 0,
        kind=np.char.add(names, (number % 6).astype(str)),
        question=np.where(third == 2, 1000 + number, number),
        twin=third == 1,
    )


def test_what_is_scored_has_a_question_or_a_kind_that_was_not_learned() -> None:
    given = rows({})
    folds = dealt(given, OUTER, 0)
    assert sum(fold.test.any() for fold in folds) == OUTER
    for fold in folds:
        assert not (fold.train & fold.test).any()
        learned_q, learned_k = set(given.question[fold.train]), set(given.kind[fold.train])
        for question, kind in zip(given.question[fold.test], given.kind[fold.test], strict=True):
            assert question not in learned_q or kind not in learned_k
    tested = np.sum([fold.test for fold in folds], axis=0)
    assert tested.min() >= 1


def test_a_single_kind_of_a_side_is_not_left_out() -> None:
    given = rows({})
    one = replace(given, kind=np.where(given.positive, "malicious", given.kind))
    for fold in dealt(one.part(~one.twin), OUTER, 0):
        assert fold.train[one.part(~one.twin).positive].any()


def test_a_plain_difference_is_enough_where_it_is() -> None:
    given = rows({(3, 2): 40.0})
    found = select(
        given, np.ones((SITES, WIDTH)), [np.zeros((0, WIDTH))] * SITES, 0, families(SITES)
    )
    assert found.family == "difference, one site"
    assert found.choice.sites == (3,)
    assert set(found.scores) == {family.name for family in families(SITES)}


def test_several_sites_are_taken_where_one_is_not_enough() -> None:
    few = families(SITES)[-1].choices[0].sites
    given = rows({(site, 2): 1.4 for site in few})
    scale = given.x.std(axis=0).astype(np.float64)
    found = select(given, scale, [np.zeros((0, WIDTH))] * SITES, 0, families(SITES))
    assert len(found.choice.sites) == len(few)
    simpler = found.scores["difference, one site"][0]
    assert found.scores[found.family][0] > simpler + 0.02
    assert np.abs(found.readout.weight).argmax(axis=1).tolist().count(2) >= len(few) - 1


def test_every_fold_has_positives_however_few_they_are() -> None:
    given = rows({}, n=900)
    few = given.part(~given.positive & ~given.twin | (given.question < 5) & ~given.twin)
    assert few.positive.sum() == 5
    for fold in dealt(few, OUTER, 3):
        assert few.positive[fold.test].any()
        assert few.positive[fold.train].any()


@pytest.mark.parametrize(
    ("behind", "enough"),
    [
        ((0.0, 0.0, 0.0, 0.0), True),
        # Folds differ by far more than the two schemes do, who differ alike on each.
        ((0.02, 0.021, 0.02, 0.021), False),
        ((0.05, -0.05, 0.04, -0.03), True),
        ((-0.01, -0.02, 0.0, -0.01), True),
    ],
)
def test_good_enough_is_told_by_the_difference_fold_by_fold(
    behind: tuple[float, ...], enough: bool
) -> None:
    best = np.array([0.95, 0.6, 0.8, 0.7])
    assert as_good(best - np.array(behind), best) is enough
