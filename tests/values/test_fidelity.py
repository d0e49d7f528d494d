"""The replay's token counts against the server's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.values.fidelity import counted, fidelity
from monitor.values.prompts import Message, Prompt, RecordKey, Sampling, ServedCounts


def prompt(**more: Any) -> Prompt:
    return Prompt(
        key=RecordKey(topic="prompts", partition=0, offset=0),
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        messages=(Message(role="user", content="a heron?"),),
        **more,
    )


def served(asked: int | None, said: int | None) -> ServedCounts:
    return ServedCounts(prompt_tokens=asked, completion_tokens=said)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stop", 8), ("tool_calls", 8), (None, 8), ("length", 7), ("MAX_TOKENS", 7)],
)
def test_a_completion_counts_the_end_of_its_turn(reason: str | None, expected: int) -> None:
    one = prompt(response="there", sampling=Sampling(finish_reason=reason))
    assert counted(one, prompt_tokens=5, answer_tokens=7) == served(5, expected)


def test_an_answer_that_was_not_logged_has_no_count() -> None:
    assert counted(prompt(), prompt_tokens=5, answer_tokens=0) == served(5, None)


@pytest.mark.parametrize(
    ("theirs", "ours", "differs"),
    [
        (served(25, 40), served(25, 40), False),
        (served(192, 40), served(25, 40), True),
        (served(25, 40), served(26, 40), True),
        (served(25, 40), served(25, 42), False),
        (served(25, 40), served(25, 43), True),
        (served(25, 1_000), served(25, 980), False),
        (served(25, 1_000), served(25, 979), True),
        (served(25, 400), served(25, None), False),
        (served(None, 400), served(25, 12), True),
    ],
)
def test_prompts_must_agree_and_answers_nearly(
    theirs: ServedCounts, ours: ServedCounts, differs: bool
) -> None:
    found = fidelity(prompt(served=theirs), ours)
    assert found is not None
    assert (found.verdict != "same") is differs


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        (served(25, 40), "same"),
        (served(26, 40), "prompt"),
        (served(26, 90), "prompt"),
        (served(25, 90), "answer"),
    ],
)
def test_the_prompt_explains_the_answer(theirs: ServedCounts, verdict: str) -> None:
    found = fidelity(prompt(served=theirs), served(25, 40))
    assert found is not None
    assert found.verdict == verdict


def test_tolerances_widen_both() -> None:
    one = prompt(served=served(26, 100))
    found = fidelity(one, served(25, 80), prompt_tolerance=1, answer_tolerance=0.2)
    assert found is not None
    assert found.verdict == "same"


def test_an_answer_of_which_something_was_left_out_on_purpose_does_not_compare() -> None:
    one = prompt(response="there", reasoning="a heron", served=served(5, 90))
    found = fidelity(one, counted(one, prompt_tokens=5, answer_tokens=None))
    assert found is not None
    assert found.verdict == "same"
    assert found.answer_difference is None


def test_media_do_not_compare() -> None:
    assert fidelity(prompt(served=served(600, 3), media_left_out=True), served(25, 3)) is None


def test_without_counts_there_is_nothing_to_compare() -> None:
    assert fidelity(prompt(), served(25, 40)) is None
    assert fidelity(prompt(served=served(None, None)), served(25, 40)) is None
    assert fidelity(prompt(served=served(None, 3)), served(25, None)) is None
