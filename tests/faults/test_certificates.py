"""Wrong certificates of those we talk to: no word is said to them, and the reason is told. Kafka's: tests/kafka."""

from __future__ import annotations

import base64
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import make_url

from monitor.alert.render import RenderedRequest
from monitor.alert.webhook import send
from monitor.calling import Caller
from monitor.errors import DatabaseUnavailable
from monitor.settings import Endpoint, PostgresSettings
from monitor.store.database import connect, current_revision
from monitor.values.alerts import Outcome
from tests.kafka.authority import Authority

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@contextmanager
def receiver(certificate: Path) -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"https://localhost:{server.server_port}/hook", got
        server.shutdown()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, ""),
        ("stranger", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("name", "Hostname mismatch"),
    ],
)
def test_a_receiver_with_a_wrong_certificate_is_told_nothing(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    signs = Authority(tmp_path / "stranger", "a stranger") if wrong == "stranger" else authority
    hosts = ["elsewhere.test"] if wrong == "name" else ["localhost"]
    certificate = signs.issue("receiver", hosts, expired=wrong == "expired")
    with receiver(certificate) as (url, got), Caller() as caller:
        to = Endpoint(name="ops", url=url, secret=SECRET)
        request = RenderedRequest(url=url, headers={}, body=b"{}", message_id="evt_1")
        attempt = send(caller, request, to, datetime.now(UTC))
    if wrong is None:
        assert (attempt.outcome, got) == (Outcome.DELIVERED, [b"{}"])
    else:
        assert (attempt.outcome, attempt.status, got) == (Outcome.RETRY, None, [])
        assert said in attempt.error


@contextmanager
def terminator(certificate: Path, port: int) -> Iterator[int]:
    """TLS as a PostgreSQL with ``ssl = on`` speaks it, before one that was built without; its port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def pump(source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65_536):
                to.sendall(piece)
        with suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)

    def serve(near: socket.socket) -> None:
        with suppress(OSError), near:
            assert near.recv(8)[4:] == (80_877_103).to_bytes(4, "big")  # SSLRequest
            near.sendall(b"S")
            with (
                tls.wrap_socket(near, server_side=True) as clear,
                socket.create_connection(("127.0.0.1", port)) as far,
            ):
                back = threading.Thread(target=pump, args=(far, clear), daemon=True)
                back.start()
                pump(clear, far)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=serve, args=(near,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_database_with_a_wrong_certificate_is_told_nothing(
    authority: Authority, tmp_path: Path, migrated_url: str
) -> None:
    certificate = authority.issue("database", ["localhost"])
    expired = authority.issue("database", ["localhost"], expired=True)
    server = make_url(migrated_url)
    assert server.port

    def ask(port: int, trusted: Path, host: str = "localhost") -> str | None:
        query = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
        url = server.set(host=host, port=port, query=query)
        engine = connect(PostgresSettings(url=url.render_as_string(hide_password=False)))
        try:
            return current_revision(engine)
        finally:
            engine.dispose()

    with terminator(certificate, server.port) as port:
        assert ask(port, authority.certificate)
        with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
            ask(port, Authority(tmp_path / "stranger", "a stranger").certificate)
        with pytest.raises(DatabaseUnavailable, match="does not match host name"):
            ask(port, authority.certificate, "127.0.0.1")
    with (
        terminator(expired, server.port) as port,
        pytest.raises(DatabaseUnavailable, match="certificate verify failed"),
    ):
        ask(port, authority.certificate)
    with pytest.raises(DatabaseUnavailable, match="does not support SSL"):
        ask(server.port, authority.certificate)
