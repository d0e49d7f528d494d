"""A web server in a thread of its own beside the loops."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from monitor.errors import ConfigurationError, StopLoudly
from monitor.logs import get_logger
from monitor.settings import WebSettings
from monitor.web.connections import BoundedProtocol

log = get_logger(__name__)

_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 5
_HEADER_BYTES: Final = 16_384
_BACKLOG: Final = 64
"""Connections taken at once, before any is counted: with the library's 2,048 files ran out."""


class WebServer:
    """Serves ``app`` at ``web.host``:``web.port`` from `start` to `stop`.

    Port 0 takes a free port; `port` tells which. ``what``: what of the face it is, ``pages`` or ``health``.
    """

    def __init__(self, app: ASGIApp, settings: WebSettings, *, what: str = "pages") -> None:
        self._app = app
        self._settings = settings
        self._what = what
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
            backlog=_BACKLOG,
            http=BoundedProtocol,
            ws="none",
            h11_max_incomplete_event_size=_HEADER_BYTES,
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

        self._thread = threading.Thread(
            target=run, args=(self._server,), name=f"web-{self._what}", daemon=True
        )
        self._thread.start()
        for _ in range(int(_START_SECONDS / 0.02)):
            if self._server.started or ready.wait(0.02):
                break
        if not self._server.started:
            raise StopLoudly("the web server did not start; the log says why")
        told = {"host": self._settings.host, "port": self.port}
        if self._what == "health":
            log.info("web.health_listening", **told)
        elif is_loopback(self._settings.host):
            log.info("web.listening", **told, reach="this machine alone (web.host)")
        else:
            hint = "keep it inside the cluster, or put a proxy with a log-in before it (web.host)"
            log.warning("web.listening_without_log_in", **told, hint=hint)

    def stop(self) -> None:
        """Answer what is in hand, then end. Without effect when not started."""
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(_STOP_SECONDS + 1)
            self._server = self._thread = None

    def serve(self, stop: threading.Event) -> None:
        """`start` where that is still to be done, wait for ``stop``, `stop`.

        Raises `StopLoudly` when the server dies before.
        """
        if self._server is None:
            self.start()
        try:
            while not stop.wait(0.5):
                if self._thread is None or not self._thread.is_alive():
                    raise StopLoudly("the web server ended by itself; the log says why")
        finally:
            self.stop()


def health_server(app: ASGIApp, settings: WebSettings) -> WebServer | None:
    """The second listener, ``app`` being without pages; None where `WebSettings.health_port` is."""
    if settings.health_port is None:
        return None
    there = {"host": settings.health_host, "port": settings.health_port}
    return WebServer(app, settings.model_copy(update=there), what="health")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"web: cannot listen at {host}:{port}: {error.strerror or error}",
            hint="set web.host and web.port (web.health_host, web.health_port), or end the other process",
        ) from None
