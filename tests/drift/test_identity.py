"""Is what was said what the copy would say: wagers, detectors, and what they promise."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from monitor.drift.identity import HEADROOM, SHARES, evidence, standing, taken_in, wagers
from monitor.values.surprise import (
    GREEDY_RETOLD,
    GREEDY_SLIP,
    OTHER_ANSWERS,
    TILTS,
    IdentityBucket,
    Surprise,
    Tally,
    greedy_bets,
)
from tests.drift import identity_simulation as simulation

MINUTE = timedelta(minutes=1)
START = datetime(2026, 3, 1, tzinfo=UTC)


def surprise(bets, *, law="sampled", tokens=40, counted_bets=None, sharp=False, counted=False):
    return Surprise(
        law=law,
        tokens=tokens,
        excess=0.0,
        variance=1.0,
        peak=0.0,
        off_support=0,
        given_away=0,
        log_bets=np.array(bets, dtype=np.float64),
        counted_bets=None if counted_bets is None else np.array(counted_bets, dtype=np.float64),
        sharp=sharp,
        counted=counted,
    )


def bucket(minute, gain, *, served="llama@1", n=1):
    return IdentityBucket(
        bucket_start=START + minute * MINUTE,
        segment="all",
        source="",
        served=served,
        tally=Tally(n=n),
        wagers=np.full(len(SHARES), float(gain)),
    )


def moved(states, buckets, until, alone=10.0):
    return taken_in(
        states, buckets, until=START + until * MINUTE, begin=START - MINUTE, alone=alone
    )


def test_a_wager_loses_no_more_than_its_share_and_wins_what_the_bets_win():
    lost = wagers(surprise([-50.0] * 5), 0.0)
    assert lost == pytest.approx(np.log1p(-np.array(SHARES)))
    won = wagers(surprise([6.0] * 5), 0.0)
    assert won == pytest.approx(np.log1p(np.array(SHARES) * (math.exp(6.0) - 1)))


def test_the_tolerance_is_taken_off_each_tilt_by_the_token():
    off = np.array(TILTS) * 0.05 * 40
    assert wagers(surprise(off), 0.05) == pytest.approx(wagers(surprise([0.0] * 5), 0.0))
    greedy = wagers(surprise(off, law="greedy"), 0.05)
    untouched = wagers(surprise(off, law="greedy"), 0.0)
    assert greedy == pytest.approx(untouched), "ties have a tolerance of their own"


def test_small_shares_are_wagered_on_answers_that_stand_out_and_the_largest_on_all():
    bets = np.array([0.1, 0.3, 4.0, 6.0, -30.0])
    shares, found = np.array(SHARES), wagers(surprise(bets), 0.0)
    few, all_of_them = np.exp(bets[2:4]).mean(), np.exp(bets).mean()
    assert found[:-1] == pytest.approx(np.log1p(shares[:-1] * (few - 1)))
    assert found[-1] == pytest.approx(np.log1p(shares[-1] * (all_of_them - 1)))


@pytest.mark.parametrize(
    ("said", "pays_less"),
    [
        ({}, False),
        ({"sharp": True}, False),
        ({"counted": True, "sharp": True}, False),
        ({"counted": True}, True),
    ],
    ids=repr,
)
def test_an_answer_of_as_many_tokens_as_the_server_counted_pays_the_lower_price(said, pays_less):
    """But not of a sharp law, under which each token that is split otherwise looks next to impossible."""
    bets, counted_bets = np.full(5, 1.0), np.full(5, 2.0)
    found = wagers(surprise(bets, counted_bets=counted_bets, **said), 0.02)
    assert (found == wagers(surprise(counted_bets, counted=True), 0.02)).all() == pays_less
    assert (found == wagers(surprise(bets, **said), 0.02)).all() != pays_less


def test_an_unchecked_answer_may_be_any_at_all_now_and_then():
    """A share of the answers wins what can be won; the others are fair draws of any law."""
    random = np.random.default_rng(5)
    over = random.normal(0.0, 8.0, size=4_000)
    tilts = np.array(TILTS)
    fair = [surprise(tilts * one - tilts**2 * 32.0, sharp=True) for one in over]
    honest = np.exp([wagers(one, 0.0) for one in fair])
    most = np.exp(wagers(surprise([500.0] * 5, sharp=True), 0.0))
    error = honest.std(axis=0) / len(honest) ** 0.5
    for share in (0.0, OTHER_ANSWERS / 2, OTHER_ANSWERS):
        means = (1 - share) * honest.mean(axis=0) + share * most
        assert (means <= 1.0 + 3 * error).all()
    # And no more is taken off than that: a bet that always wins as fair ones do in the mean.
    even = np.exp(wagers(surprise([0.0] * 5, sharp=True), 0.0))
    assert (1 - OTHER_ANSWERS) * even + OTHER_ANSWERS * most == pytest.approx(1.0)


def test_an_unchecked_greedy_answer_may_be_split_otherwise_in_some_tokens():
    """Measured: one greedy answer in five has two to four such tokens of 48."""
    random = np.random.default_rng(6)
    given_away = random.binomial(48, GREEDY_RETOLD, size=4_000)
    won = np.exp(
        [
            wagers(
                replace(
                    surprise(greedy_bets(int(one), 48, GREEDY_SLIP), law="greedy", tokens=48),
                    given_away=int(one),
                    sharp=True,
                ),
                0.0,
            )
            for one in given_away
        ]
    )
    assert (won.mean(axis=0) <= 1.0 + 3 * won.std(axis=0) / len(won) ** 0.5).all()
    half = surprise(greedy_bets(24, 48, GREEDY_SLIP), law="greedy", tokens=48)
    assert wagers(replace(half, given_away=24, sharp=True), 0.0)[-1] > 3.0


def test_no_bucket_is_taken_in_twice_and_none_is_missed():
    first = moved({}, [bucket(0, 0.5), bucket(1, 0.5)], until=1)
    again = moved(first, [bucket(0, 0.5), bucket(1, 0.5), bucket(2, 0.5)], until=2)
    once = moved({}, [bucket(0, 0.5), bucket(1, 0.5), bucket(2, 0.5)], until=2)
    assert again == once
    (state,) = once.values()
    assert state.n == 3
    assert state.last_bucket == START + 2 * MINUTE
    expected = math.log(sum(math.exp(0.5 * k) for k in (1, 2, 3)))
    assert state.evidence == pytest.approx(expected)


def test_streams_share_the_run_length():
    one = moved({}, [bucket(0, 1.0)], until=0)
    assert next(iter(one.values())).limit == pytest.approx(10.0)
    two = moved(one, [bucket(1, 1.0, served="llama@2")], until=1)
    assert {state.limit for state in two.values()} == {10.0 + math.log(2)}
    assert two["all", "llama@2", ""].started_at == START - MINUTE


def test_evidence_is_held_so_that_it_can_fall_again():
    states = moved({}, [bucket(minute, 5.0) for minute in range(50)], until=49)
    (state,) = states.values()
    assert state.crossed
    assert state.evidence <= state.limit + HEADROOM + math.log(len(SHARES)) + 1e-9
    calm = [
        replace(bucket(50 + minute, 0.0), wagers=100 * np.log1p(-np.array(SHARES)))
        for minute in range(60)
    ]
    (after,) = moved(states, calm, until=110).values()
    assert not after.crossed


def test_evidence_is_the_average_over_the_shares():
    assert evidence(np.log([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(math.log(3.0))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_to_be_needed_vouches(seed):
    """With as many answers more as are asked for, and of the same kind, the interval is inside."""
    random = np.random.default_rng(seed)
    n = int(random.integers(3, 10))
    tally = Tally(n=n, tokens=40 * n, excess=float(random.normal(0, 5)), variance=100.0 * n)
    few = standing(tally, confidence=0.99, within=0.15)
    assert not few.vouched
    assert few.needed is not None
    factor = (n + few.needed) / n
    more = replace(
        tally,
        n=n + few.needed,
        tokens=round(tally.tokens * factor),
        excess=tally.excess * factor,
        variance=tally.variance * factor,
    )
    assert standing(more, confidence=0.99, within=0.15 + 1e-9).vouched


def test_answers_of_one_law_do_not_vouch_for_those_of_another():
    """A cache of greedy answers says nothing of the model that gave the drawn ones."""
    greedy = Tally(n=200, greedy_tokens=8_000, given_away=20)
    drawn = Tally(n=50, tokens=2_000, excess=800.0, variance=2_000.0)
    calm = replace(drawn, excess=4.0)

    def vouched(tally):
        return standing(tally, confidence=0.99, within=0.15).vouched

    assert vouched(greedy)
    assert vouched(greedy + calm)
    assert not vouched(greedy + drawn)
    off = replace(greedy, given_away=2_000)
    assert vouched(calm)
    assert not vouched(off + calm)
    assert not vouched(Tally())


@pytest.mark.parametrize(("retold", "counted"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.slow
def test_the_copy_crosses_in_at_most_its_share_of_runs(alpha, retold, counted):
    highest = simulation.highest(retold=retold, counted=counted)
    assert np.mean(highest >= -math.log(alpha)) <= alpha


@pytest.mark.slow
def test_alarms_come_as_seldom_as_promised_and_soon_when_another_model_speaks():
    assert simulation.alarms(0.0, retold=True).mean() >= simulation.PROMISED
    everywhere, some = simulation.alarms(1.0), simulation.alarms(0.05)
    assert np.median(everywhere) <= 3
    assert np.median(some) < simulation.PROMISED / 2
