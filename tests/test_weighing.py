"""Which answers of a chunk are weighed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from monitor.drift.identity import SHARES
from monitor.outcomes import scored_prompt
from monitor.settings import IdentitySettings, ReplaySettings, Settings
from monitor.values.prompts import Message, Prompt, RecordKey, Sampling, ServedCounts
from monitor.values.scores import Replayed
from monitor.values.surprise import TILTS, NotWeighed, Surprise
from monitor.weighing import Weighing

START = datetime(2026, 3, 1, tzinfo=UTC)
COMMON = 0.9
"""Probability of one of the two answers that the copy gives to the question."""

PLAIN = Sampling(temperature=1.0, finish_reason="stop")


def weighed(
    answers: list[str],
    *,
    law: Sampling = PLAIN,
    served: ServedCounts | None = None,
) -> list[Surprise | NotWeighed | None]:
    """Of one chunk in which one question was asked again and again."""
    weighing = Weighing(Settings(identity=IdentitySettings(share=1.0)))
    replayed = [
        Replayed(
            prompt=Prompt(
                key=RecordKey(topic="t", partition=0, offset=offset),
                recorded_at=START,
                messages=(Message(role="user", content="hi"),),
                response=answer,
                sampling=law,
                served=served,
            ),
            readings=np.zeros(1, dtype=np.float32),
            pooled_tokens=np.ones(1, dtype=np.int64),
            prompt_tokens=1,
            response_tokens=1,
            counts=ServedCounts(prompt_tokens=1, completion_tokens=2),
            weighed=surprise(answer),
        )
        for offset, answer in enumerate(answers)
    ]
    scored = [
        scored_prompt(one, np.zeros(1, dtype=np.float32), ("all",), b"key", ReplaySettings())
        for one in replayed
    ]
    return [row.weighed for row in weighing.read(replayed, scored)]


def surprise(answer: str) -> Surprise:
    p = np.array([COMMON, 1 - COMMON])
    log_p = float(np.log(p[0 if answer == "common" else 1]))
    tilts = np.array(TILTS)
    return Surprise(
        law="sampled",
        tokens=1,
        excess=-log_p + float(p @ np.log(p)),
        variance=1.0,
        peak=0.0,
        off_support=0,
        given_away=0,
        log_bets=-tilts * log_p - np.log((p[:, None] ** (1 - tilts)).sum(axis=0)),
    )


def test_of_equal_questions_the_first_counts_whatever_was_answered() -> None:
    found = weighed(["common", "rare", "common", "rare"])
    assert isinstance(found[0], Surprise)
    assert found[1:] == [NotWeighed.REPEATED] * 3


@pytest.mark.parametrize("asked", [1, 10])
def test_how_often_a_question_comes_again_makes_no_bet_win(asked: int) -> None:
    random = np.random.default_rng(3)
    bets = []
    for _ in range(600):
        answers = ["common" if one < COMMON else "rare" for one in random.random(asked)]
        bets += [np.exp(one.log_bets) for one in weighed(answers) if isinstance(one, Surprise)]
    assert len(SHARES) == bets[0].size
    assert (np.mean(bets, axis=0) < 1.0 + 4.0 * np.std(bets, axis=0) / len(bets) ** 0.5).all()


SHARP = (
    Sampling(temperature=0.7),
    Sampling(temperature=0.0),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=1.0, top_k=40),
    Sampling(temperature=1.0, min_p=0.05),
)


@pytest.mark.parametrize("law", SHARP, ids=repr)
def test_an_answer_of_a_sharp_law_is_unchecked_unless_the_server_counted_as_many_tokens(
    law: Sampling,
) -> None:
    law = replace(law, finish_reason="stop")
    for served, expected in (
        (None, True),
        (ServedCounts(prompt_tokens=1), True),
        (ServedCounts(completion_tokens=2), False),
    ):
        (found,) = weighed(["common"], law=law, served=served)
        assert isinstance(found, Surprise)
        assert found.unchecked is expected, served
        assert found.sharp
        assert found.counted is not expected
    assert weighed(["common"], law=law, served=ServedCounts(completion_tokens=3)) == [
        NotWeighed.OTHER_TOKENS
    ]


@pytest.mark.parametrize(
    "law",
    [
        Sampling(temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0),
        Sampling(temperature=1.3),
    ],
    ids=repr,
)
def test_an_answer_of_a_law_that_nothing_sharpens_needs_no_count(law: Sampling) -> None:
    (found,) = weighed(["common"], law=law)
    assert isinstance(found, Surprise)
    assert not found.unchecked
    assert not found.counted
    (found,) = weighed(["common"], law=law, served=ServedCounts(completion_tokens=2))
    assert isinstance(found, Surprise)
    assert found.counted
    assert not found.sharp
