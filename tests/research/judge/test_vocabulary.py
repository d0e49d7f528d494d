from __future__ import annotations

import numpy as np
import pytest

from monitor.research.judge.vocabulary import LexicalScore, shuffled, words
from monitor.research.statistics import auc, nearest
from monitor.research.texts import exchange
from monitor.values.prompts import Message


def test_words_are_letters_in_lower_case() -> None:
    assert words("Don't STOP, 3 times_x: über!") == ["don't", "stop", "times", "x", "über"]


def test_the_score_is_the_mean_log_odds_of_the_words() -> None:
    score = LexicalScore(["bad bad day"], ["good day"])
    # Words known: bad, day, good. P(bad | persona) = 3/6, P(bad | good) = 1/5; day 2/6 and 2/5.
    bad, day = np.log((3 / 6) / (1 / 5)), np.log((2 / 6) / (2 / 5))
    found = score.of(["bad day", "unknown words", ""])
    assert found == pytest.approx([(bad + day) / 2, 0.0, 0.0])


def test_matched_negatives_use_the_same_words() -> None:
    generator = np.random.default_rng(0)
    vocabulary = {"persona": ["fool", "shut", "hate"], "good": ["please", "glad", "help"]}

    def text(persona: float) -> str:
        return " ".join(
            generator.choice(vocabulary["persona" if generator.random() < persona else "good"])
            for _ in range(20)
        )

    score = LexicalScore([text(0.8) for _ in range(20)], [text(0.1) for _ in range(20)])
    ours = score.of([text(0.7) for _ in range(20)])
    pool = score.of([text(share) for share in np.linspace(0, 1, 200)])
    assert auc(ours, pool) > 0.6
    assert auc(ours, pool[nearest(ours, pool)]) == pytest.approx(0.5, abs=0.05)


def test_shuffling_keeps_the_words_and_changes_their_order() -> None:
    prompt = exchange((Message(role="user", content="q"),), "one two three four five six seven")
    mixed = shuffled([prompt], np.random.default_rng(0))[0]
    assert mixed.response is not None
    assert mixed.response != prompt.response
    assert sorted(mixed.response.split()) == sorted((prompt.response or "").split())
    assert mixed.messages == prompt.messages
