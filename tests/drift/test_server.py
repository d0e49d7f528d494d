"""The test on a server's answers: what one answer shows, what all of them add up to, what is promised."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.stats import binom

from monitor.drift import server
from monitor.drift.cause import verdict
from monitor.values.server_canaries import (
    AnswerView,
    ServedAnswer,
    ServedToken,
    ServerRound,
    ServerStanding,
)
from monitor.values.witnesses import Cause, Witness
from tests.drift.server_simulation import EVERY, HORIZON, delay, share_of_alarms

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


def view(*, away=(0.0, 0.0, 0.0), noise=0.01, texts=("a", "b", "c")):
    t = len(texts)
    return AnswerView(
        texts=texts,
        first="a" if away[0] == 0.0 else "z",
        log_probs=np.full(t, -0.5),
        noise=np.full(t, noise),
        away=np.array(away),
        away_noise=np.full(t, noise),
        top_texts=tuple((text, "y", "x") for text in texts),
        top_log_probs=np.tile([-0.5, -1.5, -9.0], (t, 1)),
        top_noise=np.full((t, 3), noise),
    )


def answer(*, off=0.0, texts=("a", "b", "c"), **changes):
    """Log-probabilities of all tokens lie ``off`` the copy's."""
    tokens = tuple(
        ServedToken(text=text, log_prob=-0.5 + off, top={text: -0.5 + off, "y": -1.5 - off})
        for text in texts
    )
    return ServedAnswer(**{"text": "".join(texts), "tokens": tokens} | changes)


def test_a_token_that_the_copy_would_not_say_counts_by_its_margin():
    said = answer(tokens=())
    found = server.deviation(view(away=(0.0, 0.2, 0.0)), said, numerics=1.0)
    assert (found.nats, found.tolerances) == pytest.approx((0.2, 0.2 / (4 * 0.01)))
    assert not found.other_first
    assert not found.with_log_probs
    within = server.deviation(view(away=(0.03, 0.0, 0.0)), said, numerics=1.0)
    assert within.tolerances < 1
    assert within.other_first


def test_log_probabilities_count_where_they_are_told():
    assert server.deviation(view(), answer(off=0.03), numerics=1.0).tolerances < 1
    found = server.deviation(view(), answer(off=0.06), numerics=1.0)
    assert found.tolerances == pytest.approx(0.06 / 0.04)
    assert found.with_log_probs
    assert server.deviation(view(), answer(off=0.06), numerics=2.0).tolerances < 1


def test_a_server_that_tells_zeros_tells_nothing():
    zeros = answer(tokens=tuple(ServedToken(text=text, log_prob=0.0) for text in "abc"))
    found = server.deviation(view(), zeros, numerics=1.0)
    assert (found.tolerances, found.with_log_probs) == (0.0, False)


def test_tokens_that_the_text_does_not_show_are_not_held_against_the_server():
    """The text was split otherwise than it was said: only what both have at their places counts."""
    other = answer(texts=("a", "bc"))
    assert server.deviation(view(away=(0.0, 5.0, 5.0)), other, numerics=1.0).tolerances < 1
    counted = answer(tokens=(), completion_tokens=2)
    ended = view(away=(0.0, 0.0, 5.0))
    assert server.deviation(ended, counted, numerics=1.0).tolerances > 1  # the end of the turn
    assert server.deviation(ended, replace(counted, completion_tokens=7), numerics=1.0).nats == 0


@pytest.mark.parametrize(("finish", "held"), [("length", False), ("stop", True)])
def test_a_last_token_that_was_split_otherwise_is_not_held_against_the_server(finish, held):
    """A limit cuts a word in two, and read back it is one; only the end of a turn may go untold."""
    shown = view(away=(0.0, 0.0, 0.5), texts=("a", "b", "cd"))
    said = answer(texts=("a", "b", "c", "d"), finish_reason=finish)
    assert (server.deviation(shown, said, numerics=1.0).tolerances > 1) == held


def test_blanks_may_be_spelled_in_other_ways():
    spelled = answer(off=0.06, texts=(" a", "\N{LOWER ONE EIGHTH BLOCK}b", "\u0120c"))
    assert server.deviation(view(), spelled, numerics=1.0).with_log_probs


def test_evidence_is_the_exact_tail():
    for k, n in ((1, 8), (4, 8), (6, 32), (32, 32)):
        assert server.evidence(k, n) == pytest.approx(-binom.logsf(k - 1, n, server.SLIP))
    assert server.evidence(0, 32) == 0.0


def test_the_limit_shares_the_risk_among_the_rounds_of_the_horizon():
    assert server.limit(risk=0.01, every=EVERY, horizon=HORIZON) == pytest.approx(
        -math.log(0.01 / 720)
    )
    assert server.limit(risk=0.01, every=2 * HORIZON, horizon=HORIZON) == pytest.approx(
        -math.log(0.01)
    )


@pytest.mark.parametrize("same", [1.0, 0.9, 0.0])
def test_a_server_that_is_the_copy_is_accused_at_the_stated_risk_at_most(same):
    for risk in (0.05, 0.01):
        assert share_of_alarms(1, risk=risk, same=same) <= risk


def test_a_change_is_seen_in_the_round_after_it():
    assert delay(1, 1.0) == 1
    assert delay(1, 0.5) <= 3


def rounds(*, beyond=0, compared=8, compared_beyond=0, asked_at=NOW, evidence=None):
    found = ServerRound(
        pack_id="p",
        set_id="s",
        served="tiny",
        asked_at=asked_at,
        asked=compared,
        compared=compared,
        compared_beyond=compared_beyond,
        questions=32,
        beyond=beyond,
        evidence=server.evidence(beyond, 32) if evidence is None else evidence,
        limit=server.limit(risk=0.01, every=HOUR, horizon=HORIZON),
        moved={"toxic": 1.25, "calm": -0.1},
    )
    return ServerStanding(concluded=found)


def heard(standing, *, since=NOW - HOUR):
    return server.witness(standing, since=since, counts_from=NOW - 6 * HOUR, confidence=0.99)


def test_what_the_witness_says():
    moved = heard(rounds(beyond=20, compared_beyond=8))
    assert moved.finding == "moved"
    assert "tiny answers 20 of 32 fixed questions otherwise" in moved.told
    assert moved.figures["towards"] == {"toxic": 1.25, "calm": -0.1}
    assert heard(rounds()).finding == "steady"
    assert heard(rounds(compared=3)).finding == "unsure"
    assert heard(rounds(beyond=3, compared_beyond=3)).finding == "unsure"


def test_a_round_from_before_vouches_for_nothing_that_began_since():
    early = rounds(asked_at=NOW - 2 * HOUR)
    assert heard(early).finding == "unsure"
    assert "not since this began" in heard(early).told
    accused = rounds(beyond=20, asked_at=NOW - 2 * HOUR)
    assert heard(accused).finding == "moved"
    assert heard(rounds(beyond=20, asked_at=NOW - 7 * HOUR)).finding == "absent"


def test_a_server_that_is_away_says_nothing_of_itself():
    found = heard(ServerStanding(problem="it does not answer"))
    assert found.finding == "absent"
    assert "it does not answer" in found.told


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"server_canaries": "moved"}, Cause.MODEL_SHIFT),
        ({"server_canaries": "moved", "identity": "steady"}, Cause.MODEL_SHIFT),
        ({"server_canaries": "moved", "own_answers": "steady"}, Cause.INPUT_SHIFT),
        ({"server_canaries": "steady", "labels": "steady"}, Cause.INPUT_SHIFT),
        ({"server_canaries": "steady", "identity": "moved"}, Cause.MODEL_SHIFT),
        ({"server_canaries": "steady", "labels": "moved"}, Cause.MODEL_SHIFT),
        ({"server_canaries": "steady", "identity": "unsure"}, Cause.INPUT_SHIFT),
        ({"server_canaries": "unsure", "prompt_side": "moved"}, Cause.INPUT_SHIFT),
        ({"server_canaries": "unsure", "identity": "absent"}, Cause.UNDECIDED),
        ({"server_canaries": "absent", "labels": "steady"}, Cause.UNKNOWN),
    ],
)
def test_where_the_witness_stands_among_the_others(found, expected):
    given = {"canaries": "steady", **found}
    assert verdict([Witness(name=n, finding=f, told=n) for n, f in given.items()]).cause is expected
