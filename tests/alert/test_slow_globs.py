"""Globs made to be slow, on names that make them so: rules, silences and selections go through the same matching."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitor.alert.policy import is_silenced
from monitor.alert.selection import _can_match_behind
from monitor.ingest.fields import NAME_LIMIT
from monitor.values.alerts import Silence
from monitor.values.features import selected

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SLOW = ("*a" * 100 + "b", "?*" * 100 + "b", "[a-z]*" * 100 + "0", "*" * 10_000 + "b", "[" * 5_000)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pattern", SLOW, ids=lambda pattern: pattern[:8])
def test_a_hundred_stars_cost_no_more_than_one(pattern: str) -> None:
    name = "a" * NAME_LIMIT
    silence = Silence(
        silence_id="s",
        matchers={"segment": pattern},
        starts_at=NOW,
        ends_at=NOW + timedelta(hours=1),
        created_by="x",
        comment="",
    )
    assert not is_silenced({"segment": name}, [silence], NOW)
    assert not selected(pattern, name, ())
    _can_match_behind(f"{name}=", pattern)
