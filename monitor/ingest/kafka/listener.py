"""Is the listener at an address of the kind that ``kafka.security_protocol`` names?

A listener of another kind tells a client nothing: it ends the connection, as a broker does that goes away.
So each is asked in its own terms, with a few bytes of the protocol (https://kafka.apache.org/protocol), and a
difference is stated only where it was seen: an answer in the other kind, or TLS's own word for it.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

ANSWER_SECONDS: Final = 3.0
MAX_ANSWER_BYTES: Final = 1_000_000
API_VERSIONS: Final = (18, 0, b"")
"""Key, version and body of a request that every listener answers to anyone."""
METADATA_OF_NO_TOPIC: Final = (3, 1, struct.pack(">i", 0))
"""… that a listener with SASL answers to nobody who has not logged in."""
SASL_HANDSHAKE: Final = (17, 1, struct.pack(">h5s", 5, b"PLAIN"))
"""… whose answer names the mechanisms, whether it knows this one or not."""

Address = tuple[str, int]
Request = tuple[int, int, bytes]


class _Silent(Exception):
    """No answer in Kafka's protocol: the connection ended, or time did."""


def mismatch(address: Address, options: Mapping[str, Any]) -> str:
    """What about our settings cannot work with this listener, naming the key; empty when that is not seen.

    ``options`` are those of the client library (`options.client_options`). May block for four times `ANSWER_SECONDS`; where all is well for two round trips.
    """
    where = f"the listener at {address[0]}:{address[1]}"
    protocol = str(options["security_protocol"])
    tls, sasl = protocol.endswith("SSL"), protocol.startswith("SASL")
    try:
        _ask(address, API_VERSIONS, options, tls=tls)
    except _Silent:
        return _of_the_other_kind(where, address, options)
    except ssl.SSLError as error:
        return _certificate(where, error, options) or _of_the_other_kind(where, address, options)
    if sasl:
        return ""  # a mechanism that it does not know is told by the library
    try:
        _ask(address, METADATA_OF_NO_TOPIC, options, tls=tls)
    except (_Silent, ssl.SSLError):
        offered = _mechanisms(address, options, tls=tls)
        if offered:
            return (
                f"{where} takes nobody without SASL ({', '.join(offered)}), but "
                f"kafka.security_protocol is {protocol}, not SASL_{protocol}"
            )
    return ""


def _of_the_other_kind(where: str, address: Address, options: Mapping[str, Any]) -> str:
    protocol = str(options["security_protocol"])
    tls = protocol.endswith("SSL")
    if tls:
        with suppress(_Silent):
            _ask(address, API_VERSIONS, options, tls=False)
            return f"{where} speaks no TLS, but kafka.security_protocol is {protocol}"
    elif _speaks_tls(address):
        return f"{where} speaks TLS, but kafka.security_protocol is {protocol}"
    return ""


def _certificate(where: str, error: ssl.SSLError, options: Mapping[str, Any]) -> str:
    """The listener's objection to our certificate, if its alert is one: we object to none of its own here."""
    reason = str(error.reason or "")
    if "ALERT" not in reason or not ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return ""
    if not options.get("ssl_certfile"):
        return f"{where} asks for a client's certificate, but kafka.ssl_certfile is not set"
    said = reason.partition("ALERT_")[2].replace("_", " ").lower()
    return f"{where} refuses the certificate of kafka.ssl_certfile: {said}"


def _mechanisms(address: Address, options: Mapping[str, Any], *, tls: bool) -> tuple[str, ...]:
    try:
        body = _ask(address, SASL_HANDSHAKE, options, tls=tls)
        (count,) = struct.unpack_from(">i", body, 2)
        found, at = [], 6
        for _ in range(count):
            (length,) = struct.unpack_from(">h", body, at)
            found.append(body[at + 2 : at + 2 + length].decode())
            at += 2 + length
    except (_Silent, ssl.SSLError, struct.error, UnicodeDecodeError):
        return ()
    return tuple(found)


def _ask(address: Address, request: Request, options: Mapping[str, Any], *, tls: bool) -> bytes:
    """The answer's body; `_Silent` when none comes, `ssl.SSLError` with TLS's own word for why not."""
    key, version, body = request
    client = b"persona-monitor"
    head = struct.pack(f">hhih{len(client)}s", key, version, 1, len(client), client)
    try:
        with socket.create_connection(address, ANSWER_SECONDS) as plain:
            speaking: Any = plain
            if tls:
                context = _unverified(options)
                speaking = context.wrap_socket(plain, server_hostname=address[0].rstrip("."))
            speaking.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
            (size,) = struct.unpack(">i", _exactly(speaking, 4))
            if not 4 <= size <= MAX_ANSWER_BYTES:
                raise _Silent
            answer = _exactly(speaking, size)
    except ssl.SSLEOFError:
        raise _Silent from None
    except ssl.SSLError:
        raise
    except (OSError, ValueError, struct.error):
        raise _Silent from None
    if answer[:4] != struct.pack(">i", 1):
        raise _Silent
    return answer[4:]


def _exactly(speaking: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        part = speaking.recv(size - len(got))
        if not part:
            raise _Silent
        got += part
    return got


def _speaks_tls(address: Address) -> bool:
    try:
        with (
            socket.create_connection(address, ANSWER_SECONDS) as plain,
            _unverified({}).wrap_socket(plain, server_hostname=address[0].rstrip(".")),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason or "")  # a word of TLS, if not a friendly one
    except (OSError, ValueError):
        return False


def _unverified(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Whose certificate it is, is for the library to verify; nothing secret is sent here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if options.get("ssl_certfile"):
        passphrase = options.get("ssl_password")
        context.load_cert_chain(
            options["ssl_certfile"], options.get("ssl_keyfile"), lambda: passphrase or ""
        )
    return context
