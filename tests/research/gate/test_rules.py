"""Rules pick features and set margins; what says nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.errors import BadInput
from monitor.research.gate.rules import Margins, parse_rule, watched
from monitor.values.features import Calibration, Feature


def feature(name: str, *tags: str) -> Feature:
    return Feature(
        name=name,
        kind="direction",
        site=0,
        region="response",
        pooling="mean",
        weight=np.ones(1, dtype=np.float32),
        calibration=Calibration(tokens=(1.0,), means=(0.0,), deviations=(1.0,)),
        tags=tags,
    )


FEATURES = (feature("reckless", "misaligned"), feature("reckless.peak", "misaligned"), feature("a"))


def margins(*rules: str) -> dict[int, Margins]:
    return watched(FEATURES, [parse_rule(rule) for rule in rules])


def test_without_rules_everything_is_watched() -> None:
    assert margins() == dict.fromkeys(range(3), Margins(shift=0.3, tail=0.05))


def test_what_is_only_watched_decides_nothing_until_a_rule_names_it() -> None:
    features = (*FEATURES, feature("sarcastic", "watch-only"))
    assert watched(features, []) == margins()
    assert watched(features, [parse_rule("sarcastic tail=off")])[3] == Margins(tail=None)


def test_the_last_rule_for_a_feature_holds_and_leaves_what_it_does_not_name() -> None:
    found = margins("tag:misaligned shift=0.2", "*.peak tail=off", "reckless tail=0.01", "a ignore")
    assert found == {0: Margins(shift=0.2, tail=0.01), 1: Margins(shift=0.2, tail=None)}
    assert margins("* ignore", "a shift=1") == {2: Margins(shift=1.0, tail=0.05)}
    assert margins("a tail=off", "a tail=0.1")[2].tail == 0.1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "says nothing"),
        ("reckless", "says nothing"),
        ("reckless mean=1", "'mean=1' is unknown"),
        ("reckless ignored", "'ignored' is unknown"),
        ("reckless shift=", "is no margin"),
        ("reckless shift=0", "is no margin"),
        ("reckless shift=nan", "is no margin"),
        ("reckless shift=inf", "is no margin"),
        ("reckless tail=1", "above 0 and below 1"),
        ("reckless ignore shift=1", "contradicts itself"),
        ("reckless tail=off tail=0.1", "contradicts itself"),
    ],
)
def test_nonsense_is_refused_with_the_form(rule: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        parse_rule(rule)
    assert "SELECTOR" in refused.value.hint


def test_a_rule_must_pick_something() -> None:
    with pytest.raises(BadInput, match=r"'rekless' picks no feature") as refused:
        margins("rekless shift=1")
    assert "reckless.peak" in refused.value.hint
    with pytest.raises(BadInput, match="no feature of the pack is watched"):
        margins("* ignore")
