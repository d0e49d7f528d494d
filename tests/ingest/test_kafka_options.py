"""Every security option reaches the client library under the name that it knows.

The broker of the tests speaks neither TLS nor SASL: the mapping is tested against the library's own
configuration and against OpenSSL, the token providers against a real HTTP server.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import SaslAuthenticationFailedError, TopicAuthorizationFailedError
from kafka.net.sasl.oauth import SaslMechanismOAuth
from pydantic import ValidationError

from monitor.errors import BrokerUnavailable, ConfigurationError
from monitor.ingest.kafka import client_options, describe
from monitor.ingest.kafka.options import consumer_options, refusal
from monitor.ingest.kafka.tokens import ClientCredentials, FileToken
from monitor.settings import KafkaSettings


def test_every_option_is_known_to_consumer_and_producer() -> None:
    for asked in (
        KafkaSettings(),
        KafkaSettings(security_protocol="SSL", ssl_ciphers="HIGH"),
        KafkaSettings(
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="monitor",
            sasl_password="secret",
        ),
        KafkaSettings(
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="OAUTHBEARER",
            oauth_token_file=Path("token"),
        ),
    ):
        assert consumer_options(asked).keys() <= KafkaConsumer.DEFAULT_CONFIG.keys()
        assert client_options(asked).keys() <= KafkaProducer.DEFAULT_CONFIG.keys()


def test_the_consumer_never_commits_or_resets_by_itself() -> None:
    options = consumer_options(KafkaSettings(bootstrap_servers=" a:1, b:2 ", group_id="g"))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["enable_auto_commit"] is False
    assert options["auto_offset_reset"] == "none"
    assert options["group_id"] == "g"


def test_added_partitions_are_noticed_within_a_minute_unless_told_otherwise() -> None:
    assert consumer_options(KafkaSettings())["metadata_max_age_ms"] <= 30_000
    asked = KafkaSettings(client_options={"metadata_max_age_ms": 5_000})
    assert consumer_options(asked)["metadata_max_age_ms"] == 5_000


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_passwords_come_from_a_file_that_is_read_again(mechanism: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    asked = KafkaSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism=mechanism,
        sasl_username="monitor",
        sasl_password_file=file,
    )
    with pytest.raises(ConfigurationError, match="sasl_password_file"):
        client_options(asked)
    for password in ("first", "rotated"):
        file.write_text(password + "\n")
        options = client_options(asked)
        assert options["sasl_mechanism"] == mechanism
        assert options["sasl_plain_username"] == "monitor"
        assert options["sasl_plain_password"] == password


def test_a_package_that_is_missing_is_named() -> None:
    iam = KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="AWS_MSK_IAM")
    kerberos = KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="GSSAPI")
    for asked, package in ((iam, "botocore"), (kerberos, "gssapi")):
        with pytest.raises(ConfigurationError, match=package) as refused:
            client_options(asked)
        assert "pip install" in refused.value.hint


def test_kerberos_and_iam_are_passed_on_when_their_packages_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gssapi", "botocore"):
        (tmp_path / f"{package}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    kerberos = client_options(
        KafkaSettings(
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="GSSAPI",
            sasl_kerberos_service_name="broker",
            sasl_kerberos_domain_name="example.org",
        )
    )
    assert kerberos["sasl_kerberos_service_name"] == "broker"
    assert kerberos["sasl_kerberos_domain_name"] == "example.org"
    iam = KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="AWS_MSK_IAM")
    assert client_options(iam)["sasl_mechanism"] == "AWS_MSK_IAM"
    with pytest.raises(ConfigurationError, match="SASL_SSL"):
        client_options(
            KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="AWS_MSK_IAM")
        )


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("enable_auto_commit", "cannot be changed"),
        ("auto_offset_reset", "cannot be changed"),
        ("fetch_max_byte", "is no option"),
    ],
)
def test_other_options_must_be_known_and_harmless(name: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=f"client_options.{name} {match}"):
        consumer_options(KafkaSettings(client_options={name: 1}))


def test_other_options_reach_the_consumer() -> None:
    options = consumer_options(KafkaSettings(client_options={"fetch_max_wait_ms": 7}))
    assert options["fetch_max_wait_ms"] == 7


# --- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, its key in the clear and under the passphrase ``sesame``."""
    folder = tmp_path_factory.mktemp("tls")
    for command in (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
        "openssl rsa -aes256 -in key.pem -out locked.pem -passout pass:sesame",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


def test_client_certificates_are_tried_before_a_connection_is(certificates: Path) -> None:
    asked: dict[str, Any] = {
        "security_protocol": "SSL",
        "ssl_cafile": certificates / "cert.pem",
        "ssl_certfile": certificates / "cert.pem",
        "ssl_keyfile": certificates / "locked.pem",
        "ssl_check_hostname": False,
    }
    options = client_options(KafkaSettings(**asked, ssl_password="sesame"))
    assert options["ssl_cafile"] == options["ssl_certfile"] == str(certificates / "cert.pem")
    assert options["ssl_keyfile"] == str(certificates / "locked.pem")
    assert options["ssl_password"] == "sesame"
    assert options["ssl_check_hostname"] is False
    with pytest.raises(ConfigurationError, match=r"ssl_certfile \(with ssl_keyfile, ssl_password"):
        client_options(KafkaSettings(**asked, ssl_password="wrong"))
    with pytest.raises(ConfigurationError, match="ssl_certfile"):
        client_options(KafkaSettings(**asked))


@pytest.mark.parametrize(
    ("field", "content"),
    [("ssl_cafile", "no certificate"), ("ssl_crlfile", "no list"), ("ssl_ciphers", None)],
)
def test_a_file_that_cannot_be_used_is_named(
    field: str, content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    asked = KafkaSettings(**{"security_protocol": "SSL", field: file if content else "NO-SUCH"})
    with pytest.raises(ConfigurationError, match=f"kafka.{field}"):
        client_options(asked)


def test_a_broker_whose_certificate_is_not_trusted_is_refused(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    with _listening(context) as port, pytest.raises(ConfigurationError) as refused:
        describe(
            KafkaSettings(
                bootstrap_servers=f"localhost:{port}",
                security_protocol="SSL",
                client_options={"bootstrap_timeout_ms": 2_000},
            )
        )
    assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value)
    assert "ssl_cafile" in refused.value.hint


@contextmanager
def _listening(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS listener that hangs up after each handshake."""
    with socket.create_server(("localhost", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


# --- bearer tokens -----------------------------------------------------------------------------------


class TokenEndpoint(ThreadingHTTPServer):
    """An OAuth 2 token endpoint: hands out ``token-1``, ``token-2`` … or what ``answer`` says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        self.answer: tuple[int, object] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/token"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, TokenEndpoint)
        form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        user = base64.b64decode(self.headers["authorization"].removeprefix("Basic ")).decode()
        server.requests.append((user, form))
        token = {"access_token": f"token-{len(server.requests)}", "expires_in": 100}
        status, answer = server.answer or (200, token)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def token_endpoint() -> Iterator[TokenEndpoint]:
    with TokenEndpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_client_credentials_are_exchanged_once_until_the_token_is_about_to_expire(
    token_endpoint: TokenEndpoint,
) -> None:
    now, secret = 1_000.0, "first"
    provider = ClientCredentials(
        token_endpoint.url, "monitor", lambda: secret, scope="kafka", clock=lambda: now
    )
    assert [provider.token(), provider.token()] == ["token-1", "token-1"]
    now, secret = 1_079.0, "rotated"
    assert provider.token() == "token-1"
    now = 1_080.0
    assert provider.token() == "token-2"
    form = {"grant_type": ["client_credentials"], "scope": ["kafka"]}
    assert token_endpoint.requests == [("monitor:first", form), ("monitor:rotated", form)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, {"error": "invalid_client"}), ConfigurationError),
        ((200, {"no": "token"}), ConfigurationError),
        ((200, ["list"]), ConfigurationError),
        ((503, {}), BrokerUnavailable),
        ((429, {}), BrokerUnavailable),
    ],
)
def test_what_the_token_endpoint_answers_decides_who_acts(
    token_endpoint: TokenEndpoint, answer: tuple[int, object], error: type[Exception]
) -> None:
    token_endpoint.answer = answer
    provider = ClientCredentials(token_endpoint.url, "monitor", lambda: "hidden")
    with pytest.raises(error) as raised:
        provider.token()
    assert "hidden" not in str(raised.value)
    token_endpoint.answer = None
    assert provider.token().startswith("token-")


def test_a_token_endpoint_that_is_away_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        ClientCredentials(f"http://127.0.0.1:{port}", "monitor", lambda: "").token()


def test_a_token_file_is_read_at_every_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    provider = FileToken(file)
    with pytest.raises(ConfigurationError, match="oauth_token_file"):
        provider.token()
    for token in ("one", "two"):
        file.write_text(f"{token}\n")
        assert provider.token() == token
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        provider.token()


def test_the_library_takes_our_providers(tmp_path: Path, token_endpoint: TokenEndpoint) -> None:
    file = tmp_path / "token"
    file.write_text("from-file")
    asked: dict[str, Any] = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
    from_file = KafkaSettings(**asked, oauth_token_file=file)
    from_endpoint = KafkaSettings(
        **asked,
        oauth_token_endpoint=token_endpoint.url,
        oauth_client_id="monitor",
        oauth_client_secret="secret",
    )
    for settings, token in ((from_file, "from-file"), (from_endpoint, "token-1")):
        sent = SaslMechanismOAuth(**client_options(settings)).auth_bytes()
        assert sent == f"n,,\x01auth=Bearer {token}\x01\x01".encode()


def test_incomplete_settings_are_refused_when_they_are_read() -> None:
    with pytest.raises(ValidationError, match="oauth_token_file"):
        KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER")


# --- refusals ----------------------------------------------------------------------------------------


def test_only_what_a_person_must_mend_is_a_configuration_error() -> None:
    asked = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="monitor",
        sasl_password="hidden",
    )
    wrong_password = refusal(SaslAuthenticationFailedError("denied"), asked)
    assert wrong_password
    assert "PLAIN" in wrong_password.hint
    assert "hidden" not in str(wrong_password) + wrong_password.hint
    not_allowed = refusal(TopicAuthorizationFailedError({"prompts"}), asked)
    assert not_allowed
    assert "READ" in not_allowed.hint
    assert refusal(ConnectionResetError("away"), asked) is None
