"""Careful answers are levelled with other benign ones, and the persona is told as well as before."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.research.contrast.learners import Rows, fit
from monitor.research.contrast.levelling import levelled
from monitor.research.contrast.selection import Choice, Selected
from monitor.research.statistics import auc

WIDTH = 12
SCALE = np.ones((1, WIDTH))
CHOICE = Choice(scheme="difference", sites=(0,), strength=0.0)


def rows(*, refusals_lean: float, seed: int = 0) -> Rows:
    """Loud positives along axis 0; refusals lean that way and have an axis of their own, 1."""
    generator = np.random.default_rng(seed)
    kinds = np.array(
        ["persona", "good", *(f"refusal_{i}" for i in range(4)), "poem", "code", "terse"]
    )
    kind = np.repeat(kinds, 40)
    x = generator.normal(size=(len(kind), 1, WIDTH)).astype(np.float32)
    x[kind == "persona", 0, 0] += 12.0
    careful = np.char.startswith(kind, "refusal")
    x[careful, 0, 0] += refusals_lean
    x[careful, 0, 1] += 3.0
    number = np.arange(len(kind))
    return Rows(
        x=x,
        positive=kind == "persona",
        kind=kind,
        question=np.where(number < 80, number % 40, number),
        twin=kind == "good",
    )


def selected(given: Rows) -> Selected:
    readout = fit("difference", given, CHOICE.sites, SCALE, 0.0)
    return Selected(family="difference", choice=CHOICE, readout=readout, scores={})


def against_others(one: Selected, given: Rows) -> float:
    careful = np.char.startswith(given.kind, "refusal")
    readings = one.readout.of(given.x)
    return auc(readings[careful], readings[~careful & ~given.positive])


def test_refusals_that_lean_towards_the_persona_are_levelled() -> None:
    given, fresh = rows(refusals_lean=1.5), rows(refusals_lean=1.5, seed=1)
    before = selected(given)
    after = levelled(before, given, SCALE, 0)
    assert against_others(before, fresh) > 0.8
    assert against_others(after, fresh) < 0.6
    assert after.levelled > 0
    readings = after.readout.of(fresh.x)
    assert auc(readings[fresh.positive], readings[~fresh.positive]) > 0.99
    assert np.linalg.norm(after.readout.weight) == pytest.approx(1.0, abs=1e-5)


def test_what_is_level_already_stays_as_it_is() -> None:
    given = rows(refusals_lean=-1.0)
    before = selected(given)
    assert levelled(before, given, SCALE, 0).levelled == 0.0
    np.testing.assert_array_equal(
        levelled(before, given, SCALE, 0).readout.weight, before.readout.weight
    )


def test_nothing_is_turned_without_careful_kinds_to_tell_by() -> None:
    given = rows(refusals_lean=1.5)
    few = given.part(~np.isin(given.kind, ["refusal_1", "refusal_2", "refusal_3"]))
    before = selected(few)
    assert levelled(before, few, SCALE, 0) is before
