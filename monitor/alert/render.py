"""One event in the words of each receiver: Standard Webhooks, Alertmanager, PagerDuty, Slack, CloudEvents.

Every body stays under `BODY_LIMIT` bytes: long texts and long lists are cut in steps (`_STEPS`), and
the last step drops the details; ``truncated`` says that it happened. Labels identify an alert and
never hold a measured value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from monitor.alert.keys import routing_key
from monitor.alert.rules import SEVERITIES, rank
from monitor.alert.sentences import WHEN_FIRED
from monitor.settings import Endpoint
from monitor.values.alerts import Alert, AlertState, Event, Severity

BODY_LIMIT: Final = 20_000
"""Bytes; every body is smaller (Standard Webhooks asks for less than 20 kB)."""
PRODUCT: Final = "persona-monitor"

_STEPS: Final[tuple[tuple[int, int] | None, ...]] = ((2_000, 100), (500, 25), (200, 8), None)
"""Longest text and longest list (or mapping) in the details, step by step; None: no details."""
_NAME_LIMIT: Final = 200
_ZERO_TIME: Final = "0001-01-01T00:00:00Z"
_NOT_SEEN_TO_END: Final = "no longer watched: this says nothing about whether the drift is over"
_ALERTMANAGER_KEEPS: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRequest:
    """A POST, yet unsigned. ``message_id`` is the same at every attempt."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What every rendering draws on; texts already cut to size."""

    event: Event
    alert: Alert
    summary: str
    labels: dict[str, str]
    details: dict[str, Any]
    truncated: bool
    url: str
    endpoint: Endpoint
    attempt_at: datetime


def render(
    event: Event, endpoint: Endpoint, *, external_url: str, attempt_at: datetime
) -> RenderedRequest:
    """The request that tells ``endpoint`` about ``event``; its body has less than `BODY_LIMIT` bytes.

    Raises `ConfigurationError` when a secret that belongs in the body cannot be read.
    """
    template, content_type = _FORMATS[endpoint.format]
    truncated = False
    for step in _STEPS:
        details: Any = {}
        if step is None:
            truncated = True
        else:
            details, cut = _clipped(event.alert.details, *step)
            truncated = truncated or cut
        told = _Told(
            event=event,
            alert=event.alert,
            summary=_text(event.alert.summary, 1_000 if step else _NAME_LIMIT),
            labels={
                _text(name, 60): _text(value, _NAME_LIMIT)
                for name, value in list(event.alert.labels.items())[:20]
            },
            details=details,
            truncated=truncated,
            url=_text(external_url, 500) if len(external_url) <= 500 else "",
            endpoint=endpoint,
            attempt_at=attempt_at,
        )
        body = orjson.dumps(template(told))
        if len(body) < BODY_LIMIT:
            break
        truncated = True
    return RenderedRequest(
        url=endpoint.url,
        headers={"content-type": content_type, "user-agent": PRODUCT},
        body=body,
        message_id=event.event_id,
    )


def _data(told: _Told) -> dict[str, Any]:
    alert = told.alert
    return {
        "event_id": told.event.event_id,
        "sequence": told.event.sequence,
        "alert_id": alert.alert_id,
        "dedupe_key": _text(alert.dedupe_key, 2 * _NAME_LIMIT),
        "state": alert.state.value,
        "severity": alert.severity,
        "kind": alert.kind,
        "rule": _text(alert.rule, _NAME_LIMIT),
        "summary": told.summary,
        "labels": told.labels,
        "pending_since": _iso(alert.pending_since),
        "fired_at": _iso(alert.fired_at),
        "resolved_at": _iso(alert.resolved_at),
        "unwatched_at": _iso(alert.unwatched_at),
        "acknowledged_at": _iso(alert.acknowledged_at),
        "details": told.details,
        "truncated": told.truncated,
        "url": told.url or None,
    }


def _standard(told: _Told) -> dict[str, Any]:
    return {
        "type": told.event.type,
        "timestamp": _iso(told.event.created_at),
        "data": _data(told),
    }


def _cloudevents(told: _Told) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": told.event.event_id,
        "source": told.url or f"urn:{PRODUCT}",
        "type": told.event.type,
        "subject": _text(told.alert.dedupe_key, 2 * _NAME_LIMIT) or told.alert.alert_id,
        "time": _iso(told.event.created_at),
        "datacontenttype": "application/json",
        "sequence": f"{told.event.sequence:010d}",
        "data": _data(told),
    }


# --- Alertmanager ------------------------------------------------------------------------------
#
# Alertmanager and PagerDuty know one way to end an alert, and call it resolved. An alert that is no
# longer watched ends there too, or it would stand for ever; its text says that it was not seen to end.


def _alertmanager(told: _Told) -> dict[str, Any]:
    labels, annotations = _alertmanager_labels(told), _annotations(told)
    group = {"alertname": labels["alertname"]}
    status = "firing" if told.alert.ended_at is None else "resolved"
    return {
        "version": "4",
        "groupKey": f"{{}}:{{alertname={orjson.dumps(group['alertname']).decode()}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": told.endpoint.name[:_NAME_LIMIT],
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": told.url,
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": _iso(told.alert.fired_at or told.alert.pending_since),
                "endsAt": _iso(told.alert.ended_at) or _ZERO_TIME,
                "generatorURL": told.url,
                "fingerprint": hashlib.sha256(
                    told.alert.dedupe_key.encode(errors="replace")
                ).hexdigest()[:16],
            }
        ],
    }


def _alertmanager_api(told: _Told) -> list[dict[str, Any]]:
    """One alert; on an escalation also the end of its milder forms, which are other alerts there.

    Alertmanager ends an alert without ``endsAt`` after five minutes without a re-send; we tell only
    what is new, so ``endsAt`` lies a week ahead and the resolution brings it forward.
    """
    starts_at = told.alert.fired_at or told.alert.pending_since
    ends_at = told.alert.ended_at or told.attempt_at + _ALERTMANAGER_KEEPS
    pushed = [_pushed(told, told.alert.severity, starts_at, ends_at)]
    if told.event.type.endswith(".detected") and told.event.sequence > 1:
        milder = SEVERITIES[: rank(told.alert.severity)]
        pushed += [_pushed(told, severity, starts_at, told.event.created_at) for severity in milder]
    return pushed


def _pushed(
    told: _Told, severity: Severity, starts_at: datetime, ends_at: datetime
) -> dict[str, Any]:
    ended = severity != told.alert.severity
    return {
        "labels": {**_alertmanager_labels(told), "severity": severity},
        "annotations": {} if ended else _annotations(told),
        "startsAt": _iso(starts_at),
        "endsAt": _iso(ends_at),
        **({"generatorURL": told.url} if told.url else {}),
    }


def _alertmanager_labels(told: _Told) -> dict[str, str]:
    named = {
        re.sub(r"[^a-zA-Z0-9_]|^(?=\d)", "_", name): value
        for name, value in told.labels.items()
        if value
    }
    rule = _text(told.alert.rule, _NAME_LIMIT)
    return {**named, "alertname": rule, "severity": told.alert.severity, "source": PRODUCT}


def _annotations(told: _Told) -> dict[str, str]:
    texts = {"summary": told.summary, "alert_id": told.alert.alert_id}
    if told.alert.state is AlertState.UNWATCHED:
        texts["ended"] = _NOT_SEEN_TO_END
    for name in ("meaning", "verdict", "mend", "window", "query"):
        if isinstance(told.details.get(name), str):
            texts[name] = told.details[name]
    fired = _when_fired(told)
    if fired and told.alert.state is AlertState.RESOLVED:
        texts["when_fired"] = fired
    if told.details:
        texts["details"] = orjson.dumps(told.details).decode()
    return texts


def _when_fired(told: _Told) -> str:
    """The summary of the firing; empty before it."""
    kept = told.details.get(WHEN_FIRED)
    return str(kept.get("summary", "")) if isinstance(kept, Mapping) else ""


# --- PagerDuty ---------------------------------------------------------------------------------


def _pagerduty(told: _Told) -> dict[str, Any]:
    message: dict[str, Any] = {
        "routing_key": routing_key(told.endpoint),
        "event_action": "trigger" if told.alert.ended_at is None else "resolve",
        "dedup_key": told.alert.alert_id[:255],
        "payload": {
            "summary": _text(f"[{told.alert.severity}] {told.summary}", 1_024),
            "source": told.labels.get("segment") or PRODUCT,
            "severity": told.alert.severity,
            "timestamp": _iso(told.event.created_at),
            "component": told.labels.get("feature", PRODUCT),
            "group": told.labels.get("segment", "monitor"),
            "class": _text(told.alert.rule, _NAME_LIMIT),
            "custom_details": {**_data(told), "url": None},
        },
        "client": PRODUCT,
    }
    if told.url:
        message["client_url"] = told.url
        message["links"] = [{"href": told.url, "text": "persona monitor"}]
    return message


# --- Slack -------------------------------------------------------------------------------------


_VERBS: Final = {
    "detected": "firing",
    "reminder": "still firing",
    "resolved": "resolved",
    "unwatched": "no longer watched",
}


def _slack(told: _Told) -> dict[str, Any]:
    alert, details = told.alert, told.details
    verb = _VERBS.get(told.event.type.rpartition(".")[2], "test")
    title = f"{alert.severity.upper()} {verb}: {told.labels.get('feature') or alert.rule}"
    blocks: list[dict[str, Any]] = [
        {
            "type": "header",
            "text": {"type": "plain_text", "text": _text(title, 150), "emoji": False},
        },
        _section(mrkdwn(told.summary or title, 2_900)),
    ]
    fields = {name: told.labels.get(name) for name in ("segment", "rule", "pack")}
    fields |= {name: details.get(name) for name in ("window", "cause")}
    facts = [f"*{name}*\n{mrkdwn(str(value), 300)}" for name, value in fields.items() if value]
    if facts:
        blocks.append({"type": "section", "fields": list(map(_verbatim, facts))})
    over = alert.state is AlertState.RESOLVED
    if over and (fired := _when_fired(told)):
        blocks.append(_section(f"*when it fired* {mrkdwn(fired, 1_000)}"))
    for name in ("meaning", "verdict", "mend"):
        if details.get(name):
            blocks.append(_section(f"*{name}* {mrkdwn(str(details[name]), 1_000)}"))
    prompts = details.get("strongest_prompts")
    if isinstance(prompts, list) and prompts:
        ids = [
            str(p.get("prompt_id", "")) if isinstance(p, Mapping) else str(p) for p in prompts[:5]
        ]
        when = " while it fired" if over else ""
        blocks.append(_section(f"*strongest prompts{when}* " + mrkdwn(", ".join(ids), 1_000)))
    if details.get("query"):
        blocks.append(_section(f"```{mrkdwn(str(details['query']).replace('`', ' '), 1_500)}```"))
    footer = f"alert {alert.alert_id} · event {told.event.sequence}"
    blocks.append({"type": "context", "elements": [_verbatim(mrkdwn(footer, 300))]})
    if told.url:
        link = f"<{mrkdwn(told.url.replace('|', '%7C'), 1_000)}|open the monitor>"
        blocks.append(_section(link))
    return {
        "text": mrkdwn(f"{title}: {told.summary}", 2_900),
        "blocks": blocks,
        **dict.fromkeys(("link_names", "unfurl_links", "unfurl_media"), False),
    }


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _verbatim(text)}


def _verbatim(text: str) -> dict[str, Any]:
    """Slack makes no links of bare addresses and no mentions of names in it: they come from outside."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def mrkdwn(text: str, limit: int) -> str:
    """Text for Slack: ``&<>`` escaped, so no name makes a link or calls a channel; at most ``limit``."""
    escapes = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    written: list[str] = []
    length = 0
    for character in _text(text, limit):
        piece = escapes.get(character, character)
        if length + len(piece) > limit - 1:
            return "".join(written) + "…"
        written.append(piece)
        length += len(piece)
    return "".join(written)


# --- cutting to size ---------------------------------------------------------------------------


def _clipped(value: Any, text_limit: int, list_limit: int) -> tuple[Any, bool]:
    """JSON with texts and collections cut, and whether anything was."""
    if isinstance(value, str):
        text = _text(value, text_limit)
        return text, len(value) > text_limit
    if isinstance(value, Mapping):
        items = list(value.items())
        pairs = [
            (_text(str(key), _NAME_LIMIT), _clipped(item, text_limit, list_limit))
            for key, item in items[:list_limit]
        ]
        cut = len(items) > list_limit or any(cut for _, (_, cut) in pairs)
        return {key: item for key, (item, _) in pairs}, cut
    if isinstance(value, list | tuple):
        cuts = [_clipped(item, text_limit, list_limit) for item in value[:list_limit]]
        return [item for item, _ in cuts], len(value) > list_limit or any(cut for _, cut in cuts)
    return value, False


def _text(text: str, limit: int) -> str:
    """At most ``limit`` characters that every receiver can read: no lone surrogates, no controls."""
    printable = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


_FORMATS: Final[Mapping[str, tuple[Callable[[_Told], Any], str]]] = {
    "standard": (_standard, "application/json"),
    "alertmanager": (_alertmanager, "application/json"),
    "alertmanager_api": (_alertmanager_api, "application/json"),
    "pagerduty": (_pagerduty, "application/json"),
    "slack": (_slack, "application/json"),
    "cloudevents": (_cloudevents, "application/cloudevents+json"),
}
