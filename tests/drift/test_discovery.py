"""Which of many streams have changed: e-values that begin once, and the share of false discoveries among them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from monitor.drift import discovery
from tests.drift.discovery_simulation import (
    BUCKETS,
    RATE,
    WORLDS,
    WRONG,
    World,
    row,
    told,
)
from tests.drift.simulation import BEFORE_ALL

PAGE = Path(__file__).parents[2] / "docs" / "drift.md"


def test_an_e_value_is_one_before_anything_is_seen() -> None:
    assert discovery.begin(3, BEFORE_ALL).log_e == 0.0
    assert discovery.unstaked(0) == 1.0


def test_bets_that_gain_nothing_leave_it_at_one() -> None:
    process = discovery.begin(4, BEFORE_ALL)
    for _ in range(500):
        process = discovery.step(process, np.zeros(4))
    assert process.log_e == pytest.approx(0.0, abs=1e-9)
    assert process.steps == 500
    assert process.since == BEFORE_ALL


def test_a_fair_bet_leaves_its_mean_where_it_was_whatever_was_won_before() -> None:
    """Heads and tails of a fair coin, from a state in which much is at stake and much is not."""
    process = discovery.begin(2, BEFORE_ALL)
    for gains in ([0.4, -0.3], [0.9, 0.1], [-0.2, 0.2]):
        process = discovery.step(process, np.array(gains))
    weights = np.log([0.7, 0.3])
    before = discovery.step(process, np.zeros(2), weights).log_e
    either = [discovery.step(process, np.log([1 + s, 1 - s]), weights) for s in (0.8, -0.8)]
    assert np.mean([math.exp(one.log_e) for one in either]) == pytest.approx(math.exp(before))


def test_a_late_change_is_seen_nearly_as_fast_as_an_early_one() -> None:
    """One product from the beginning on would have lost 500 nats by then."""
    process = discovery.begin(1, BEFORE_ALL)
    for _ in range(5_000):
        process = discovery.step(process, np.array([-0.1]))
    assert process.log_e > -2.5
    for _ in range(20):
        process = discovery.step(process, np.array([1.0]))
    assert process.log_e > 20 - math.log(5_000) - 2 * math.log(1 + math.log(5_000))


def test_those_that_reach_the_line_of_so_many_are_discoveries() -> None:
    """K = 4 at 0.1: one alone needs 40, two 20, three 13.3, four 10."""
    for es, line in (
        ([40.0, 1.0, 1.0, 1.0], 40.0),
        ([39.0, 19.0, 1.0, 1.0], 40.0),
        ([39.0, 20.0, 1.0, 1.0], 20.0),
        ([11.0, 11.0, 11.0, 11.0], 10.0),
        ([39.0, 14.0, 14.0, 9.0], 40 / 3),
    ):
        assert discovery.line(list(np.log(es)), 0.1) == pytest.approx(math.log(line))
    assert discovery.line([], 0.1) == math.inf
    assert discovery.line([-math.inf], 0.1) == pytest.approx(math.log(10))


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_share_of_false_discoveries_keeps_its_bound(world: World) -> None:
    """At every evaluation; three standard deviations of the mean of so many runs are allowed for."""
    seen = told(world)
    error = 3 * math.sqrt(RATE * (1 - RATE) / world.runs)
    assert seen.false.mean(axis=0).max() <= RATE + error
    if world.changed:
        assert seen.found[:, -1].mean() > 0.8 * world.changed


def test_values_of_the_detectors_would_break_it() -> None:
    assert BUCKETS > 1 / RATE
    assert told(WRONG).false.mean(axis=0).max() > 2 * RATE


def test_the_page_has_these_figures() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for world in (*WORLDS, WRONG):
        assert row(world) in page
