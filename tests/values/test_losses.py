"""Which records came to nothing, of those that could have given a score."""

from __future__ import annotations

from monitor.values.losses import PASSED_OVER, READ, SCORED, of_reading, of_replaying
from monitor.values.prompts import DeadReason, SkipReason

OUTCOMES = {
    SCORED,
    *(f"dead:{reason.value}" for reason in DeadReason),
    *(f"skipped:{reason.value}" for reason in SkipReason),
}


def test_every_outcome_has_its_place() -> None:
    """Lost where it is read, lost where it is replayed, good, or no exchange at all."""
    lost = {one: (bool(of_reading({one: 1}).reasons), bool(of_replaying({one: 1}).reasons)) for one in OUTCOMES}  # fmt: skip
    assert OUTCOMES >= READ | PASSED_OVER
    at_reading = {one for one, (read, _) in lost.items() if read}
    at_replaying = {one for one, (_, replayed) in lost.items() if replayed}
    assert at_reading.isdisjoint(at_replaying)
    assert OUTCOMES - at_reading - at_replaying == {
        SCORED,
        "skipped:sampled_out",
        "skipped:server_canary",
        "skipped:other_model",
        "skipped:no_answer",
        "skipped:tombstone",
        "skipped:not_a_prompt",
    }
    assert at_replaying == {
        "skipped:nothing_to_read",
        "dead:template_refused",
        "dead:no_tokens",
        "dead:non_finite",
        "dead:out_of_memory",
    }


def test_the_commonest_reason_is_told_first() -> None:
    found = of_reading({SCORED: 5, "dead:empty": 1, "skipped:only_media": 4})
    assert (found.n, found.share) == (10, 0.5)
    assert found.told() == "skipped:only_media 4, dead:empty 1"
