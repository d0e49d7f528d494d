"""What the server answers, whichever engine reads: four paths, the key, and what is refused.

Nothing of a row is ever logged.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monitor.backends.vllm import wire
from monitor.errors import BadInput, MonitorError, ReplayUnavailable

Read = Callable[[Sequence[wire.Asked]], Awaitable[Sequence[wire.Answered]]]
"""Reads rows, in order, and weighs their answers by their laws. Raises `ReplayUnavailable` when the engine is gone."""
Statistics = Callable[[], Awaitable[Mapping[str, int]]]


def create_app(
    about: wire.About, read: Read, statistics: Statistics, key: str | None = None
) -> Starlette:
    """The server's face. With ``key`` every path but ``/health`` wants it as a bearer's."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def told(request: Request) -> Response:
        return _refused_key(request, key) or JSONResponse(about.entry())

    async def counted(request: Request) -> Response:
        return _refused_key(request, key) or JSONResponse(dict(await statistics()))

    async def readings(request: Request) -> Response:
        if refused := _refused_key(request, key):
            return refused
        try:
            rows = _rows(wire.parsed(await _body(request)), about)
            found = await read(rows)
        except BadInput as error:
            return _said(400, str(error))
        except ReplayUnavailable as error:
            return _said(503, str(error))
        except MonitorError as error:
            return _said(500, str(error))
        return JSONResponse(
            {"instrument": about.entry(), "rows": [wire.packed(one) for one in found]}
        )

    return Starlette(
        routes=[
            Route("/health", health),
            Route(wire.ABOUT, told),
            Route(wire.STATISTICS, counted),
            Route(wire.READINGS, readings, methods=["POST"]),
        ]
    )


def _refused_key(request: Request, key: str | None) -> Response | None:
    given = request.headers.get("authorization", "")
    if key is None or hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        return None
    return _said(401, "the key is missing or another one")


def _said(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status_code=status)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > wire.MOST_BYTES:
            raise BadInput(f"the body is larger than {wire.MOST_BYTES:,} bytes")
    return bytes(body)


def _rows(content: dict[str, Any], about: wire.About) -> list[wire.Asked]:
    given = content.get("rows")
    if not isinstance(given, list) or not 0 < len(given) <= wire.MOST_ROWS:
        raise BadInput(f"rows: expected 1 to {wire.MOST_ROWS:,} rows")
    rows = []
    for one in given:
        ids = one.get("ids") if isinstance(one, dict) else None
        if not isinstance(ids, list) or not all(type(index) is int and index >= 0 for index in ids):
            raise BadInput("rows: ids must be a list of token ids")
        if len(ids) > about.max_tokens:
            raise BadInput(f"rows: {len(ids)} tokens, and {about.max_tokens} are the most")
        rows.append(wire.asked_of(ids, one))
    if about.no_weighing and any(row.laws for row in rows):
        raise BadInput(f"rows: no answer is weighed here: {about.no_weighing}")
    return rows
