"""How far served model and copy compute apart: measured, told why not, and enough for the bets to stay fair."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from monitor.drift.numerics import measured
from monitor.values.numerics import Numerics, tolerance_in_force
from monitor.values.surprise import Surprise, Tally, tally_of
from tests.drift import identity_simulation as simulation

WITHIN, LEAST = 0.15, 0.02
CALM = Tally(
    n=1_000,
    tokens=40_000,
    excess=3_000.0,
    variance=40_000.0,
    counted_tokens=30_000,
    counted_excess=1_500.0,
    counted_variance=30_000.0,
)


def told(tally: Tally) -> Numerics:
    found = measured(tally, WITHIN)
    assert found is not None
    return found


def test_the_mean_of_counted_answers_is_measured_and_its_upper_bound_allowed_for() -> None:
    found = told(CALM)
    assert (found.surprise, found.tokens, found.reason) == (0.05, 30_000, "")
    assert found.bound == pytest.approx(0.05 + 2.326 / math.sqrt(30_000), abs=1e-4)
    assert found.tolerance(LEAST) == found.bound
    assert found.tolerance(0.1) == 0.1, "a setting that allows for more stays"


@pytest.mark.parametrize(
    ("tally", "why"),
    [
        (replace(CALM, counted_tokens=0, counted_excess=0.0, counted_variance=0.0), "token counts"),
        (replace(CALM, counted_excess=9_000.0), "too much for numerics"),
        (
            replace(CALM, counted_tokens=100, counted_excess=5.0, counted_variance=100.0),
            "not known",
        ),
    ],
)
def test_what_cannot_be_numerics_or_is_not_known_is_not_allowed_for(tally: Tally, why: str) -> None:
    found = told(tally)
    assert why in found.reason
    assert found.tolerance(LEAST) == LEAST


def test_without_drawn_answers_nothing_is_measured() -> None:
    assert measured(Tally(n=5, greedy_tokens=100), WITHIN) is None
    assert tolerance_in_force(None, LEAST) == LEAST


def test_an_answer_that_nobody_counted_is_no_part_of_it() -> None:
    answer = Surprise(
        law="sampled",
        tokens=7,
        excess=0.5,
        variance=2.0,
        peak=0.0,
        off_support=0,
        given_away=0,
        log_bets=np.zeros(5),
    )
    assert tally_of(answer).counted_tokens == 0
    both = tally_of(replace(answer, counted=True)) + tally_of(answer)
    assert (both.tokens, both.counted_tokens, both.counted_excess, both.counted_variance) == (
        14,
        7,
        0.5,
        2.0,
    )


@pytest.mark.slow
def test_what_is_measured_keeps_the_promise_of_the_bets() -> None:
    """A server that computes 0.08 nats a token apart: 0.02 accuse it in a quarter of the runs."""
    found = measured(simulation.numerics(heat=1.1), within=WITHIN)
    assert found is not None
    assert not found.reason
    highest = simulation.highest_allowing([LEAST, found.tolerance(LEAST)], heat=1.1)
    by_default, allowed = (highest >= math.log(20)).mean(axis=1)
    assert by_default > 0.1
    assert allowed <= 0.05
