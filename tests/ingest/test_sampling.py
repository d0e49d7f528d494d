from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from monitor.ingest.sampling import answer_wanted, labelled, sample, segments_of
from monitor.values.prompts import Prompt, RecordKey, Skip, SkipReason

AT = datetime(2026, 3, 1, tzinfo=UTC)


def prompt(offset: int, conversation_id: str | None = None, **fields: Any) -> Prompt:
    return Prompt(
        key=RecordKey(topic="prompts", partition=0, offset=offset),
        recorded_at=AT,
        text="x",
        conversation_id=conversation_id,
        **fields,
    )


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("by", ["conversation_id", "prompt_id", "key"])
def test_the_rate_is_kept(rate: float, by: str) -> None:
    """Within five deviations of a binomial; the hash is fixed, so this holds or never does."""
    n = 20_000
    prompts = (prompt(i) if by == "key" else prompt(i, **{by: f"id-{i}"}) for i in range(n))
    kept = sum(isinstance(sample(one, rate), Prompt) for one in prompts)
    assert abs(kept - n * rate) < 5 * math.sqrt(n * rate * (1 - rate))


def test_a_conversation_is_kept_or_dropped_whole() -> None:
    for c in range(200):
        decisions = {
            isinstance(sample(prompt(i, f"c-{c}", prompt_id=f"p-{c}-{i}"), 0.5), Prompt)
            for i in range(5)
        }
        assert len(decisions) == 1


def test_a_higher_rate_keeps_what_a_lower_one_kept() -> None:
    for i in range(500):
        kept = [isinstance(sample(prompt(i, f"c-{i}"), rate), Prompt) for rate in (0.2, 0.6, 1.0)]
        assert kept == sorted(kept)
        assert kept[-1]


def test_the_probability_is_multiplied() -> None:
    kept = [
        one
        for i in range(100)
        if isinstance(one := sample(prompt(i, inclusion_probability=0.5), 0.25), Prompt)
    ]
    assert kept
    assert {one.inclusion_probability for one in kept} == {0.125}


def test_what_is_dropped_says_so() -> None:
    dropped = [one for i in range(100) if isinstance(one := sample(prompt(i), 0.01), Skip)]
    assert {one.reason for one in dropped} == {SkipReason.SAMPLED_OUT}
    assert {one.recorded_at for one in dropped} == {AT}


def test_an_upstream_sampler_on_the_same_id_does_not_bias_ours() -> None:
    """Of what plain BLAKE2b of the id put in its lower tenth, we keep our own half, not all."""
    ids = [f"c-{i}" for i in range(20_000)]
    upstream = [
        i
        for i in ids
        if hashlib.blake2b(i.encode(), digest_size=8).digest() < b"\x1a" + b"\x00" * 7
    ]
    kept = sum(isinstance(sample(prompt(0, i), 0.5), Prompt) for i in upstream)
    assert abs(kept / len(upstream) - 0.5) < 0.06


def test_segments() -> None:
    one = prompt(0, segment={"route": "/chat", "tenant": "a=b", "unused": "x"})
    keys = ("tenant", "route", "absent")
    assert labelled(one, keys) == ("tenant=a=b", "route=/chat")
    assert segments_of(one, keys, lambda _: True) == ("all", "tenant=a=b", "route=/chat")
    assert segments_of(one, keys, {"route=/chat"}.__contains__) == (
        *("all", "tenant=(other)", "route=/chat"),
    )


def test_a_share_is_answered_in_whole_conversations_independent_of_what_is_sampled() -> None:
    prompts = [prompt(i, f"c-{i // 2}") for i in range(20_000)]
    wanted = [answer_wanted(one, 0.2) for one in prompts]
    assert wanted[::2] == wanted[1::2]
    # Conversations are the draws; five deviations.
    assert abs(sum(wanted) / 2 - 2_000) < 5 * math.sqrt(10_000 * 0.2 * 0.8)
    kept = [isinstance(sample(one, 0.2), Prompt) for one in prompts]
    both = sum(a and b for a, b in zip(wanted, kept, strict=True)) / 2
    assert abs(both - 400) < 5 * math.sqrt(10_000 * 0.04 * 0.96)
    assert not any(answer_wanted(one, 0.0) for one in prompts)
    assert all(answer_wanted(one, 1.0) for one in prompts)
    fewer = [answer_wanted(one, 0.05) for one in prompts]
    assert all(more for more, less in zip(wanted, fewer, strict=True) if less)
