"""Which directions count as causes: a measure whose answer is known, in place of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.replay.taps import Edit
from monitor.research.diff.causal import Side, tried
from monitor.research.diff.settings import Doses
from monitor.research.steering.measure import Look, Looking, Observation
from monitor.research.steering.steer import Turn

WIDTH = 64
LENGTHS = {"base": {3: 10.0}, "tuned": {3: 10.0}}
opened: list[Side] = []


class Known:
    """Misbehaviour is the edit along axis 0, in the base model also along axis 1, plus noise.

    Answers break when more than ``limit`` of axis 2 is added, either way.
    """

    description = "known"

    def __init__(self, limit: float = 1e9) -> None:
        self.limit = limit
        self.broken: list[float] = []

    def on(self, loaded: Any) -> Looking:
        def one(edits: Sequence[Edit], coherent: bool) -> Look:
            added = sum((e.add * e.direction.numpy() for e in edits), np.zeros(WIDTH))
            value = added[0] + (added[1] if loaded.side == "base" else 0.0)
            noise = np.random.default_rng(5).normal(0, 0.1, 24)
            if edits:
                noise = np.random.default_rng(6).normal(0, 0.1, 24)
            self.broken.append(float(abs(added[2]) > self.limit) if coherent else np.nan)
            return Look(values=value + noise)

        return lambda branches, coherent: [one(branch, coherent) for branch in branches]

    def settle(self, looks: Sequence[Look]) -> list[Observation]:
        broken, self.broken = self.broken, []
        return [
            Observation(values=look.values, incoherent=share)
            for look, share in zip(looks, broken, strict=True)
            if look.values is not None
        ]


@contextmanager
def open_model(side: Side) -> Iterator[Any]:
    opened.append(side)
    yield SimpleNamespace(side=side, device=torch.device("cpu"))


def axis(*places: int) -> np.ndarray[Any, Any]:
    unit = np.zeros(WIDTH, np.float32)
    unit[list(places)] = 1 / np.sqrt(len(places))
    return unit


def verdicts(measure: Known, **directions: np.ndarray[Any, Any]) -> dict[str, Any]:
    turns = [Turn(name=n, site=3, direction=d) for n, d in directions.items()]
    found, _ = tried(turns, measure, open_model, LENGTHS, Doses(), 0)
    return {one.name: one for one in found}


def test_only_what_works_in_both_models_is_a_cause() -> None:
    found = verdicts(Known(), cause=axis(0), half=axis(1), nothing=axis(4), wrong=-axis(0))
    assert {name: one.causal for name, one in found.items()} == {
        "cause": True,
        "half": False,
        "nothing": False,
        "wrong": False,
    }
    assert "lower misbehaviour in the tuned" in found["half"].reason
    assert "raise misbehaviour in the base" in found["wrong"].reason
    assert found["cause"].chosen["base"].strength == 0.4
    assert found["cause"].chosen["base"].effect.value == pytest.approx(4.0, abs=0.2)
    assert len(found["cause"].random["tuned"]) == 19


def test_a_weak_direction_must_beat_random_ones() -> None:
    weak = axis(*range(4, WIDTH)) * np.sqrt(1 - 0.03**2) + 0.03 * axis(0)
    found = verdicts(Known(), weak=weak.astype(np.float32))["weak"]
    assert found.chosen["base"].effect.low > 0.0
    assert not found.causal
    assert "no better than random" in found.reason


def test_the_strongest_coherent_dose_is_judged() -> None:
    measure = Known(limit=1.5)
    found = verdicts(measure, mixed=axis(0, 2))["mixed"]
    assert [dose.coherent for dose in found.doses["base"]] == [True, True, False]
    assert found.chosen["base"].strength == 0.2
    assert found.causal
    broken = verdicts(Known(limit=0.1), mixed=axis(0, 2))["mixed"]
    assert broken.chosen == {"base": None, "tuned": None}
    assert broken.reason == "breaks coherence at every strength"


def test_models_are_opened_in_turn_and_controls_only_where_they_can_matter() -> None:
    opened.clear()
    verdicts(Known(), nothing=axis(4))
    assert opened == ["base", "tuned"]
    opened.clear()
    verdicts(Known(), cause=axis(0))
    assert opened == ["base", "tuned", "base", "tuned"]
