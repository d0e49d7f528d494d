"""The whole face: health, metrics, the read-only API and the dashboard.

It has no log-in and changes nothing: keep it inside the cluster, or put a proxy before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.errors import BadInput, MonitorError
from monitor.heartbeat import Heartbeat
from monitor.logs import get_logger
from monitor.settings import WebSettings
from monitor.store import overview
from monitor.store.clock import machine_time
from monitor.store.overview import Database
from monitor.web import api, dashboard, health
from monitor.web.health import Readiness

log = get_logger(__name__)

LIVE_WITHIN: Final = WebSettings().live_within
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_app(
    database: Database | None,
    heartbeat: Heartbeat,
    readiness: Readiness,
    *,
    live_within: timedelta = LIVE_WITHIN,
    own_remarks: Callable[[], Sequence[str]] = tuple,
    clock: Callable[[], datetime] = machine_time,
    pages: bool = True,
) -> Starlette:
    """The whole face; without ``pages``, or without a ``database``, only health and metrics.

    ``own_remarks`` are what this process has to say in ``/readyz``, before what the database knows.

    A database that does not answer is 503, a wrong parameter 400 that names it.
    """

    def remarks() -> list[str]:
        stored = overview.remarks(database, clock) if database else ()
        return list(dict.fromkeys((*own_remarks(), *stored)))

    routes = health.routes(heartbeat, readiness, remarks, live_within.total_seconds())
    if database is not None and pages:
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
