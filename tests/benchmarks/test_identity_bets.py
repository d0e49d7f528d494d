"""The benchmarks of identity bet as the watcher does, and their published tests hold their level."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks.identity.bets import first_alarm, first_crossing, highest
from benchmarks.identity.questions import questions
from monitor.drift.identity import SHARES, taken_in
from monitor.values.surprise import IdentityBucket, Tally

MINUTE = timedelta(minutes=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 6.0


def gains(seed, minutes=300):
    """Minutes that win now and then, as a small share of foreign answers does."""
    random = np.random.default_rng(seed)
    won = np.log1p(np.array(SHARES) * random.exponential(12.0, size=(minutes, 1)))
    lost = np.log1p(-np.array(SHARES)) * 4
    return np.where(random.random((minutes, 1)) < 0.2, won, 0.0) + lost


def test_alarms_come_when_the_watchers_test_crosses():
    for seed in range(20):
        won = gains(seed)
        states, alarm = {}, -1
        for minute, gained in enumerate(won):
            at = START + minute * MINUTE
            bucket = IdentityBucket(
                bucket_start=at,
                segment="all",
                source="t/0",
                served="@",
                tally=Tally(n=4),
                wagers=gained,
            )
            states = taken_in(states, [bucket], until=at, begin=at - MINUTE, alone=LIMIT)
            if states["all", "@", ""].crossed:
                alarm = minute + 1
                break
        assert first_alarm(won[None], LIMIT)[0] == alarm


def test_the_e_process_is_looked_at_after_every_answer():
    won = gains(3)
    totals = np.logaddexp.reduce(won.cumsum(axis=0), axis=1) - math.log(len(SHARES))
    assert highest(won[None])[0] == totals.max()
    crossed = first_crossing(won[None], totals.max())[0]
    assert totals[crossed - 1] == totals.max()
    assert first_crossing(won[None], totals.max() + 1)[0] == -1


def test_every_question_is_asked_once_and_always_in_the_same_order():
    once, again = questions(), questions()
    assert [one.prompt.messages for one in once] == [one.prompt.messages for one in again]
    assert len({(one.topic, one.prompt.messages) for one in once}) == len(once)
    assert len({one.topic for one in once}) >= 8
    assert all(one.prompt.response is None for one in once)
