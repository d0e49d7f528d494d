"""Twins out of the copy's pool, as the simulated watcher of identity's benchmarks hears them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.identity.twins import Others, Pairs
from benchmarks.identity.watching import settings_of
from monitor.values.prompts import EVERYTHING
from tests.score.packs import feature

MINUTES, PER_MINUTE = 90, 20
FEATURES = (feature("a"), feature("asked", region="prompt"))


def test_a_twin_is_another_answer_of_the_copy_to_the_same_question() -> None:
    asked = np.array([4, 7, 4, 9, 7, 4, 4, 8])
    copys = np.array([0, 1, 2, 3, 4, 6])
    others = Others.of(asked, copys)
    random = np.random.default_rng(1)
    answers = np.tile(np.arange(len(asked)), (500, 1))
    twins = others.drawn(answers, random)
    assert (twins[:, [3, 7]] == -1).all(), "to one it gave no other answer, to the last none at all"
    for answer, expected in {0: {2, 6}, 1: {4}, 2: {0, 6}, 4: {1}, 5: {0, 2, 6}, 6: {0, 2}}.items():
        assert set(twins[:, answer].tolist()) == expected
    counts = np.bincount(twins[:, 5], minlength=7)[[0, 2, 6]]
    assert counts.min() > 100, "each as often"


def pairs(shift: float) -> Pairs:
    """Answers of a speaker, or of the copy itself, beside another of the copy's to the same question."""
    random = np.random.default_rng(2)
    asked = np.tile(np.arange(60), 12)
    scores = random.normal(size=(len(asked), 2)) + asked[:, None] % 5
    speaker = np.arange(len(asked)) >= 360
    scores[speaker] += shift
    others = Others.of(asked, np.flatnonzero(~speaker))
    places = np.flatnonzero(speaker)[random.integers(360, size=(MINUTES, PER_MINUTE))]
    twins = others.drawn(places, random)
    twins[:, ::2] = -1
    settings = settings_of(1.0, 0.5)
    return Pairs(features=FEATURES, settings=settings, scores=scores, places=places, twins=twins)


@pytest.mark.parametrize(("shift", "crossed"), [(0.0, False), (0.8, True)])
def test_the_difference_is_the_speaker_s_alone(shift: float, crossed: bool) -> None:
    its = pairs(shift)
    (state,) = its.tests(MINUTES - 1).values()
    assert state.feature == 0, "what reads the prompt alone has no twin"
    assert state.n == MINUTES * PER_MINUTE // 2
    assert state.crossed is crossed
    shortest = min(its.settings.drift.windows, key=lambda name: its.settings.drift.windows[name])
    length = int(its.settings.drift.windows[shortest] / its.settings.drift.bucket)
    window = its.told(MINUTES - 1, (shortest,)).windows[shortest, EVERYTHING][0]
    last = slice(max(0, MINUTES - length), None)
    paired = its.twins[last] >= 0
    apart = (its.scores[its.places[last], 0] - its.scores[its.twins[last], 0])[paired]
    assert window.n == len(apart) == window.histogram.sum()
    assert window.total == pytest.approx(apart.sum())
    assert window.total / window.n == pytest.approx(shift, abs=0.3)
