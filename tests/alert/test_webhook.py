"""Signing, sending once and judging the answer, against real receivers and the reference verifier."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from monitor.alert.keys import routing_key, signing_keys
from monitor.alert.render import RenderedRequest
from monitor.alert.webhook import classify, retry_after, send, sign
from monitor.calling import Caller
from monitor.demo.receiver import Answer, Receiver
from monitor.errors import ConfigurationError
from monitor.settings import Endpoint
from monitor.values.alerts import Attempt, Outcome


def secret(length: int = 32) -> str:
    return "whsec_" + base64.b64encode(os.urandom(length)).decode()


@pytest.fixture(scope="module")
def client() -> Iterator[Caller]:
    with Caller() as client:
        yield client


def endpoint(url: str, **changes: Any) -> Endpoint:
    return Endpoint(**{"name": "ops", "url": url, "secret": secret()} | changes)


def request(url: str, body: bytes = b'{"type":"drift.detected"}') -> RenderedRequest:
    return RenderedRequest(
        url=url, headers={"content-type": "application/json"}, body=body, message_id="evt_1"
    )


def sent(client: Caller, to: Endpoint, now: datetime | None = None) -> Attempt:
    return send(client, request(to.url), to, now or datetime.now(UTC))


@given(
    message=st.from_regex(r"[a-zA-Z0-9_-]{1,60}", fullmatch=True), body=st.text().map(str.encode)
)
def test_signatures_equal_those_of_the_reference(message: str, body: bytes) -> None:
    key = secret()
    now = datetime.now(UTC)
    keys = signing_keys(endpoint("http://x", secret=key))
    reference = Webhook(key).sign(message, now, body.decode())
    assert sign(keys, message, int(now.timestamp()), body) == reference


def test_both_secrets_verify_while_one_is_rotated(client: Caller, tmp_path: Path) -> None:
    old, new, other = secret(), secret(), secret()
    file = tmp_path / "secret"
    to = {"secret": None, "secret_file": file}
    with Receiver(old) as before, Receiver(new) as after, Receiver(other) as stranger:
        outcomes = []
        for content in (old, f"{new},{old}", f"{new}\n"):
            file.write_text(content)
            outcomes.append(
                [sent(client, endpoint(r.url, **to)).status for r in (before, after, stranger)]
            )
    assert outcomes == [[204, 401, 401], [204, 204, 401], [401, 204, 401]]


def test_the_timestamp_is_that_of_the_attempt(client: Caller) -> None:
    key = secret()
    with Receiver(key) as receiver:
        to = endpoint(receiver.url, secret=key)
        assert sent(client, to).outcome is Outcome.DELIVERED
        old = sent(client, to, datetime.now(UTC) - timedelta(minutes=6))
        assert (old.status, old.outcome) == (401, Outcome.RETRY)
        ids = {r.headers["webhook-id"] for r in receiver.received}
    assert ids == {"evt_1"}


def test_what_was_replayed_or_altered_is_known_by_its_receiver(client: Caller) -> None:
    """Sent again as it was it is the same event; with another body, id or time its signature does not hold."""
    key = secret()
    with Receiver(key) as receiver:
        to = endpoint(receiver.url, secret=key)
        assert sent(client, to).outcome is Outcome.DELIVERED
        (first,) = receiver.received
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        headers = {name: first.headers[name] for name in names}
        later = str(int(headers["webhook-timestamp"]) + 1)
        statuses = [
            httpx.post(receiver.url, content=body, headers=headers | changed).status_code
            for body, changed in (
                (first.body, {}),
                (first.body + b" ", {}),
                (first.body, {"webhook-id": "evt_2"}),
                (first.body, {"webhook-timestamp": later}),
                (first.body, {"webhook-signature": "v1,"}),
            )
        ]
        assert statuses == [204, 401, 401, 401, 401]
        assert len(receiver.events) == 1


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("c2VjcmV0", "does not begin with whsec_"),
        ("whsec_äöü", "is not base64"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "holds 23 bytes"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "holds 65 bytes"),
        ("whsec_", "holds 0 bytes"),
    ],
)
def test_a_wrong_secret_is_explained_and_never_shown(
    client: Caller, value: str, fault: str
) -> None:
    to = endpoint("http://127.0.0.1:9", secret=value)
    with pytest.raises(ConfigurationError, match=fault) as caught:
        signing_keys(to)
    assert "endpoint ops" in str(caught.value)
    private = value.removeprefix("whsec_")
    assert not private or private not in str(caught.value) + caught.value.hint
    attempt = sent(client, to)
    assert attempt.outcome is Outcome.RETRY
    assert fault in attempt.error


def test_a_missing_secret_file_is_a_retry_that_says_so(client: Caller, tmp_path: Path) -> None:
    to = endpoint("http://127.0.0.1:9", secret=None, secret_file=tmp_path / "gone")
    attempt = sent(client, to)
    assert attempt.outcome is Outcome.RETRY
    assert "cannot read" in attempt.error
    (tmp_path / "gone").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in sent(client, to).error


def test_the_standard_format_alone_is_never_sent_unsigned(client: Caller, tmp_path: Path) -> None:
    """A secret file that was emptied: what promises a signature waits for one, the others go out."""
    empty = tmp_path / "secret"
    empty.write_text("\n")
    told = {}
    with Receiver() as receiver:
        for format in ("standard", "alertmanager", "alertmanager_api", "slack", "cloudevents"):
            to = endpoint(receiver.url, format=format, secret=None, secret_file=empty)
            before = len(receiver.received)
            attempt = sent(client, to)
            told[format] = (attempt.outcome, attempt.error, len(receiver.received) - before)
    nothing = "endpoint ops: secret is empty; nothing to sign with"
    assert told.pop("standard") == (Outcome.RETRY, nothing, 0)
    assert set(told.values()) == {(Outcome.DELIVERED, "", 1)}
    assert all("webhook-signature" not in request.headers for request in receiver.received)


def test_pagerdutys_secret_is_a_routing_key_and_signs_nothing(client: Caller) -> None:
    with Receiver() as receiver:
        to = endpoint(receiver.url, format="pagerduty", secret="R0UT1NG,OLD")
        assert routing_key(to) == "R0UT1NG"
        sent(client, to)
    assert "webhook-signature" not in receiver.received[0].headers


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DELIVERED),
        (204, Outcome.DELIVERED),
        (301, Outcome.RETRY),
        (400, Outcome.RETRY),
        (401, Outcome.RETRY),
        (404, Outcome.RETRY),
        (410, Outcome.GONE),
        (429, Outcome.SLOW_DOWN),
        (500, Outcome.RETRY),
        (502, Outcome.SLOW_DOWN),
        (503, Outcome.RETRY),
        (504, Outcome.SLOW_DOWN),
    ],
)
def test_what_a_status_means(client: Caller, status: int, outcome: Outcome) -> None:
    with Receiver() as receiver:
        receiver.always(Answer(status=status))
        attempt = sent(client, endpoint(receiver.url))
    assert (attempt.status, attempt.outcome) == (status, outcome)
    assert bool(attempt.error) is (outcome is not Outcome.DELIVERED)


def test_a_refusal_is_final_where_the_receiver_says_so() -> None:
    assert classify(400, {}, "pagerduty") is Outcome.REFUSED
    assert classify(400, {}, "slack") is Outcome.REFUSED
    assert classify(400, {}, "alertmanager_api") is Outcome.REFUSED
    assert classify(429, {}, "pagerduty") is Outcome.SLOW_DOWN
    assert classify(503, {"retry-after": "5"}) is Outcome.SLOW_DOWN


def test_a_redirect_is_not_followed(client: Caller) -> None:
    with Receiver() as target, Receiver() as receiver:
        receiver.always(Answer(status=307, headers={"location": target.url}))
        attempt = sent(client, endpoint(receiver.url))
        assert attempt.outcome is Outcome.RETRY
        assert "redirects are not followed" in attempt.error
        assert target.received == ()


def test_a_hanging_receiver_costs_its_timeout(client: Caller) -> None:
    with Receiver() as receiver:
        receiver.always(Answer(hang_seconds=30))
        attempt = sent(client, endpoint(receiver.url, timeout=timedelta(seconds=0.3)))
    assert attempt.outcome is Outcome.RETRY
    assert 0.25 < attempt.latency_seconds < 5
    assert "no answer in time" in attempt.error


def test_errors_of_the_network_name_the_cause_and_no_secret(client: Caller) -> None:
    refused = sent(client, endpoint("http://127.0.0.1:9/services/T0/SECRETPATH", format="slack"))
    assert refused.outcome is Outcome.RETRY
    assert "refused" in refused.error
    odd = sent(client, endpoint("http://ops.invalid:99999/SECRETPATH"))
    with Receiver() as receiver:
        header = sent(client, endpoint(receiver.url, headers={"x-token": "SECRET\nHEADER"}))
        assert receiver.received == ()
    for attempt in (refused, odd, header):
        assert attempt.outcome is Outcome.RETRY
        assert attempt.error
        assert "SECRET" not in attempt.error


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200"])
def test_an_answer_that_is_no_http_is_a_retry(client: Caller, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        attempt = sent(client, endpoint(f"http://127.0.0.1:{server.getsockname()[1]}/x"))
        thread.join()
    assert (attempt.outcome, attempt.status) == (Outcome.RETRY, None)
    assert attempt.error


def test_own_headers_are_sent_and_cannot_replace_the_signature(client: Caller) -> None:
    key = secret()
    with Receiver(key) as receiver:
        headers = {
            "Authorization": "Bearer abc",
            "Webhook-Id": "forged",
            "WEBHOOK-SIGNATURE": "v1,x",
        }
        attempt = sent(client, endpoint(receiver.url, secret=key, headers=headers))
    assert attempt.outcome is Outcome.DELIVERED
    assert receiver.received[0].headers["authorization"] == "Bearer abc"
    assert receiver.received[0].headers["webhook-id"] == "evt_1"


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        ("0", 0),
        (" 120 ", 120),
        ("999999999999", 86_400),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), 86_400),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("٣", None),
    ],
)
def test_retry_after(given: str | None, seconds: float | None) -> None:
    headers = {} if given is None else {"retry-after": given}
    assert retry_after(headers, NOW) == seconds


@given(text=st.text(st.characters(max_codepoint=255)))
def test_no_retry_after_breaks_the_courier(text: str) -> None:
    seconds = retry_after({"retry-after": text}, NOW)
    assert seconds is None or 0 <= seconds <= 86_400
