"""HTTP calls to servers that are not trusted: no cookies, no redirects, one deadline for the whole call.

The timeouts of an HTTP library hold for one read each. A server that sends a header or an interim
answer (1xx) every now and then holds its caller for as long as it likes, and so does a resolver. Here
a call runs in a thread of its own. When its time is up the caller goes on; the call's socket is shut
down, which ends the thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Final, Self

import httpx

DRAINED_BYTES: Final = 4_096
"""A body that says it is no longer than this is read and dropped, so that its connection can be kept."""


class OutOfTime(httpx.TimeoutException):
    """The whole call took longer than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: bytes
    """As it was sent, cut at what the call keeps and one byte; empty when it keeps nothing."""


class Caller:
    """One server's own client, for one call at a time; it keeps its connection between calls.

    Proxies and certificates of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``)
    are honoured.
    """

    def __init__(self) -> None:
        self._line = _Line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Not while a call is under way."""
        self._line.close()

    def call(
        self,
        method: str,
        url: str,
        *,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        auth: httpx.Auth | None = None,
        keep_bytes: int = 0,
    ) -> Answer:
        """Ask once, and wait at most ``seconds`` in all, whatever the server does.

        Raises `OutOfTime`, any other `httpx.HTTPError`, and what httpx raises for a URL or a header
        that it cannot send. Of the body at most ``keep_bytes`` and one more are read.
        """
        call = _Call(
            line=self._line,
            request={"method": method, "url": url, "content": content, "auth": auth},
            headers=dict(headers or {}),
            seconds=seconds,
            keep_bytes=keep_bytes,
        )
        thread = threading.Thread(target=call.run, name="calling", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self._line.cut()
            self._line = _Line()
            if call.answer is not None:
                return call.answer  # only its body is late
            raise OutOfTime(f"no whole answer within {seconds:g} s")
        if call.failure is not None:
            raise call.failure
        assert call.answer is not None
        return call.answer


class _Line:
    """A client with at most one connection, which another thread can cut."""

    def __init__(self) -> None:
        self.is_cut = False
        self._stream: Any = None
        self.client = httpx.Client(
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )

    def watch(self, name: str, info: Mapping[str, Any]) -> None:
        """httpx's ``trace``: keep hold of the socket; go no further once the line is cut."""
        if name.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._stream = info["return_value"]
        if self.is_cut:
            raise OutOfTime("the call had been given up")

    def cut(self) -> None:
        """End what is under way; the thread that calls closes the client."""
        self.is_cut = True
        held = self._stream.get_extra_info("socket") if self._stream else None
        if held is not None:
            with suppress(OSError):
                # The socket's own: that of TLS would first forget its keys under the reader's hands.
                socket.socket.shutdown(held, socket.SHUT_RDWR)

    def close(self) -> None:
        self.client.close()


@dataclass(slots=True, kw_only=True)
class _Call:
    line: _Line
    request: dict[str, Any]
    headers: dict[str, str]
    seconds: float
    keep_bytes: int
    answer: Answer | None = None
    failure: Exception | None = None

    def run(self) -> None:
        try:
            self._ask()
        except Exception as failure:
            self.failure = None if self.answer else failure
        finally:
            if self.line.is_cut:
                self.line.close()

    def _ask(self) -> None:
        with self.line.client.stream(
            **self.request,
            headers=self.headers,
            timeout=self.seconds,
            extensions={"trace": self.line.watch},
        ) as response:
            if self.keep_bytes:
                body = _first(response, self.keep_bytes)
                self.answer = Answer(
                    status=response.status_code, headers=response.headers, body=body
                )
                return
            self.answer = Answer(status=response.status_code, headers=response.headers, body=b"")
            length = response.headers.get("content-length", "")
            if response.status_code == 204 or (
                length.isascii() and length.isdigit() and int(length[:9]) <= DRAINED_BYTES
            ):
                _first(response, DRAINED_BYTES)


def _first(response: httpx.Response, limit: int) -> bytes:
    """The body's first ``limit`` bytes and one, as sent; the rest is left unread."""
    body = b""
    for piece in response.iter_raw():
        body += piece
        if len(body) > limit:
            return body[: limit + 1]
    return body
