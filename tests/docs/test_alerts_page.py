"""docs/alerts.md: the payload that it shows is the one that is sent, sentence by sentence."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from monitor.alert import sentences
from monitor.alert.policy import conditions, event_of, transition, with_prompts
from monitor.alert.render import render
from monitor.settings import Endpoint
from monitor.values.alerts import Alert
from monitor.values.drift import Bound
from tests.alert.drifts import drift, feature, rule

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HELD = drift(
    shift=(0.84, 1.02),
    n=1_240,
    tail_rate=0.061,
    baseline_tail_rate=0.0021,
    tail_ratio=Bound(value=29.0, low=21.4, high=39.9),
)
CALM = drift(shift=(-0.05, 0.15), n=1_180, tail_rate=0.0025, baseline_tail_rate=0.0021)


def told() -> list[dict[str, Any]]:
    """What an endpoint gets when the example's drift comes, and when it went."""
    endpoint = Endpoint(name="ops", url="https://ops/", secret="whsec_" + "QUFB" * 8)
    alert: Alert | None = None
    bodies = []
    for seen in (HELD, CALM):
        (found,) = conditions([seen], [rule("persona-drift", **{"for": timedelta(0)})], [feature()])
        found = with_prompts(found, [{"prompt_id": "p", "score": 9.4}])
        alert, announced = transition(alert, found, NOW, silenced=False)
        assert alert is not None
        assert announced is not None
        event = event_of(alert, announced, NOW)
        sent = render(event, endpoint, external_url="https://monitor", attempt_at=NOW)
        bodies.append(json.loads(sent.body))
    return bodies


def test_the_example_has_the_keys_and_sentences_of_a_payload() -> None:
    shown = json.loads(PAGE.partition("```json\n")[2].partition("```")[0])
    sent, _ = told()
    assert set(shown) == set(sent)
    assert set(shown["data"]) == set(sent["data"])
    assert set(shown["data"]["details"]) == set(sent["data"]["details"])
    assert shown["data"]["summary"] == sent["data"]["summary"]
    assert shown["data"]["details"]["verdict"] == sent["data"]["details"]["verdict"]
    assert shown["data"]["details"]["witnesses"] == sent["data"]["details"]["witnesses"]
    assert shown["data"]["details"]["crossed"] == sent["data"]["details"]["crossed"]
    assert set(shown["data"]["details"][sentences.WHEN_FIRED]) <= set(
        sent["data"]["details"][sentences.WHEN_FIRED]
    )


def test_the_resolution_is_told_as_the_page_says() -> None:
    quoted = re.findall(r"^> (.*)$", PAGE, flags=re.MULTILINE)
    _, resolved = told()
    assert " ".join(quoted) == resolved["data"]["summary"]
