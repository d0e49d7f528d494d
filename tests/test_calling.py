"""Calls to servers that mean ill: sockets that flood, drip, hang and hand out cookies."""

from __future__ import annotations

import base64
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from monitor.alert.probe import knock, send_test
from monitor.alert.render import RenderedRequest
from monitor.alert.webhook import send
from monitor.calling import Caller, OutOfTime
from monitor.courier import Courier
from monitor.demo.receiver import Answer, Receiver
from monitor.errors import BrokerUnavailable, RefuseToStart
from monitor.ingest.kafka.tokens import ClientCredentials
from monitor.settings import AlertSettings, Endpoint, Settings
from monitor.values.alerts import Outcome
from tests.scenes.outbox import announce, attempts

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
SECONDS = 0.5
"""What a call may take in these tests."""
PATIENCE = 4.0
"""Far more than that, for a machine that is busy; far less than the floods go on for."""

Behaviour = Callable[[socket.socket], None]


def flood_of_interim_answers(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 50)


def dripped_interim_answers(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(SECONDS / 5)


def dripped_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        time.sleep(SECONDS / 5)


def endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: " + b"y" * 1_000 + b"\r\n")


def silence(connection: socket.socket) -> None:
    time.sleep(60)


def dripped_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(SECONDS / 5)


HOSTILE = [
    flood_of_interim_answers,
    dripped_interim_answers,
    dripped_headers,
    endless_headers,
    silence,
]


@contextmanager
def serving(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Read one request of each connection, then behave; the URL."""

    def one(connection: socket.socket) -> None:
        with suppress(OSError):
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
            with connection:
                connection.recv(65_536)
                behaviour(connection)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"{'https' if tls else 'http'}://localhost:{server.getsockname()[1]}/hook"
        server.shutdown(socket.SHUT_RDWR)


def endpoint(url: str, name: str = "ops") -> Endpoint:
    return Endpoint(name=name, url=url, secret=SECRET, timeout=timedelta(seconds=SECONDS))


def calling_threads() -> int:
    return sum(thread.name.startswith("calling") for thread in threading.enumerate())


@pytest.mark.parametrize("behaviour", HOSTILE)
def test_an_attempt_ends_by_its_deadline_and_so_does_its_thread(
    database: Engine, behaviour: Behaviour
) -> None:
    with serving(behaviour) as url:
        announce(database)
        to = endpoint(url)
        sender = Courier(database, Settings(alerts=AlertSettings(endpoints=(to,))))
        started = time.monotonic()
        assert sender.step() == 1
        assert time.monotonic() - started < PATIENCE
        (attempt,) = attempts(database)
        assert (attempt.outcome, attempt.status) == ("retry", None)
        assert attempt.error
        deadline = time.monotonic() + PATIENCE
        while calling_threads() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not calling_threads()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key.pem -out certificate.pem"
    named = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(f"{made} {named}".split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("behaviour", [flood_of_interim_answers, dripped_headers])
def test_the_deadline_holds_under_tls(
    certificate: Path, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    with serving(behaviour, tls) as url, Caller() as caller:
        started = time.monotonic()
        with pytest.raises(OutOfTime):
            caller.call("POST", url, seconds=SECONDS)
        assert time.monotonic() - started < PATIENCE
        deadline = time.monotonic() + PATIENCE
        while calling_threads() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not calling_threads()


def test_a_name_that_is_never_resolved_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only thing that no test can have for real: a name server that never answers."""
    connected = threading.Event()

    def slow(*given: object, **options: object) -> list[object]:
        time.sleep(3 * SECONDS)
        connected.set()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with Caller() as caller:
        started = time.monotonic()
        with pytest.raises(OutOfTime):
            caller.call("POST", "http://never.invalid/", seconds=SECONDS)
        assert time.monotonic() - started < 2.5 * SECONDS
    assert connected.wait(PATIENCE)


def test_a_call_after_one_that_ran_out_of_time_is_served_anew() -> None:
    with Receiver(SECRET) as receiver, Caller() as caller:
        receiver.answer(Answer(hang_seconds=30))
        to = endpoint(receiver.url)
        first = send(caller, *_request(to))
        second = send(caller, *_request(to))
    assert (first.outcome, second.outcome) == (Outcome.RETRY, Outcome.DELIVERED)


def _request(to: Endpoint) -> tuple[RenderedRequest, Endpoint, datetime]:
    request = RenderedRequest(url=to.url, headers={}, body=b"{}", message_id="evt_1")
    return request, to, datetime.now(UTC)


def test_the_answer_stands_when_its_body_is_dripped() -> None:
    with serving(dripped_body) as url, Caller() as caller:
        started = time.monotonic()
        attempt = send(caller, *_request(endpoint(url)))
        assert (attempt.outcome, attempt.status) == (Outcome.DELIVERED, 200)
        assert time.monotonic() - started < PATIENCE


def test_cookies_go_to_nobody(database: Engine) -> None:
    with Receiver(SECRET) as first, Receiver(SECRET) as second:
        first.always(Answer(headers={"set-cookie": "session=stolen; Path=/"}))
        alerts = AlertSettings(endpoints=(endpoint(first.url, "a"), endpoint(second.url, "b")))
        sender = Courier(database, Settings(alerts=alerts), jitter=random.Random(1))
        for _ in range(2):
            announce(database, "a")
            sender.step()
            announce(database, "b")
            sender.step()
        assert len(first.received) == len(second.received) == 2
        assert not any("cookie" in r.headers for r in (*first.received, *second.received))


@pytest.mark.parametrize("behaviour", [flood_of_interim_answers, dripped_headers])
def test_the_doctor_does_not_wait_for_ever(behaviour: Behaviour) -> None:
    with serving(behaviour) as url, Caller() as caller:
        started = time.monotonic()
        with pytest.raises(RefuseToStart, match="no answer in time"):
            knock(endpoint(url), caller)
        with pytest.raises(RefuseToStart, match="no answer in time"):
            send_test(endpoint(url), caller, external_url="", now=datetime.now(UTC))
        assert time.monotonic() - started < 2 * PATIENCE


@pytest.mark.parametrize("behaviour", [flood_of_interim_answers, dripped_body])
def test_a_token_endpoint_costs_its_deadline_and_no_memory(
    behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.ingest.kafka.tokens.REQUEST_SECONDS", SECONDS)
    with serving(behaviour) as url, pytest.raises(BrokerUnavailable):
        ClientCredentials(url, "monitor", lambda: "hidden").token()


def test_a_body_is_kept_up_to_its_bound_and_no_further() -> None:
    def vast(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n" + b"x" * 100_000)
        time.sleep(60)

    with serving(vast) as url, Caller() as caller:
        answer = caller.call("POST", url, seconds=PATIENCE, keep_bytes=50_000)
        assert len(answer.body) <= 50_000 + 1
        assert isinstance(answer.headers, httpx.Headers)
