"""The verdict over witnesses, and what each witness says of itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitor.drift import cause
from monitor.drift.cause import verdict
from monitor.values.drift import Bound
from monitor.values.scores import CanaryRun, Lineage
from monitor.values.surprise import IdentityState, Tally
from monitor.values.witnesses import Cause, Witness, as_json, sentence
from tests.alert.drifts import drift

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LINEAGE = Lineage(
    pack_id="p",
    model_id="m",
    model_hash="h",
    dtype="float32",
    attention="sdpa",
    device="cpu",
    engine="1",
    rules="{}",
)
COPY_S = Tally(n=100, tokens=4_000, excess=20.0, variance=8_000.0)
"""Answers that are the copy's own: 0.005 nats a token off, +- 0.06 at 99 %."""


def run(reproduced):
    return CanaryRun(
        worker_id="w",
        ran_at=NOW,
        lineage=LINEAGE,
        largest_deviation=0.01 if reproduced else 3.5,
        noise_floor=0.05,
        reproduced=reproduced,
    )


def state_of(evidence, *, limit=15.0, served="llama@1"):
    return IdentityState(
        segment="all",
        served=served,
        started_at=NOW,
        last_bucket=NOW + timedelta(minutes=5),
        n=100,
        log_values=(evidence,) * 5,
        evidence=evidence,
        limit=limit,
    )


def identity(evidence=0.1, tally=COPY_S, prompts=1_000):
    return cause.identity(
        [state_of(evidence)], tally, prompts=prompts, confidence=0.99, within=0.15
    )


def heard(name, finding):
    return Witness(name=name, finding=finding, told=f"{name} {finding}")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, Cause.UNKNOWN),
        ({"canaries": "absent", "identity": "moved"}, Cause.UNKNOWN),
        ({"canaries": "moved", "identity": "moved"}, Cause.INSTRUMENT_SHIFT),
        ({"canaries": "steady"}, Cause.UNKNOWN),
        ({"canaries": "steady", "own_answers": "steady", "labels": "moved"}, Cause.INPUT_SHIFT),
        ({"canaries": "steady", "identity": "moved", "labels": "steady"}, Cause.MODEL_SHIFT),
        ({"canaries": "steady", "identity": "moved", "prompt_side": "moved"}, Cause.MODEL_SHIFT),
        ({"canaries": "steady", "identity": "steady"}, Cause.UNDECIDED),
        ({"canaries": "steady", "identity": "steady", "prompt_side": "steady"}, Cause.UNDECIDED),
        ({"canaries": "steady", "identity": "steady", "prompt_side": "unsure"}, Cause.UNDECIDED),
        ({"canaries": "steady", "identity": "steady", "labels": "moved"}, Cause.UNDECIDED),
        ({"canaries": "steady", "identity": "steady", "prompt_side": "moved"}, Cause.INPUT_SHIFT),
        (
            {"canaries": "steady", "identity": "steady", "prompt_side": "moved", "labels": "moved"},
            Cause.INPUT_SHIFT,
        ),
        ({"canaries": "steady", "identity": "steady", "twin": "steady"}, Cause.INPUT_SHIFT),
        ({"canaries": "steady", "identity": "steady", "twin": "moved"}, Cause.MODEL_SHIFT),
        (
            {"canaries": "steady", "identity": "steady", "server_canaries": "steady"},
            Cause.INPUT_SHIFT,
        ),
        ({"canaries": "steady", "identity": "unsure", "labels": "moved"}, Cause.MODEL_SHIFT),
        ({"canaries": "steady", "identity": "absent", "labels": "moved"}, Cause.MODEL_SHIFT),
        ({"canaries": "steady", "identity": "absent", "prompt_side": "moved"}, Cause.INPUT_SHIFT),
        ({"canaries": "steady", "identity": "unsure", "prompt_side": "moved"}, Cause.INPUT_SHIFT),
        ({"canaries": "steady", "identity": "unsure", "prompt_side": "steady"}, Cause.UNDECIDED),
        ({"canaries": "steady", "identity": "absent", "labels": "steady"}, Cause.UNKNOWN),
    ],
)
def test_the_first_line_that_applies_decides(found, expected):
    given = [heard(name, finding) for name, finding in found.items()]
    made = verdict(given)
    assert made.cause is expected
    assert made.witnesses == tuple(given)


def test_the_sentence_is_made_of_the_witnesses():
    made = verdict(
        [cause.canaries([run(True)]), identity(31.2), cause.labels(["llama@1"], ["llama@1"])]
    )
    assert sentence(made.cause, made.witnesses) == (
        "the served model changed: the canaries read as recorded; answers of llama@1 are not what the"
        " copy would say: evidence 31.2, limit 15.0; the records name the same served model, which a"
        " model replaced in silence would too"
    )
    told = as_json(made.witnesses)["identity"]
    assert (told["finding"], told["evidence"], told["limit"]) == ("moved", 31.2, 15.0)
    assert "told" not in as_json(made.witnesses, told=False)["identity"]


def test_canaries():
    assert cause.canaries([]).finding == "absent"
    assert cause.canaries([run(True)]).finding == "steady"
    assert cause.canaries([run(True), run(False)]).finding == "moved"


@pytest.mark.parametrize(
    ("served", "before", "expected"),
    [
        (["llama@1"], ["llama@1"], "steady"),
        (["llama@1", "llama@2"], ["llama@1"], "moved"),
        (["llama@1"], ["llama@1", "llama@2"], "steady"),
        (["llama@1"], ["@"], "absent"),
        (["@"], ["llama@1"], "absent"),
        ([], [], "absent"),
    ],
)
def test_labels(served, before, expected):
    assert cause.labels(served, before).finding == expected


def test_identity_vouches_only_within_a_bound_that_would_have_shown_a_change():
    found = identity()
    assert found.finding == "steady"
    assert found.figures["surprise"]["high"] < found.figures["within"]
    assert "100 answers are what the copy would say" in found.told
    few = identity(tally=Tally(n=5, tokens=200, excess=1.0, variance=400.0), prompts=50)
    assert few.finding == "unsure"
    # 0.2576 half-width over 5 answers; 0.145 is left: 3.16 times the answers, of which one in ten is weighed.
    assert few.needed == 110
    assert "about 110 more prompts would decide" in few.told


def test_answers_that_are_less_surprising_than_the_copy_s_are_not_vouched_for():
    """A colder server than the settings assume: no alarm, and no voucher either."""
    cold = identity(tally=Tally(n=100, tokens=4_000, excess=-1_200.0, variance=8_000.0))
    assert (cold.finding, cold.needed) == ("unsure", None)
    assert "-0.300 nats a token" in cold.told


def test_no_answer_weighed_is_no_voucher():
    found = identity(tally=Tally(left_out=40))
    assert (found.finding, found.figures["left_out"]) == ("unsure", 40)


def test_greedy_answers_vouch_by_what_they_give_away():
    calm = Tally(n=10, greedy_tokens=400, given_away=2)
    assert identity(tally=calm).finding == "steady"
    assert identity(tally=Tally(n=10, greedy_tokens=400, given_away=30)).finding == "unsure"
    assert identity(tally=Tally(n=1, greedy_tokens=10)).finding == "unsure"


def test_a_crossed_limit_is_moved_whatever_the_mean_says():
    """One answer in a hundred does not move a mean."""
    assert identity(15.0).finding == "moved"
    assert identity(14.9).finding == "unsure"


def test_evidence_on_its_way_keeps_a_quiet_mean_from_vouching():
    """A small share of foreign answers hardly moves the mean: 5 % of them at 1.4 nats a token are 0.07."""
    small = Tally(n=400, tokens=16_000, excess=1_120.0, variance=32_000.0)
    assert identity(7.4, tally=small).finding == "steady"
    found = identity(7.6, tally=small)
    assert (found.finding, found.needed) == ("unsure", None)
    assert found.told == (
        "evidence that another model gave some of the answers is on its way: 7.6, limit 15.0"
    )
    witnesses = [cause.canaries([run(True)]), found, cause.labels(["a@1"], ["a@1"])]
    assert verdict(witnesses).cause is Cause.UNDECIDED


def read(low, high, feature="topic", **changes):
    return [*cause.asked([drift(feature=feature, shift=(low, high), **changes)], {"topic"})]


def expected(low, high):
    """Of a feature that reads answers: what the prompts let expect of it."""
    of_answers = Bound(value=(low + high) / 2, low=low, high=high)
    return read(1.0, 2.0, "toxic", adjusted=True, expected_shift=of_answers)


def prompt_side(asked):
    return cause.prompt_side(asked, 0.99)


def test_the_prompt_side_moves_by_what_it_surely_moved():
    assert prompt_side([]).finding == "absent"
    assert prompt_side(read(0.12, 0.3)).finding == "moved"
    assert prompt_side(read(-0.3, -0.02)).finding == "moved"
    assert prompt_side(read(0.03, 0.09)).finding == "steady", (
        "surely, but by what nobody needs to hear of"
    )
    assert prompt_side(read(-0.05, 0.09)).finding == "steady"
    assert prompt_side(read(-0.05, 0.6)).finding == "unsure"


def test_readings_of_the_prompts_share_the_risk():
    """Of ten that moved by chance one is beyond its own bounds ten times as often."""
    beyond, others = read(0.02, 0.4), 9 * read(-0.1, 0.1)
    assert prompt_side(beyond).finding == "moved"
    found = prompt_side([*beyond, *others])
    assert found.finding == "unsure"
    assert found.figures["shift"]["low"] < 0.0
    assert prompt_side([*read(0.1, 0.3), *others]).finding == "moved"


def test_what_the_prompts_let_expect_of_answers_is_the_prompt_side_too():
    assert read(1.0, 2.0, "toxic") == []
    assert prompt_side(expected(-0.05, 0.09)).finding == "steady"
    found = prompt_side([*read(-0.05, 0.09), *expected(0.2, 0.4)])
    assert found.finding == "moved"
    assert found.told == "what the prompts let expect of toxic moved by +0.30 SD"
    assert found.figures["expected"]
