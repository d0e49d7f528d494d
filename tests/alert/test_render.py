"""Every payload keeps its receiver's schema and size, says what happened, and injects nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.alert.policy import conditions, event_of, transition
from monitor.alert.render import BODY_LIMIT, mrkdwn, render
from monitor.settings import Endpoint
from monitor.values.alerts import Alert, AlertState, Event, EventType, Severity
from tests.alert.drifts import drift, feature, rule
from tests.scenes.examples import examples

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
FORMATS = ["standard", "alertmanager", "alertmanager_api", "pagerduty", "slack", "cloudevents"]
SCHEMAS = json.loads((Path(__file__).parent / "payload_schemas.json").read_text())
SECRET = "whsec_" + "QUFB" * 8

DETAILS = {
    "meaning": "Insults and threats.",
    "window": "15m",
    "verdict": "the canaries read as recorded: the traffic changed",
    "cause": "input_shift",
    "shift": {"value": 0.5, "low": 0.4, "high": 0.6},
    "baseline": {"id": "b-1", "n": 5000, "mean": 0.01},
    "current": {"n": 800, "mean": 0.52},
    "strongest_prompts": [{"prompt_id": f"p-{i}", "score": 9.0 - i} for i in range(8)],
    "query": "SELECT * FROM drift_history WHERE feature = 'toxic'",
    "shown_by": ["15m"],
}


def alert(**changes: Any) -> Alert:
    given: dict[str, Any] = {
        "alert_id": "0d6f0c1e-8a50-5f0e-9f0a-0f6d3b3a2f11",
        "dedupe_key": "drift/pack-1/toxic/all",
        "rule": "persona-drift",
        "kind": "drift",
        "severity": "warning",
        "state": AlertState.FIRING,
        "summary": "toxic rose over 15m: mean +0.50 SD [+0.40, +0.60]",
        "labels": {"kind": "drift", "rule": "persona-drift", "feature": "toxic", "segment": "all"},
        "details": DETAILS,
        "pending_since": NOW - timedelta(minutes=5),
        "last_active_at": NOW,
        "fired_at": NOW - timedelta(minutes=3),
        "sequence": 1,
    }
    return Alert(**given | changes)


def event(type: EventType = "drift.detected", **changes: Any) -> Event:
    told = alert(**changes)
    return Event(
        event_id=f"evt_{told.sequence}",
        alert_id=told.alert_id,
        type=type,
        sequence=told.sequence,
        created_at=NOW,
        alert=told,
    )


def resolved(**changes: Any) -> Event:
    ended = {"state": AlertState.RESOLVED, "resolved_at": NOW, "sequence": 2}
    return event("drift.resolved", **ended | changes)


WHY = "no longer watched: no worker of pack p since 2026-03-01 11:30 UTC; toxic was firing"


def unwatched(**changes: Any) -> Event:
    ended = {"state": AlertState.UNWATCHED, "unwatched_at": NOW, "sequence": 2, "summary": WHY}
    return event("drift.unwatched", **ended | changes)


def endpoint(format: Any, **changes: Any) -> Endpoint:
    return Endpoint(
        **{"name": "ops", "url": "https://ops/hook", "format": format, "secret": SECRET} | changes
    )


def body(told: Event, format: str, external_url: str = "https://monitor.example") -> Any:
    request = render(told, endpoint(format), external_url=external_url, attempt_at=NOW)
    assert len(request.body) < BODY_LIMIT
    content = json.loads(request.body)
    jsonschema.validate(content, SCHEMAS[format], cls=jsonschema.Draft202012Validator)
    return content


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in texts(item)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("told", [event(), event("drift.reminder", sequence=3), resolved()])
def test_every_format_tells_what_happened(format: str, told: Event) -> None:
    content = body(told, format)
    said = "\n".join(texts(content))
    for fact in ("toxic rose over 15m", "Insults and threats.", "the traffic changed", "p-0"):
        assert fact in said, f"{format} does not say {fact!r}"
    assert "SELECT * FROM drift_history" in said
    assert told.alert_id in said


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("type", get_args(EventType))
def test_every_event_type_keeps_the_schema_with_little_known(format: str, type: EventType) -> None:
    bare = event(type, details={}, labels={}, summary="", severity="info")
    body(bare, format, external_url="")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_tells_a_resolution_in_figures_of_now_beside_those_of_the_firing(
    format: str,
) -> None:
    """What the policy makes of a shift that came and went, in each receiver's words."""
    held, calm = drift(shift=(0.84, 1.02)), drift(shift=(-0.05, 0.15))
    ends = timedelta(0)
    shift_rule = rule(**{"for": ends})
    told: Alert | None = None
    for seen in (held, calm):
        (condition,) = conditions([seen], [shift_rule], [feature()])
        told, announced = transition(told, condition, NOW, silenced=False)
        assert told is not None
        assert announced is not None
        happened = event_of(told, announced, NOW)
    summary = (
        "toxic is back inside its thresholds over 15m: shift now +0.05 SD, was +0.93 when it fired; "
        "tail now 2.00%, was 2.00% (n=1000)"
    )
    content = body(happened, format)
    said = texts(content)
    assert any(summary in text for text in said)
    then = [text for text in said if "+0.93 SD" in text]
    assert then, "what it read when it fired is told too"
    leads = {
        "standard": lambda: content["data"]["summary"],
        "cloudevents": lambda: content["data"]["summary"],
        "alertmanager": lambda: content["alerts"][0]["annotations"]["summary"],
        "alertmanager_api": lambda: content[0]["annotations"]["summary"],
        "pagerduty": lambda: content["payload"]["summary"].removeprefix("[critical] "),
        "slack": lambda: content["blocks"][1]["text"]["text"],
    }
    assert leads[format]() == summary
    assert "verdict" not in happened.alert.details, "nothing changed any more"


def test_standard_webhooks_body() -> None:
    content = body(event(), "standard")
    assert content["type"] == "drift.detected"
    assert content["timestamp"] == "2026-03-01T12:30:00Z"
    data = content["data"]
    assert data["state"] == "firing"
    assert data["details"] == DETAILS
    assert not data["truncated"]
    assert data["sequence"] == 1


def test_cloudevents_carry_the_same_data() -> None:
    request = render(event(), endpoint("cloudevents"), external_url="", attempt_at=NOW)
    assert request.headers["content-type"] == "application/cloudevents+json"
    content = json.loads(request.body)
    assert content["data"] == body(event(), "standard", external_url="")["data"]
    assert content["id"] == request.message_id == "evt_1"
    assert content["source"] == "urn:persona-monitor"


def test_alertmanager_webhook() -> None:
    firing, ended = body(event(), "alertmanager"), body(resolved(), "alertmanager")
    assert firing["status"] == firing["alerts"][0]["status"] == "firing"
    assert firing["alerts"][0]["endsAt"] == "0001-01-01T00:00:00Z"
    assert ended["status"] == ended["alerts"][0]["status"] == "resolved"
    assert ended["alerts"][0]["endsAt"] == "2026-03-01T12:30:00Z"
    assert firing["alerts"][0]["fingerprint"] == ended["alerts"][0]["fingerprint"]
    assert firing["commonLabels"]["alertname"] == "persona-drift"


@pytest.mark.parametrize("format", FORMATS)
def test_nobody_is_told_that_an_unwatched_alert_resolved(format: str) -> None:
    content = body(unwatched(), format)
    said = "\n".join(texts(content))
    assert WHY in said
    if format in ("standard", "cloudevents"):
        assert content["type"] == "drift.unwatched"
        assert content["data"]["state"] == "unwatched"
        assert content["data"]["resolved_at"] is None
        assert content["data"]["unwatched_at"] == "2026-03-01T12:30:00Z"
    if format in ("standard", "cloudevents", "slack"):
        assert "resolved" not in said


def test_where_there_is_one_way_to_end_an_alert_its_text_says_that_nobody_looks() -> None:
    (pushed,) = body(unwatched(), "alertmanager_api")
    assert pushed["endsAt"] == "2026-03-01T12:30:00Z"
    received = body(unwatched(), "alertmanager")
    assert received["status"] == "resolved"
    assert received["alerts"][0]["endsAt"] == "2026-03-01T12:30:00Z"
    for texts_of in (pushed["annotations"], received["alerts"][0]["annotations"]):
        assert "says nothing about whether" in texts_of["ended"]
        assert texts_of["summary"] == WHY
    incident = body(unwatched(), "pagerduty")
    assert incident["event_action"] == "resolve"
    assert incident["payload"]["summary"] == f"[warning] {WHY}"
    assert "ended" not in body(resolved(), "alertmanager")["alerts"][0]["annotations"]


def test_labels_of_an_alert_do_not_change_with_its_figures() -> None:
    other = event(summary="toxic rose more", details=DETAILS | {"shift": {"value": 9.75}})
    for format in ("alertmanager", "alertmanager_api"):
        a, b = (body(told, format) for told in (event(), other))
        labels = [
            c[0]["labels"] if isinstance(c, list) else c["alerts"][0]["labels"] for c in (a, b)
        ]
        assert labels[0] == labels[1]
        assert not any("9.75" in value for value in labels[1].values())


def test_alertmanager_api_ends_an_alert_by_its_end_and_an_escalation_ends_the_milder_one() -> None:
    (firing,) = body(event(), "alertmanager_api")
    assert firing["endsAt"] == "2026-03-08T12:30:00Z"
    (ended,) = body(resolved(), "alertmanager_api")
    assert ended["endsAt"] == "2026-03-01T12:30:00Z"
    assert ended["labels"] == firing["labels"]
    graver, *milder = body(event(severity="critical", sequence=2), "alertmanager_api")
    assert graver["labels"]["severity"] == "critical"
    assert {(a["labels"]["severity"], a["endsAt"]) for a in milder} == {
        ("info", "2026-03-01T12:30:00Z"),
        ("warning", "2026-03-01T12:30:00Z"),
    }


def test_alertmanager_api_links_to_the_monitor_only_where_it_has_an_address() -> None:
    (linked,) = body(event(), "alertmanager_api", "https://monitor.example")
    assert linked["generatorURL"] == "https://monitor.example"
    (bare,) = body(event(), "alertmanager_api", "")
    assert "generatorURL" not in bare


@pytest.mark.parametrize("severity", get_args(Severity))
def test_pagerduty_triggers_and_resolves_one_incident(severity: Severity) -> None:
    trigger, end = (
        body(e, "pagerduty") for e in (event(severity=severity), resolved(severity=severity))
    )
    assert (trigger["event_action"], end["event_action"]) == ("trigger", "resolve")
    assert trigger["dedup_key"] == end["dedup_key"]
    assert trigger["payload"]["severity"] == severity
    assert trigger["routing_key"] == SECRET


def test_slack_cannot_be_made_to_call_a_channel_or_to_link() -> None:
    nasty = "<!channel> <https://evil|click> & `x`"
    content = body(
        event(
            summary=nasty, labels={"feature": nasty, "segment": nasty}, details={"meaning": nasty}
        ),
        "slack",
        external_url="",
    )
    plain = [b["text"]["text"] for b in content["blocks"] if b["type"] == "header"]
    for text in texts(content):
        if text not in plain:
            assert "<" not in text
            assert ">" not in text
    assert "&lt;!channel&gt;" in content["text"]


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Slack's text objects, wherever they stand."""
    if isinstance(value, dict):
        if "type" in value and isinstance(value.get("text"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from objects(item)


def test_slack_makes_nothing_of_its_own_of_what_comes_from_outside() -> None:
    """Neither links of bare addresses nor mentions of @names and #channels, nor pictures of :names:."""
    nasty = "http://evil.test @channel #general :skull:"
    told = resolved(
        summary=nasty,
        labels={"feature": nasty, "segment": nasty},
        details={
            **dict.fromkeys(("meaning", "verdict", "mend", "query", "window", "cause"), nasty),
            "strongest_prompts": [{"prompt_id": nasty}],
            "when_fired": {"summary": nasty},
        },
    )
    content = body(told, "slack", external_url="https://monitor.test")
    found = list(objects(content["blocks"]))
    assert len(found) > 10
    for one in found:
        if one["type"] == "mrkdwn":
            assert one["verbatim"] is True
        else:
            assert one["emoji"] is False
    assert not any(content[name] for name in ("link_names", "unfurl_links", "unfurl_media"))


@given(text=st.text(max_size=400), limit=st.integers(10, 300))
def test_slack_text_is_never_too_long_and_never_ends_inside_an_escape(
    text: str, limit: int
) -> None:
    written = mrkdwn(text, limit)
    assert len(written) <= limit
    assert written.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "").count("&") == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_huge_alert_is_cut_and_says_so(format: str) -> None:
    long = "ü\u2028" * 5_000
    huge = event(
        summary=long,
        labels={"feature": long, "segment": long, **{f"l{i}": long for i in range(30)}},
        rule=long,
        dedupe_key=long,
        details={f"k{i}": [long] * 10 for i in range(20)}
        | {long: {"deep": [[[long] * 9] * 9] * 9}},
    )
    content = body(huge, format)
    data = content["data"] if format in ("standard", "cloudevents") else None
    if format == "pagerduty":
        data = content["payload"]["custom_details"]
    if data is not None:
        assert data["truncated"]


def test_cutting_keeps_what_matters_while_it_fits() -> None:
    prompts = [{"prompt_id": f"p-{i}" * 20, "score": 1.0} for i in range(400)]
    content = body(event(details=DETAILS | {"strongest_prompts": prompts}), "standard")
    assert content["data"]["truncated"]
    assert content["data"]["details"]["meaning"] == "Insults and threats."
    assert 8 <= len(content["data"]["details"]["strongest_prompts"]) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
any_text = st.text(st.characters(), max_size=300)
"""Also lone surrogates, NUL and other controls."""


@settings(max_examples=examples(150), deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    summary=any_text,
    feature=any_text,
    rule=any_text.filter(bool),
    details=st.dictionaries(any_text, json_values | any_text, max_size=6),
    external_url=any_text,
)
@example(format="standard", summary="", feature="", rule="0", details={}, external_url="\ud800")
def test_nothing_that_an_alert_may_hold_breaks_a_payload(
    format: str, summary: str, feature: str, rule: str, details: Any, external_url: str
) -> None:
    odd = event(summary=summary, labels={"feature": feature}, rule=rule, details=details)
    body(replace(odd, type="drift.detected"), format, external_url=external_url)
