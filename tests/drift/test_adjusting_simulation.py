"""Topics and personas by simulation; worlds and seeds stand in `adjusting_simulation.py`, figures in docs/drift.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.drift.adjusting_simulation import RUNS, SCENARIOS, Scenario, row, runs

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "drift.md").read_text(encoding="utf-8")
UNCHANGED, TOPIC, PERSONA, BOTH = SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_page_tells_what_moves(scenario: Scenario) -> None:
    assert row(scenario) in PAGE


def test_a_topic_moves_the_raw_mean_and_not_the_one_given_the_prompt() -> None:
    seen = runs(TOPIC)
    assert np.mean([one.raw for one in seen]) > 0.5
    assert np.mean([abs(one.adjusted) for one in seen]) < 0.1
    assert sum(one.raw_alert for one in seen) > 0.9 * RUNS, (
        "else there was nothing to be quiet about"
    )
    assert not any(one.adjusted_alert for one in seen)


@pytest.mark.parametrize("scenario", [PERSONA, BOTH], ids=lambda scenario: scenario.name)
def test_a_persona_of_the_same_size_is_told(scenario: Scenario) -> None:
    seen = runs(scenario)
    assert np.mean([one.adjusted for one in seen]) > 0.5
    assert all(one.adjusted_alert for one in seen)


def test_unchanged_traffic_stays_quiet() -> None:
    assert not any(one.raw_alert or one.adjusted_alert for one in runs(UNCHANGED))
