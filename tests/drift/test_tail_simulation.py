"""Tail rules by simulation; scenarios and seeds stand in `tail_simulation.py`, the figures in docs/drift.md."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.drift.tail_simulation import (
    CONFIDENCE,
    SCENARIOS,
    Scenario,
    row,
    told,
    wrongly_grown,
)

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "drift.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_page_tells_when_each_rule_sees_a_small_share(scenario: Scenario) -> None:
    assert row(scenario) in PAGE


def test_unchanged_traffic_is_told_by_neither() -> None:
    assert set(told(SCENARIOS[0])) == {(math.inf, math.inf)}


@pytest.mark.parametrize(
    "scenario", [one for one in SCENARIOS if one.later], ids=lambda scenario: scenario.name
)
def test_the_baselines_own_tails_see_a_small_share_sooner(scenario: Scenario) -> None:
    pack, own = zip(*told(scenario), strict=True)
    assert all(a <= b for a, b in zip(own, pack, strict=True))
    assert np.median(own) <= (scenario.later or 0)


@pytest.mark.parametrize("sizes", [(6_000, 200), (6_000, 1_200), (100_000, 1_200)])
def test_a_tail_is_said_to_have_grown_as_rarely_as_stated(sizes: tuple[int, int]) -> None:
    assert wrongly_grown(*sizes) <= (1 - CONFIDENCE) / 2
