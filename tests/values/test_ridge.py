from __future__ import annotations

import numpy as np
import pytest

from monitor.values.ridge import FOLDS, cross_fitted, fold_of, ridge


def test_what_is_explained_is_told_of_rows_that_were_held_out() -> None:
    """Half of the variance comes from the covariates; noise alone explains nothing, and less than nothing."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1_000, 4))
    noise = generator.normal(size=1_000)
    y = x @ [1.0, 0.0, 0.0, 0.0] + noise
    folds = np.arange(1_000) % FOLDS
    found = cross_fitted(x, y, folds)
    assert found.explained == pytest.approx(0.5, abs=0.06)
    assert np.var(found.residuals) == pytest.approx(1.0, abs=0.1)
    assert cross_fitted(x, noise, folds).explained < 0.01


def test_a_constant_is_explained_by_nothing() -> None:
    assert cross_fitted(np.ones((10, 1)), np.ones(10), np.arange(10) % FOLDS).explained == 0.0


def test_no_penalty_worth_the_name_gives_least_squares() -> None:
    x = np.random.default_rng(1).normal(size=(50, 3))
    (intercept,), (weights,) = ridge(x, x @ [2.0, -1.0, 0.5] + 3.0, (1e-9,))
    assert intercept == pytest.approx(3.0)
    assert weights == pytest.approx([2.0, -1.0, 0.5])


def test_a_group_has_one_fold() -> None:
    assert {fold_of(str(group).encode()) for group in range(100)} == set(range(FOLDS))
    assert fold_of(b"one") == fold_of(b"one")
