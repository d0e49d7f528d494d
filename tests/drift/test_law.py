"""The law of answers that nobody tells: found again, refused where there is none, and safe to bet on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from monitor.drift.law import FEWEST_TOKENS, estimated
from monitor.replay.sampler import truncated
from monitor.replay.surprise import _piece
from monitor.values.likelihood import (
    GRID,
    TEMPERATURES,
    TOP_PS,
    EstimatedLaw,
    Likelihoods,
    NoLaw,
    law_from,
)
from monitor.values.prompts import Sampling
from tests.drift.law_simulation import LAWS, TOKENS, TRUE, Run, gains, highest, mixed, runs, summed


def known(law: EstimatedLaw | NoLaw) -> EstimatedLaw:
    assert isinstance(law, EstimatedLaw), law
    return law


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("true", [LAWS[0], LAWS[1], TRUE])
def test_temperature_and_top_p_are_found_again(true: Sampling) -> None:
    assert true.temperature is not None
    law = known(estimated(summed(seeded(), true, 300)))
    assert law.temperature == pytest.approx(true.temperature, rel=0.06)
    assert law.low <= true.temperature <= law.high
    assert law.top_p == (true.top_p or 1.0)
    assert law.spread == pytest.approx(1.0, abs=0.25)
    assert (law.n, law.tokens) == (300, 300 * TOKENS)
    assert law_from(law.entry()) == law


def test_between_the_laws_of_the_grid_the_interval_holds_on_the_side_that_matters() -> None:
    law = known(estimated(summed(seeded(), LAWS[3], 300)))
    assert law.high >= 0.77
    assert law.top_p_high >= 0.88


def test_more_answers_make_a_narrower_interval() -> None:
    few, many = (known(estimated(summed(seeded(), LAWS[1], n))) for n in (150, 1200))
    assert many.high / many.low < 0.6 * few.high / few.low + 0.4


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_answers_of_several_laws_have_none(share: float) -> None:
    found = mixed(Sampling(temperature=0.7), Sampling(temperature=1.3), share, seed=3)
    assert isinstance(found, NoLaw)
    assert "several laws" in found.reason
    assert law_from(found.entry()) == found


def test_a_server_that_leaves_next_to_no_chance_is_said_to() -> None:
    found = estimated(summed(seeded(), Sampling(temperature=0.1), 150))
    assert isinstance(found, NoLaw)
    assert "next to no chance" in found.reason


def test_hotter_than_the_grid_is_no_estimate() -> None:
    found = estimated(summed(seeded(), Sampling(temperature=4.0), 150))
    assert isinstance(found, NoLaw)
    assert "at least 2" in found.reason


def test_too_little_is_no_estimate() -> None:
    found = estimated(summed(seeded(), TRUE, 10))
    assert isinstance(found, NoLaw)
    assert f"{FEWEST_TOKENS} tokens" in found.reason


def test_an_interval_that_is_too_wide_is_no_estimate() -> None:
    """Answers that tell next to nothing of their temperature, though there are many."""
    logs = -0.5 * (30.0 * np.log(np.array(TEMPERATURES) / 0.7)) ** 2 / 50.0
    table = np.repeat(logs[:, None], len(TOP_PS), axis=1)
    table[:, 1:] -= 1e4
    sums = Likelihoods(n=1000, tokens=50_000, logs=table.ravel(), squares=np.full(GRID, 1000.0))
    found = estimated(sums)
    assert isinstance(found, NoLaw)
    assert "too wide" in found.reason
    spread = estimated(replace(sums, logs=sums.logs * 1e3, squares=sums.squares * 1.4))
    assert known(spread).spread == pytest.approx(1.4)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.7])
def test_the_upper_end_is_the_least_favourable_law(top_p: float) -> None:
    """The mean of every bet, exactly: at most 1 against a law that is hotter or cut less than the true one."""
    random = torch.Generator().manual_seed(5)
    hotter = colder = -math.inf
    for _ in range(20):
        scores = torch.randn(1, 40, generator=random) * 4.0
        true = truncated((scores / 0.7).log_softmax(dim=1), Sampling(top_p=top_p)).exp()[0]

        def mean_bet(
            law: Sampling, scores: torch.Tensor = scores, true: torch.Tensor = true
        ) -> float:
            bets = _piece(scores.expand(40, -1), torch.arange(40), law)[2][..., 0]
            return float((true[:, None] * bets.exp()).sum(dim=0).max())

        for up in (1.0, 1.03, 1.3):
            for wider in (top_p, min(top_p + 0.05, 1.0), 1.0):
                hotter = max(hotter, mean_bet(Sampling(temperature=0.7 * up, top_p=wider)))
        colder = max(colder, mean_bet(Sampling(temperature=0.5, top_p=top_p)))
    assert hotter <= 1.0 + 1e-5
    assert colder > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("true", [TRUE, LAWS[0], LAWS[3]])
def test_the_copy_s_own_answers_keep_the_risk_under_the_estimate(true: Sampling) -> None:
    made = [one for one in runs(true, count=100) if isinstance(one, Run)]
    assert len(made) >= 95
    top = np.array([highest(one.won) for one in made])
    for risk in (0.05, 0.01):
        assert np.mean(top >= -math.log(risk)) <= risk


def test_another_model_is_found_under_the_estimate() -> None:
    random = seeded()
    law = known(estimated(summed(random, TRUE, 300)))
    won = gains(random, Sampling(temperature=1.3), law.least_favourable(Sampling()), 40)
    assert highest(won) > 12.0
