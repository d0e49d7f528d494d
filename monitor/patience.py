"""Waiting for what passes by itself: one backoff for everything in the monitor that tries again.

A policy says how long to rest between two tries and when to give up; the loops say what is tried and
what each failure is told as. Built on tenacity.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Rests of ``first_seconds``, doubled after each failure up to ``longest_seconds``.

    Each rest is stretched or shortened by up to ``jitter`` of itself, so that replicas that failed
    together do not come back together. ``at_most_seconds`` bounds the time spent before the last try,
    ``at_most_tries`` their number.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    jitter: float = 0.2
    at_most_seconds: float = math.inf
    at_most_tries: float = math.inf

    def until_done(
        self,
        action: Callable[[], Result],
        *,
        passing: type[Exception] | tuple[type[Exception], ...],
        told: Callable[[Exception, float], None],
        rest: Callable[[float], None] = time.sleep,
        give_up: Callable[[], bool] = lambda: False,
        asked: Callable[[Exception], float | None] = lambda failure: None,
        chance: random.Random | None = None,
    ) -> Result:
        """The result of ``action``, tried again while it raises one of ``passing``.

        ``told`` gets every failure with the rest before the next try, in seconds. The last failure is
        raised once ``give_up()`` is true after it, or time or tries are spent; other exceptions at
        once. ``asked`` gives the seconds that a failure itself asks for, in place of the policy's.
        """
        chance = chance or random.Random()

        def seconds(state: tenacity.RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            wanted = asked(failure) if isinstance(failure, Exception) else None
            if wanted is not None:
                return wanted
            plain = min(
                self.first_seconds * 2.0 ** min(state.attempt_number - 1, 60), self.longest_seconds
            )
            return plain * chance.uniform(1.0 - self.jitter, 1.0 + self.jitter)

        def spent(state: tenacity.RetryCallState) -> bool:
            return (
                give_up()
                or state.attempt_number >= self.at_most_tries
                or (state.seconds_since_start or 0.0) > self.at_most_seconds
            )

        def tell(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, Exception):
                told(error, round(state.upcoming_sleep, 1))

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(passing),
            wait=seconds,
            stop=spent,
            sleep=rest,
            before_sleep=tell,
            reraise=True,
        )(action)


def rest_until(stop: threading.Event) -> Callable[[float], None]:
    """A rest that ends early when ``stop`` is set."""

    def rest(seconds: float) -> None:
        stop.wait(seconds)

    return rest
