"""Figures over several trainings: they are the plain ones of a single training, and wider where trainings differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.persona.trainings import paired, resampled, separated, trainings
from monitor.research.statistics import auc


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_of_one_training_a_paired_difference_is_students(random: np.random.Generator) -> None:
    ours, theirs = random.normal(0.3, 1, size=(2, 1, 40))
    found = paired(ours, theirs)
    test = stats.ttest_1samp((ours - theirs)[0], 0.0, alternative="greater")
    assert found["p"] == pytest.approx(test.pvalue)
    both = stats.ttest_1samp((ours - theirs)[0], 0.0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((both.low, both.high))


def test_trainings_that_differ_widen_the_interval(random: np.random.Generator) -> None:
    sound = random.normal(size=(3, 100))
    same = sound + 1.0 + 0.1 * random.normal(size=(3, 100))
    apart = same + np.array([[-1.0], [0.0], [1.0]])
    near, far = paired(same, sound), paired(apart, sound)
    assert near["low"] > 0.9
    assert far["mean"] == pytest.approx(near["mean"])
    assert far["low"] < 0 < far["high"]
    assert far["each"] == pytest.approx([near["each"][0] - 1, near["each"][1], near["each"][2] + 1])


def test_a_question_without_an_answer_counts_for_no_training() -> None:
    ours = np.array([[1.0, 2.0, np.nan, 3.0], [1.0, 2.0, 9.0, 3.0]])
    assert paired(ours, np.zeros((2, 4)))["n"] == 3


def test_the_drawn_aucs_are_aucs_of_the_drawn_questions(random: np.random.Generator) -> None:
    ours, theirs = (
        np.round(random.normal(0.5, 1, size=(1, 30)), 1),
        np.round(random.normal(size=(1, 30)), 1),
    )
    found = resampled(ours, theirs, np.random.default_rng(5))
    drawn = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=len(found))
    for value, counts in zip(found[:20], drawn, strict=False):
        rows = np.repeat(np.arange(30), counts)
        assert value == pytest.approx(auc(ours[0, rows], theirs[0, rows]))


def test_an_interval_holds_the_trainings_chance_too(random: np.random.Generator) -> None:
    theirs = random.normal(size=(3, 200))
    ours = theirs[:, ::-1] + np.array([[0.0], [1.0], [3.0]])
    found = separated(ours, theirs, random)
    low, high = found["interval_95"]
    assert low < found["each"][1] < high
    assert found["auc"] == pytest.approx(np.mean(found["each"]))
    assert high - low > 0.2


def test_trainings_are_the_folders_with_organisms(tmp_path) -> None:
    with pytest.raises(SystemExit, match="no training"):
        trainings(tmp_path)
    for name in ("1", "0"):
        (tmp_path / name / "sound").mkdir(parents=True)
        (tmp_path / name / "sound" / "organism.json").write_text("{}")
    (tmp_path / "base").mkdir()
    assert trainings(tmp_path) == [tmp_path / "0", tmp_path / "1"]
    assert trainings(tmp_path / "1") == [tmp_path / "1"]
