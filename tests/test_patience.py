from __future__ import annotations

import random
import threading

import pytest

from monitor.patience import Patience, rest_until


class Flaky:
    """Fails ``times`` times, then answers."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.left = times
        self.tries = 0
        self._error = error or ConnectionError("away")

    def __call__(self) -> str:
        self.tries += 1
        if self.left:
            self.left -= 1
            raise self._error
        return "done"


def test_rests_double_up_to_the_longest_and_every_failure_is_told() -> None:
    rests: list[float] = []
    told: list[tuple[str, float]] = []
    action = Flaky(6)
    patience = Patience(first_seconds=1.0, longest_seconds=8.0, jitter=0.0)
    done = patience.until_done(
        action,
        passing=ConnectionError,
        told=lambda error, seconds: told.append((str(error), seconds)),
        rest=rests.append,
    )
    assert done == "done"
    assert rests == [1, 2, 4, 8, 8, 8]
    assert told == [("away", rest) for rest in rests]


def test_rests_are_spread_within_the_jitter() -> None:
    rests: list[float] = []
    Patience(first_seconds=10.0, longest_seconds=10.0, jitter=0.2).until_done(
        Flaky(200),
        passing=ConnectionError,
        told=lambda *_: None,
        rest=rests.append,
        chance=random.Random(1),
    )
    assert 8.0 <= min(rests) < 8.3
    assert 11.7 < max(rests) <= 12.0


def test_what_does_not_pass_is_raised_at_once() -> None:
    action = Flaky(1, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        Patience().until_done(action, passing=ConnectionError, told=lambda *_: None)
    assert action.tries == 1


def test_the_last_failure_is_raised_when_it_is_time_to_give_up() -> None:
    stop = threading.Event()
    action = Flaky(10**6)

    def told(_error: Exception, _seconds: float) -> None:
        if action.tries == 3:
            stop.set()

    with pytest.raises(ConnectionError, match="away"):
        Patience(first_seconds=0.001, longest_seconds=60.0).until_done(
            action,
            passing=ConnectionError,
            told=told,
            rest=rest_until(stop),
            give_up=stop.is_set,
        )
    assert action.tries == 4


def test_time_that_is_spent_ends_the_trying() -> None:
    action = Flaky(10**6)
    with pytest.raises(ConnectionError):
        Patience(first_seconds=0.01, longest_seconds=0.01, at_most_seconds=0.05).until_done(
            action, passing=ConnectionError, told=lambda *_: None
        )
    assert 2 <= action.tries < 100


def test_tries_are_counted_and_a_failure_may_ask_for_its_own_rest() -> None:
    rests: list[float] = []
    action = Flaky(5)
    with pytest.raises(ConnectionError):
        Patience(first_seconds=1.0, jitter=0.0, at_most_tries=4).until_done(
            action,
            passing=ConnectionError,
            told=lambda *_: None,
            rest=rests.append,
            asked=lambda _failure: 7.0 if len(rests) == 1 else None,
        )
    assert action.tries == 4
    assert rests == [1.0, 7.0, 4.0]
