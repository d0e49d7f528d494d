"""Rules page only on what the judge lets ship, unless the configuration says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.alert.judged import require_judged
from monitor.errors import RefuseToStart
from monitor.settings import DriftRule, DriftSettings, PackSettings, Settings, Thresholds
from monitor.values.features import Feature
from monitor.values.verdicts import Decision, tags_by
from tests.scenes.packs import drawn, feature

VERDICTS: dict[str, Decision] = {"malicious": "ship", "reckless": "watch-only", "odd": "reject"}


def features(verdicts: dict[str, Decision], **tags: tuple[str, ...]) -> list[Feature]:
    return [
        feature(name, drawn(0), tags=tags_by(verdicts.get(name), tags.get(name, ())))
        for name in ("malicious", "reckless", "odd")
    ]


def settings(*selectors: str, allow: bool = False) -> Settings:
    rules: dict[str, Any] = {}
    if selectors:
        severities = {"warning": Thresholds(shift=0.3)}
        rules = {"rules": (DriftRule(name="mine", features=selectors, severities=severities),)}
    return Settings(drift=DriftSettings(**rules), pack=PackSettings(allow_unjudged=allow))


@pytest.fixture(autouse=True)
def _as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONITOR_PACK__ALLOW_UNJUDGED")


def test_the_default_rules_follow_the_verdicts() -> None:
    assert require_judged(settings(), "p", features(VERDICTS), VERDICTS) == ()


def test_a_pack_without_a_report_is_refused_by_the_names_of_rule_and_features() -> None:
    with pytest.raises(RefuseToStart) as refused:
        require_judged(settings(), "p", features({}), {})
    assert str(refused.value).startswith(
        "pack p: rule persona-drift pages on malicious, reckless, odd, of which the pack holds no "
        "judge's verdict"
    )
    assert "monitor pack judge PACK --model PATH --write" in refused.value.hint
    assert "pack.allow_unjudged: true" in refused.value.hint


def test_a_feature_that_the_report_lacks_is_refused_unless_it_is_tagged_watch_only() -> None:
    known: dict[str, Decision] = {"malicious": "ship", "reckless": "ship"}
    with pytest.raises(RefuseToStart, match="pages on odd, of which"):
        require_judged(settings(), "p", features(known), known)
    tagged = features(known, odd=("watch-only",))
    assert require_judged(settings(), "p", tagged, known) == ()


@pytest.mark.parametrize("selector", ["reckless", "reck*", "*"])
def test_a_rule_that_selects_what_does_not_ship_is_refused(selector: str) -> None:
    with pytest.raises(RefuseToStart, match=r"rule mine pages on reckless, .* calls watch-only"):
        require_judged(settings(selector), "p", features(VERDICTS), VERDICTS)


def test_what_is_allowed_is_told() -> None:
    assert require_judged(settings("reckless", allow=True), "p", features(VERDICTS), VERDICTS) == (
        "rule mine pages on reckless, which the pack's judge calls watch-only",
    )
