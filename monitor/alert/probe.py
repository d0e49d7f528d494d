"""Would an endpoint take what it is sent? Asked without an event, and with one that alarms nobody."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import httpx

from monitor.alert.keys import require_keys
from monitor.alert.render import render
from monitor.alert.webhook import failure_of, send
from monitor.calling import Caller
from monitor.errors import RefuseToStart
from monitor.settings import Endpoint
from monitor.values.alerts import Alert, AlertState, Event, Outcome

PROVE: Final = "`monitor doctor --send-test` posts a signed test event"
_UNPROVEN: Final = frozenset({400, 405, 411, 415, 422, 429, 501})
"""Answers to OPTIONS of a server that is there and may take a POST."""


def knock(endpoint: Endpoint, caller: Caller) -> str:
    """Ask with OPTIONS, which changes nothing: what was seen, when it speaks for the endpoint.

    That it takes our POST is not proven by that, and the answer says so. Raises `RefuseToStart` when
    the endpoint cannot be reached or answers as one that would not take it, and
    `ConfigurationError` when its secret is missing.
    """
    require_keys(endpoint)
    headers = {name: value.get_secret_value() for name, value in endpoint.headers.items()}
    try:
        answer = caller.call(
            "OPTIONS", endpoint.url, headers=headers, seconds=endpoint.timeout.total_seconds()
        )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as failure:
        raise _unreachable(endpoint, failure_of(failure, endpoint)) from None
    status, allowed = answer.status, answer.headers.get("allow", "")
    seen = f"answered {status} to OPTIONS"
    if allowed and "POST" not in {name.strip().upper() for name in allowed.split(",")}:
        raise RefuseToStart(
            f"{seen}, and allows {allowed[:100]}: no POST", hint=f"{_mend(405)} {PROVE}."
        )
    if not (200 <= status < 300 or status in _UNPROVEN):
        hint = f"{_mend(status)} If it answers so to OPTIONS alone: {PROVE}."
        raise RefuseToStart(seen, hint=hint)
    return f"{seen}; that it takes our POST is not proven: {PROVE}"


def send_test(endpoint: Endpoint, caller: Caller, *, external_url: str, now: datetime) -> str:
    """Post a signed event of type ``monitor.test``: what was seen when it was taken.

    Its alert is resolved and never fired, so PagerDuty and Alertmanager open nothing; Slack shows a
    line. Raises as `knock`.
    """
    require_keys(endpoint)
    request = render(_test_event(now), endpoint, external_url=external_url, attempt_at=now)
    attempt = send(caller, request, endpoint, now)
    if attempt.outcome is Outcome.DELIVERED:
        signed = "a test event" if endpoint.format == "pagerduty" else "a signed test event"
        return f"took {signed} ({attempt.status}), {endpoint.format}"
    if attempt.status is None:
        raise _unreachable(endpoint, attempt.error)
    raise RefuseToStart(
        f"answered {attempt.status} to a test event", hint=_mend(attempt.status, endpoint.format)
    )


def _test_event(now: datetime) -> Event:
    name = f"test-{secrets.token_hex(8)}"
    alert = Alert(
        alert_id=name,
        dedupe_key=name,
        rule="monitor-test",
        kind="silence",
        severity="info",
        state=AlertState.RESOLVED,
        summary="A test by `monitor doctor --send-test`: nothing has happened.",
        labels={},
        details={},
        pending_since=now,
        last_active_at=now,
        fired_at=now,
        resolved_at=now,
        sequence=1,
    )
    return Event(
        event_id=f"evt_{name}",
        alert_id=name,
        type="monitor.test",
        sequence=1,
        created_at=now,
        alert=alert,
    )


_MENDS: Final[Mapping[int, str]] = {
    401: "Mend its secret or headers: the endpoint does not believe us.",
    403: "Mend its secret or headers, or let this host in: the endpoint refuses us.",
    404: "Mend the path of its url: nothing is there.",
    405: "Mend the path of its url: what is there takes no POST.",
    410: "The endpoint is gone: mend its url, or remove it from alerts.endpoints.",
    429: "Wait, or lower its rate_per_minute: it gets more than it takes.",
}


def _mend(status: int, format: str = "") -> str:
    if status in _MENDS:
        return _MENDS[status]
    if 300 <= status < 400:
        return "Set its url to the address that it points to: redirects are not followed."
    if status >= 500:
        return "Mend the receiver, or what stands before it: it fails."
    return f"Mend its format: the receiver does not take {format or 'this'}."


def _unreachable(endpoint: Endpoint, error: str) -> RefuseToStart:
    host = httpx.URL(endpoint.url).host if _readable(endpoint.url) else ""
    if not host:
        return RefuseToStart("the url names no host that can be read", hint="Mend its url.")
    return RefuseToStart(
        f"{host} cannot be reached: {error}",
        hint="Look at the url, DNS, the receiver, and the network policy for webhook egress.",
    )


def _readable(url: str) -> bool:
    try:
        httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return False
    return True
