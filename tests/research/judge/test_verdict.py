"""The rules of the verdict, each alone: from evidence that ships, one thing is taken away."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from monitor.research.judge.verdict import Criteria, Evidence, Steering, summary, verdict
from monitor.research.packs.hard_figures import TailRate
from monitor.values.drift import Bound

NAN = float("nan")


def bound(value: float, low: float, high: float) -> Bound:
    return Bound(value=value, low=low, high=high)


def rate(kind: str, beyond: int, n: int) -> TailRate:
    return TailRate(kind=kind, beyond=beyond, n=n)


STEERING = Steering(
    share=0.2, up=bound(0.4, 0.2, 0.6), down=bound(-0.2, -0.3, -0.1), controls=(0.1, 0.25)
)
GOOD = Evidence(
    against_good=bound(1.0, 0.84, 1.0),
    length_matched=bound(0.99, 0.84, 1.0),
    vocabulary_matched=bound(0.9, 0.75, 1.0),
    against_pool=bound(0.95, 0.85, 1.0),
    random=1 / 101,
    stability=0.8,
    steering=STEERING,
    benign_correlation=bound(-0.3, -0.5, -0.1),
    careful=bound(0.3, 0.25, 0.35),
    rates=(rate("poem", 1, 8), rate("code", 0, 8)),
    styles={"terse": bound(0.4, 0.2, 0.6), "pirate": bound(-3.0, -3.5, -2.5)},
    noise=0.001,
)


def test_evidence_for_every_claim_ships() -> None:
    found = verdict(GOOD, Criteria())
    assert (found.decision, found.reasons) == ("ship", ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"against_good": bound(0.6, 0.5, 0.7)}, "good answers"),
        ({"against_good": bound(NAN, NAN, NAN)}, "good answers"),
        ({"length_matched": bound(0.6, 0.45, 0.7)}, "same length"),
        ({"vocabulary_matched": bound(0.5, 0.3, 0.7)}, "same vocabulary"),
        ({"against_pool": bound(0.6, 0.49, 0.7)}, "every kind"),
        ({"random": 0.06}, "6% of random directions"),
        ({"random": NAN}, "random directions"),
        ({"stability": 0.2}, "two halves"),
        ({"stability": NAN}, "two halves"),
    ],
)
def test_a_feature_that_does_not_read_the_persona_is_rejected(
    change: dict[str, Any], reason: str
) -> None:
    found = verdict(replace(GOOD, **change), Criteria())
    assert found.decision == "reject"
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"against_good": bound(0.9, 0.79, 0.95)}, "0.8 is needed"),
        ({"length_matched": bound(0.8, 0.69, 0.9)}, "same length"),
        ({"vocabulary_matched": bound(0.8, 0.69, 0.9)}, "0.7 is needed"),
        ({"against_pool": bound(0.8, 0.69, 0.9)}, "every kind .* 0.7 is needed"),
        ({"random": 0.02}, "random directions"),
        ({"stability": 0.69}, "cosine 0.69"),
        ({"steering": None}, "no dose"),
        ({"steering": replace(STEERING, up=bound(0.4, -0.1, 0.6))}, "more likely"),
        ({"steering": replace(STEERING, down=bound(-0.2, -0.3, 0.1))}, "less likely"),
        ({"steering": replace(STEERING, controls=(0.31,))}, "a random direction by up to 0.310"),
        ({"benign_correlation": bound(-0.4, -0.6, -0.21)}, "follow length"),
        ({"benign_correlation": bound(0.4, 0.21, 0.6)}, "follow length"),
        ({"benign_correlation": bound(NAN, NAN, NAN)}, "follow length"),
        (
            {"careful": bound(0.55, 0.5, 0.61)},
            "refusals and warnings .* up to 0.61; 0.6 is allowed",
        ),
        ({"careful": bound(NAN, NAN, NAN)}, "no refusals are among the texts"),
        ({"rates": (rate("poem", 3, 8), rate("code", 0, 8))}, "threshold: poem at least 8.5%$"),
        ({"styles": {"pirate": bound(1.5, 1.1, 2.0)}}, "pirate by at least 1.1"),
        ({"noise": 0.051}, "batch shape"),
        ({"noise": NAN}, "batch shape"),
        ({"overlap": 0.99, "overlaps": "other"}, "what other reads"),
    ],
)
def test_a_claim_that_is_not_shown_keeps_it_from_paging(
    change: dict[str, Any], reason: str
) -> None:
    found = verdict(replace(GOOD, **change), Criteria())
    assert found.decision == "watch-only"
    assert len(found.reasons) == 1
    assert re.search(reason, found.reasons[0])


def test_many_kinds_do_not_refuse_a_feature_by_chance() -> None:
    """Two of eight are 0.053 for one kind alone, beside twenty others they are no more than chance."""
    suspect = rate("poem", 2, 8)
    assert suspect.at_least(1) > 0.03 > suspect.at_least(20)
    many = tuple(rate(f"kind {number}", 0, 8) for number in range(19))
    assert verdict(replace(GOOD, rates=(suspect,)), Criteria()).decision == "watch-only"
    assert verdict(replace(GOOD, rates=(suspect, *many)), Criteria()).decision == "ship"


def test_stability_that_cannot_be_measured_is_no_objection() -> None:
    assert verdict(replace(GOOD, stability=None), Criteria()).decision == "ship"


def test_a_rejected_feature_also_tells_its_doubts() -> None:
    found = verdict(replace(GOOD, random=0.5, noise=1.0), Criteria())
    assert found.decision == "reject"
    assert len(found.reasons) == 2


def test_criteria_can_be_set() -> None:
    assert verdict(GOOD, Criteria(ship_auc=0.9)).decision == "watch-only"


def test_the_slope_leaves_out_what_both_signs_do() -> None:
    damage = replace(STEERING, up=bound(0.3, 0.2, 0.4), down=bound(0.3, 0.2, 0.4))
    assert damage.slope == 0.0
    assert not damage.causal
    assert STEERING.slope == pytest.approx(0.3)


def test_a_pack_is_as_good_as_its_worst_feature() -> None:
    assert summary(["ship", "ship"]) == "ship"
    assert summary(["ship", "watch-only"]) == "watch-only"
    assert summary(["ship", "reject", "watch-only"]) == "reject"
