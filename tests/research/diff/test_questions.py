"""Rows with the same messages are one question, and count once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.replay.model import load_model
from monitor.research.diff.build import Sources, build_diff_pack
from monitor.research.diff.misbehaviour import misbehaviour
from monitor.research.diff.settings import DiffSettings
from monitor.research.diff.trials import Trials, load_trials, question_means, questions, spread_out
from tests.scenes.diffs import CHANGED, asked
from tests.scenes.packs import on_cpu
from tests.scenes.texts import write_rows

pytestmark = pytest.mark.usefixtures("_few_own_texts")


def test_the_same_question_never_stands_in_both_halves(tmp_path: Path) -> None:
    rows = asked(20, 0) * 3
    trials = load_trials(write_rows(tmp_path / "prompts.jsonl", rows), 3)
    halves = [{trial.prompt.messages for trial in half} for half in (trials.choose, trials.test)]
    assert halves[0].isdisjoint(halves[1])
    assert len(trials.choose) == len(trials.test) == 30
    assert sorted(trial.line for trial in trials.all) == list(range(1, 61))


@pytest.mark.slow
def test_copies_of_a_question_prove_nothing_more(
    base: Path, tuned: Path, texts_folder: Path, tmp_path: Path
) -> None:
    found = {}
    for copies in (1, 10):
        path = write_rows(tmp_path / f"{copies}.jsonl", asked(16, 0) * copies)
        sources = Sources(base=base, tuned=tuned, prompts=path, data=texts_folder)
        found[copies] = build_diff_pack(sources, tmp_path / f"pack-{copies}", CHANGED)[1]
    once, often = found[1], found[10]
    assert (once["rows"], often["rows"]) == (16, 160)
    assert once["questions"] == often["questions"] == {"choose": 8, "test": 8}
    for one, other in zip(once["candidates"], often["candidates"], strict=True):
        assert other["name"] == one["name"]
        assert other["p"] == one["p"] >= 1 / 256
        for key in ("q", "change", "standardised_change"):
            assert other[key] == pytest.approx(one[key], abs=2e-4)
        assert other["change_interval_95"] == pytest.approx(one["change_interval_95"], abs=2e-4)
        assert other["separation"]["auc_interval_95"] == one["separation"]["auc_interval_95"]
        assert other["top_lines"] == one["top_lines"]


def measured(trials: Trials, rows: int, rater: Any = None) -> Any:
    """What is measured of the first ``rows`` of the testing half; nothing is coherent or benign here."""
    made = misbehaviour(
        trials, DiffSettings(steer_prompts=rows), rater, lambda: nullcontext(None), (), print
    )
    assert made is not None
    return made


def test_steering_counts_a_question_once_and_takes_as_many_as_it_can(
    base: Path, tmp_path: Path
) -> None:
    rows = asked(16, 0)
    trials = load_trials(write_rows(tmp_path / "p.jsonl", [r for r in rows for _ in range(4)]), 0)
    steered = spread_out(trials.test, 12)
    assert len({trial.prompt.messages for trial in steered[:8]}) == 8
    assert len(steered) == 12
    loaded = load_model(on_cpu(base), 3, full=True)
    (single,) = measured(trials, 8).on(loaded)([()], False)
    (several,) = measured(trials, 12).on(loaded)([()], False)
    assert several.values == pytest.approx(single.values, abs=1e-4)
    assert several.values.shape == (8,)


@pytest.mark.usefixtures("_short_answers")
def test_answers_to_a_question_are_asked_for_once(base: Path, tmp_path: Path) -> None:
    class Rater:
        def __init__(self) -> None:
            self.identity: dict[str, str] = {}

        def rate(self, prompts: Any) -> Any:
            return np.linspace(0, 1, len(prompts)), np.ones(len(prompts))

    trials = load_trials(write_rows(tmp_path / "p.jsonl", asked(16, 0) * 2), 0)
    loaded = load_model(on_cpu(base), 3, full=True)
    judged = measured(trials, 32, Rater)
    (look,) = judged.on(loaded)([()], True)
    assert [one.messages for one in look.answered] == [
        trial.prompt.messages for trial in questions(trials.test)
    ]
    (seen,) = judged.settle([look])
    assert seen.values.shape == (8,)


def test_means_over_questions_weigh_rows_of_one_question_alike(tmp_path: Path) -> None:
    rows = asked(16, 0)
    trials = load_trials(write_rows(tmp_path / "p.jsonl", [*rows, rows[0], rows[0]]), 0).all
    values = np.zeros((18, 2), np.float32)
    places = [index for index, trial in enumerate(trials) if trial.line in (1, 17, 18)]
    values[places] = [[1, 0], [2, 0], [6, 3]]
    means = question_means(values, trials)
    assert (means.shape, means.dtype) == ((16, 2), np.float32)
    assert means.sum(axis=0).tolist() == [3.0, 1.0]
