"""The web face: health, metrics, the read-only API and the dashboard, in a thread beside the loops.

It has no log-in and changes nothing: keep it inside the cluster, or put a proxy before it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.errors import BadInput, ConfigurationError, MonitorError, StopLoudly
from monitor.settings import WebSettings
from monitor.store.overview import Database
from monitor.telemetry import Heartbeat, get_logger
from monitor.web import api, dashboard, health
from monitor.web.health import Readiness

log = get_logger(__name__)

_START_SECONDS = 10.0
_STOP_SECONDS = 5
LIVE_WITHIN: Final = WebSettings().live_within
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _now() -> datetime:
    return datetime.now(UTC)


def create_app(
    database: Database | None,
    heartbeat: Heartbeat,
    readiness: Readiness,
    *,
    live_within: timedelta = LIVE_WITHIN,
    clock: Callable[[], datetime] = _now,
) -> Starlette:
    """The whole face; without a ``database`` only health and metrics.

    A database that does not answer is 503, a wrong parameter 400 that names it.
    """
    routes = health.routes(heartbeat, readiness, live_within.total_seconds())
    if database is not None:
        routes += [*api.routes(database, clock), *dashboard.routes(database, clock)]
    return Starlette(
        routes=routes,
        middleware=[Middleware(SafeHeaders)],
        exception_handlers={MonitorError: _explain},
    )


async def _explain(_request: Request, error: Exception) -> Response:
    if isinstance(error, BadInput):
        return JSONResponse({"error": str(error)}, status_code=400)
    # What the database said is for the log: it may name hosts and users.
    log.warning("web.cannot_answer", error=str(error), kind=type(error).__name__)
    hint = getattr(error, "hint", "") or "the log says more"
    return JSONResponse({"error": "cannot answer now", "hint": hint}, status_code=503)


class SafeHeaders:
    """No script, no frame, nothing from elsewhere, nothing kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class WebServer:
    """Serves ``app`` at ``web.host``:``web.port`` from `start` to `stop`.

    Port 0 takes a free port; `port` tells which.
    """

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._app = app
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.port = settings.port

    def start(self) -> None:
        """Listen, and return when requests are answered.

        Raises `ConfigurationError` when the address cannot be taken.
        """
        listener = _listen(self._settings.host, self._settings.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        ready = threading.Event()

        def run(server: uvicorn.Server) -> None:
            try:
                server.run(sockets=[listener])
            finally:
                listener.close()
                ready.set()

        self._thread = threading.Thread(target=run, args=(self._server,), name="web", daemon=True)
        self._thread.start()
        for _ in range(int(_START_SECONDS / 0.02)):
            if self._server.started or ready.wait(0.02):
                break
        if not self._server.started:
            raise StopLoudly("the web server did not start; the log says why")
        log.info("web.listening", host=self._settings.host, port=self.port)

    def stop(self) -> None:
        """Answer what is in hand, then end. Without effect when not started."""
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(_STOP_SECONDS + 1)
            self._server = self._thread = None

    def serve(self, stop: threading.Event) -> None:
        """`start`, wait for ``stop``, `stop`. Raises `StopLoudly` when the server dies before."""
        self.start()
        try:
            while not stop.wait(0.5):
                if self._thread is None or not self._thread.is_alive():
                    raise StopLoudly("the web server ended by itself; the log says why")
        finally:
            self.stop()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"web: cannot listen at {host}:{port}: {error.strerror or error}",
            hint="set web.host and web.port, or end the other process",
        ) from None
