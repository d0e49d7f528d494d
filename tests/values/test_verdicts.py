"""What of a report is a verdict, and what follows for the tags by which rules select."""

from __future__ import annotations

from typing import Any

from monitor.values.verdicts import DECISIONS, tags_by, verdicts


def judged(**decisions: str) -> dict[str, Any]:
    features = {name: {"decision": decision} for name, decision in decisions.items()}
    return {"judge": {"decision": "ship", "features": features}}


def test_a_report_without_a_judge_holds_no_verdict() -> None:
    assert verdicts({}) == {}
    assert verdicts({"features": {"a": {"auc": 1.0}}}) == {}


def test_those_of_sources_count_and_a_joined_packs_own_go_before_them() -> None:
    sources = {"one": judged(a="ship", b="reject"), "two": judged(c="watch-only"), "three": {}}
    assert verdicts({"sources": sources}) == {"a": "ship", "b": "reject", "c": "watch-only"}
    assert verdicts({"sources": sources, **judged(a="reject")})["a"] == "reject"
    assert verdicts({"sources": {"pair": {"sources": sources}}})["c"] == "watch-only"


def test_what_was_judged_and_does_not_ship_is_watch_only() -> None:
    assert DECISIONS == ("reject", "watch-only", "ship")
    assert tags_by("watch-only", ["misaligned"]) == ("misaligned", "watch-only")
    assert tags_by("reject", ["watch-only"]) == ("watch-only",)
    assert tags_by("ship", ["misaligned"]) == ("misaligned",)
    assert tags_by("ship", ["style", "watch-only"]) == ("style", "watch-only")
    assert tags_by(None, ["misaligned"]) == ("misaligned",)
