"""A small webhook receiver that verifies what it gets: for the demo and for tests.

It can be told to answer with a status, to redirect, or to hang, for the next few requests or for all.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

LARGEST_BODY: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came, in the order of arrival. Header names are in lower case."""

    at: datetime
    path: str
    headers: Mapping[str, str]
    body: bytes
    verified: bool
    """The signature was there and right; False without a secret to check it with."""
    status: int
    """What was answered."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How to answer one request: after ``hang_seconds``, with a status and headers."""

    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_seconds: float = 0.0


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A sender that hangs up is none of our errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Receiver:
    """An HTTP server on a free port of the loopback interface, in threads of its own.

    With ``secret`` (``whsec_…``), a request whose signature is missing, wrong or old gets 401.
    Verification uses the reference package ``standardwebhooks`` (extra ``demo``).
    """

    def __init__(self, secret: str | None = None, *, port: int = 0) -> None:
        self._verify = _verifier(secret) if secret else None
        self._received: list[Received] = []
        self._changed = threading.Condition()
        self._answers: deque[Answer] = deque()
        self._usual = Answer()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    @property
    def received(self) -> tuple[Received, ...]:
        """Every request so far, also those answered with an error."""
        with self._changed:
            return tuple(self._received)

    @property
    def events(self) -> tuple[Received, ...]:
        """The requests that were accepted, the first of each ``webhook-id``: what a receiver acts on."""
        seen: dict[str, Received] = {}
        for request in self.received:
            if request.accepted:
                seen.setdefault(request.headers.get("webhook-id", ""), request)
        return tuple(seen.values())

    def answer(self, *answers: Answer) -> None:
        """Answer the next requests like this, one by one; then as usual again."""
        with self._changed:
            self._answers.extend(answers)

    def always(self, answer: Answer) -> None:
        """Answer every request like this from now on."""
        with self._changed:
            self._answers.clear()
            self._usual = answer

    def wait_for(
        self, wanted: Callable[[tuple[Received, ...]], bool], timeout_seconds: float
    ) -> bool:
        """Wait until ``wanted(received)`` is true; False when the time is up."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not wanted(tuple(self._received)):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return wanted(tuple(self._received))
            return True

    def _take(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        verified = self._verify is not None and self._verify(body, headers)
        with self._changed:
            answer = self._answers.popleft() if self._answers else self._usual
            if self._verify is not None and not verified:
                answer = Answer(status=401)
            self._received.append(
                Received(
                    at=datetime.now(UTC),
                    path=path,
                    headers=headers,
                    body=body,
                    verified=verified,
                    status=answer.status,
                )
            )
            self._changed.notify_all()
        self._closing.wait(answer.hang_seconds)
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 30

            def do_POST(self) -> None:
                length = self.headers.get("content-length", "")
                if not length.isdigit() or int(length) > LARGEST_BODY:
                    self.send_error(411 if not length.isdigit() else 413)
                    return
                body = self.rfile.read(int(length))
                headers = {
                    name.lower(): ", ".join(self.headers.get_all(name, [])) for name in self.headers
                }
                answer = receiver._take(self.path, headers, body)
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "0")
                    self.end_headers()
                except ConnectionError:
                    pass  # The sender had waited long enough.

            def log_message(self, format: str, *args: object) -> None:
                """The demo draws its own picture; a test reads `received`."""

        return Handler


def _verifier(secret: str) -> Callable[[bytes, Mapping[str, str]], bool]:
    from standardwebhooks import Webhook, WebhookVerificationError

    reference = Webhook(secret)

    def verify(body: bytes, headers: Mapping[str, str]) -> bool:
        try:
            reference.verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError):
            return False
        return True

    return verify
