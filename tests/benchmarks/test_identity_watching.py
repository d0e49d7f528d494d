"""Whoever is paged in the simulation of identity's benchmarks reads the verdict that the watcher would give."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.identity.pools import Pool
from benchmarks.identity.questions import Question
from benchmarks.identity.watching import QUIET, Answers, Run, answers_of, drawn, settings_of
from benchmarks.persona.rows import asked
from benchmarks.persona.simulated import world
from monitor.values.surprise import TILTS, Surprise
from tests.score.packs import feature, pack

BEFORE, AFTER = 20, 60
TOKENS, SPREAD = 40, 4.0
QUESTIONS = tuple(
    Question(topic=topic, prompt=asked(f"{topic} {n}", None))
    for topic in ("everyday", "other")
    for n in range(60)
)


def spoken(seed: int, places: range, *, excess: float = 0.0, shift: float = 0.0) -> Pool:
    """Answers with bets of a Gaussian walk, whose mean is the pool's own: it is drawn from again and again."""
    random = np.random.default_rng(seed)
    tilts, variance = np.array(TILTS), TOKENS * SPREAD
    walked = random.normal(0.0, variance**0.5, size=len(places))
    surprises = []
    for over in walked - walked.mean() + excess * TOKENS:
        surprises.append(
            Surprise(
                law="sampled",
                tokens=TOKENS,
                excess=float(over),
                variance=variance,
                peak=0.0,
                off_support=0,
                given_away=0,
                log_bets=tilts * over - tilts**2 * variance / 2,
            )
        )
    return Pool(
        question=np.array(places),
        texts=["said"] * len(places),
        surprises=surprises,
        scores=random.normal(shift, 1.0, size=(len(places), 2)).astype(np.float32),
        covariates=np.zeros((len(places), 0), np.float32),
        drawn_tokens=np.full(len(places), TOKENS),
        same=np.ones(len(places), np.bool_),
        left_out={},
        seconds=0.0,
    )


@pytest.fixture(scope="module")
def answers() -> Answers:
    pools = {
        "copy": spoken(1, range(120)),
        "another": spoken(2, range(60), excess=1.3),
        "topic": spoken(3, range(60), shift=1.5),
    }
    features = (feature("a"), feature("asked", region="prompt"))
    return answers_of(pools, QUESTIONS, pack(features=features, canaries=()))


def told(answers: Answers, after: str, *, canary: float = 0.0, seed: int = 0):
    settings = settings_of(1.0)
    random = np.random.default_rng(seed)
    baseline = drawn(answers, {"core": 1.0}, 100, random)
    places = np.concatenate(
        [drawn(answers, {"core": 1.0}, BEFORE, random), drawn(answers, {after: 1.0}, AFTER, random)]
    )
    return Run(
        answers=answers,
        world=world(answers.read, answers.questions, baseline, settings.drift),
        settings=settings,
        places=places,
        weighed=np.ones(places.shape, dtype=np.bool_),
        before=BEFORE,
        canary=canary,
    ).told()


def test_groups_are_speakers_core_questions_and_topics_without_any(answers: Answers) -> None:
    assert set(answers.members) == {"copy", "another", "topic", "core", "topic: other"}
    assert answers.members["core"].tolist() == list(range(60))
    assert answers.members["topic: other"].tolist() == list(range(60, 120))
    assert answers.members["another"].tolist() == list(range(120, 180))


def test_the_copy_pages_nobody(answers: Answers) -> None:
    found = told(answers, "core")
    assert (found.paged, found.by, found.prompts) == (QUIET, "nothing", None)
    # Identity vouches for the weights, and nothing moved on the prompt side that would explain a drift.
    assert found.history == "undecided"


def test_another_model_pages_by_identity(answers: Answers) -> None:
    found = told(answers, "another")
    assert (found.paged, found.by) == ("model_shift", "identity")
    # The alert holds for two minutes before it fires.
    assert found.prompts is not None
    assert 60 <= found.prompts <= 100


def test_what_the_copy_says_of_another_topic_is_put_down_to_the_users(answers: Answers) -> None:
    found = told(answers, "topic")
    # Later, drawn from again and again, one lucky answer of so small a pool gathers evidence of its own.
    assert (found.paged, found.by) == ("input_shift", "features")


def test_a_copy_that_moved_accuses_nobody(answers: Answers) -> None:
    found = told(answers, "another", canary=1.0)
    assert (found.paged, found.by, found.history) == (
        "instrument_shift",
        "instrument",
        "instrument_shift",
    )
