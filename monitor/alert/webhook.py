"""Sign a request, send it once, and say what came of it.

Signatures follow Standard Webhooks 1.0.0: HMAC-SHA256 over ``{id}.{timestamp}.{body}``, as
``v1,<base64>``, one for each secret while secrets are rotated.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from monitor.alert.keys import private_values, require_keys, signing_keys
from monitor.alert.render import RenderedRequest
from monitor.calling import Caller
from monitor.errors import ConfigurationError
from monitor.redaction import without_secrets
from monitor.settings import Endpoint
from monitor.values.alerts import Attempt, Outcome

LONGEST_RETRY_AFTER: Final = timedelta(days=1)
"""A receiver cannot put an event off for longer than this."""

_SLOW_DOWN: Final = frozenset({429, 502, 504})
_REFUSALS: Final[Mapping[str, frozenset[int]]] = {
    # These answer 400 to a body that they will never take; elsewhere a 4xx is a receiver's mistake
    # that a person mends (a route, a token), and the schedule gives them the time.
    "pagerduty": frozenset({400}),
    "alertmanager_api": frozenset({400}),
    "slack": frozenset({400}),
}


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` header: one ``v1,<base64>`` for each key, separated by spaces."""
    content = b".".join((message_id.encode(), str(timestamp).encode(), body))
    digests = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def send(caller: Caller, request: RenderedRequest, endpoint: Endpoint, now: datetime) -> Attempt:
    """One POST, which takes at most ``endpoint.timeout`` in all. Never raises for its fate.

    The response's body is not looked at. ``Attempt.error`` names what failed without the URL's path, any
    header's value or any secret.
    """
    started = time.monotonic()
    status: int | None = None
    wait: float | None = None
    try:
        headers = _headers(request, endpoint, now)
        answer = caller.call(
            "POST",
            request.url,
            content=request.body,
            headers=headers,
            seconds=endpoint.timeout.total_seconds(),
        )
        status = answer.status
        outcome = classify(status, answer.headers, endpoint.format)
        wait = retry_after(answer.headers, now)
        error = "" if outcome is Outcome.DELIVERED else _explained(status)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as failure:
        outcome, error = Outcome.RETRY, failure_of(failure, endpoint)
    except ConfigurationError as failure:
        # A secret file may be mended before the next attempt.
        outcome, error = Outcome.RETRY, str(failure)
    return Attempt(
        attempted_at=now,
        outcome=outcome,
        status=status,
        latency_seconds=time.monotonic() - started,
        error=error,
        retry_after_seconds=wait,
    )


def classify(status: int, headers: Mapping[str, str], format: str = "standard") -> Outcome:
    """What a status means: only 2xx is success, a redirect is not followed, 410 ends the endpoint."""
    if 200 <= status < 300:
        return Outcome.DELIVERED
    if status == 410:
        return Outcome.GONE
    if status in _REFUSALS.get(format, frozenset()):
        return Outcome.REFUSED
    if status in _SLOW_DOWN or (status == 503 and "retry-after" in headers):
        return Outcome.SLOW_DOWN
    return Outcome.RETRY


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that ``Retry-After`` asks for (a number or an HTTP date), 0 to a day; None without it."""
    given = headers.get("retry-after")
    if given is None:
        return None
    text = given.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER.total_seconds())


def _headers(request: RenderedRequest, endpoint: Endpoint, now: datetime) -> dict[str, str]:
    timestamp = int(now.timestamp())
    headers = {
        **request.headers,
        **{name.lower(): value.get_secret_value() for name, value in endpoint.headers.items()},
        "webhook-id": request.message_id,
        "webhook-timestamp": str(timestamp),
    }
    require_keys(endpoint)
    keys = () if endpoint.format == "pagerduty" else signing_keys(endpoint)
    if keys:
        headers["webhook-signature"] = sign(keys, request.message_id, timestamp, request.body)
    return headers


def _explained(status: int) -> str:
    if 300 <= status < 400:
        return (
            f"HTTP {status}: redirects are not followed; set the endpoint's url to the new address"
        )
    return f"HTTP {status}"


def failure_of(failure: Exception, endpoint: Endpoint) -> str:
    """What failed. Only a failed connection is quoted: other texts may hold headers or the URL."""
    if isinstance(failure, httpx.TimeoutException):
        return f"no answer in time: {type(failure).__name__}"
    text = str(failure)
    quoted = isinstance(failure, httpx.ConnectError | httpx.ProxyError)
    if not quoted or any(private in text for private in private_values(endpoint)):
        return type(failure).__name__
    return without_secrets(f"{type(failure).__name__}: {text}")[:300]
