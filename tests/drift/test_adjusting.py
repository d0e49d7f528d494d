"""Scores given the prompt: the fit, what it leaves, and that prompts are judged by what others taught."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.drift.adjusting import LEAST_EXPLAINED, fit
from monitor.values.adjustment import Adjustment, covariates_of
from monitor.values.ridge import FOLDS, fold_of
from tests.alert.drifts import feature

RANDOM = np.random.default_rng(7)
N = 4_000
COVARIATES = (RANDOM.normal(size=(N, 3)) * [1.0, 50.0, 0.01] + [0.0, 7.0, 1.0]).astype(np.float32)
OWN = RANDOM.normal(size=N)
TAUGHT = 2.0 + COVARIATES @ np.array([1.0, 0.02, 0.0]) + OWN
SCORES = np.stack([TAUGHT, RANDOM.normal(size=N), TAUGHT], axis=1).astype(np.float32)
FOLD = np.arange(N) % FOLDS
FEATURES = [feature("reckless"), feature("noise"), feature("topic", region="prompt")]


def test_what_the_prompt_explains_is_found_and_taken_off() -> None:
    expectations, adjusted = fit(SCORES, COVARIATES, FOLD, FEATURES)
    assert set(expectations) == {0}, (
        "noise is not explained, and a feature of the prompt is not adjusted"
    )
    one = expectations[0]
    assert one.weights[:2] == pytest.approx((1.0, 0.02), rel=0.05)
    assert one.explained == pytest.approx(2 / 3, abs=0.03)
    assert one.n == N
    assert np.isnan(adjusted[:, 1:]).all()
    assert np.corrcoef(adjusted[:, 0], OWN)[0, 1] > 0.99
    assert abs(float(adjusted[:, 0].mean())) < 0.02
    later = Adjustment(baseline_id="b", expectations=expectations).applied(SCORES, COVARIATES)
    np.testing.assert_allclose(later[:, 0], adjusted[:, 0], atol=0.2)
    assert np.isnan(later[:, 1:]).all()


def test_prompts_are_judged_by_what_other_prompts_taught() -> None:
    """Residuals of the fit itself would be too small: ten covariates of noise fit sixty prompts well."""
    random = np.random.default_rng(3)
    n = 260
    read = random.normal(size=(n, 10)).astype(np.float32)
    scores = (read[:, :1] + random.normal(size=(n, 1))).astype(np.float32)
    expectations, adjusted = fit(scores, read, np.arange(n) % FOLDS, FEATURES[:1])
    within = Adjustment(baseline_id="b", expectations=expectations).applied(scores, read)
    fresh = random.normal(size=(5_000, 10)).astype(np.float32)
    to_come = (fresh[:, :1] + random.normal(size=(5_000, 1))).astype(np.float32)
    later = Adjustment(baseline_id="b", expectations=expectations).applied(to_come, fresh)
    assert within.std() < adjusted.std()
    assert abs(adjusted.std() - later.std()) < abs(within.std() - later.std())


def test_absent_readings_are_neither_fitted_nor_adjusted() -> None:
    scores, read = SCORES.copy(), COVARIATES.copy()
    scores[:100, 0] = np.nan
    read[100:200, 1] = np.nan
    expectations, adjusted = fit(scores, read, FOLD, FEATURES)
    assert expectations[0].n == N - 200
    assert np.isnan(adjusted[:200, 0]).all()
    assert np.isfinite(adjusted[200:, 0]).all()
    later = Adjustment(baseline_id="b", expectations=expectations).applied(scores, read)
    assert np.isnan(later[:200, 0]).all()


def test_too_few_prompts_or_too_little_explained_leave_the_raw_score() -> None:
    assert fit(SCORES[:70], COVARIATES[:70], FOLD[:70], FEATURES)[0] == {}
    constant = np.zeros_like(SCORES)
    assert fit(constant, COVARIATES, FOLD, FEATURES)[0] == {}
    faint = (0.1 * COVARIATES[:, :1] + RANDOM.normal(size=(N, 1))).astype(np.float32)
    assert fit(faint, COVARIATES, FOLD, FEATURES[:1])[0] == {}
    assert LEAST_EXPLAINED > 0.1**2


def test_all_prompts_of_a_conversation_are_held_out_together() -> None:
    folds = [fold_of(bytes([number])) for number in range(200)]
    assert set(folds) == set(range(FOLDS))
    assert fold_of(b"the same") == fold_of(b"the same")
    # One fold alone teaches nothing about the others: the prompts get their distance from the mean.
    expectations, _ = fit(SCORES, COVARIATES, np.zeros(N, dtype=np.intp), FEATURES)
    assert expectations == {}


def test_prompt_side_features_stand_in_for_covariates_that_a_pack_lacks() -> None:
    none = [None] * N
    np.testing.assert_array_equal(covariates_of(SCORES, none, FEATURES), SCORES[:, 2:])
    assert covariates_of(SCORES[:, :2], none, FEATURES[:2]).shape == (N, 0)
    np.testing.assert_array_equal(covariates_of(SCORES, list(COVARIATES), FEATURES), COVARIATES)
