"""What the platform asks: is the process alive, may it be counted on, what are its figures.

``/livez``   200 while every loop of this process goes round, or none has begun to. It never asks a
             dependency: a database that is down must not restart the process.
``/readyz``  200 when everything that `Readiness` names is True (model, database, assignment);
             else 503, with the reason of each, and within a second whatever hangs. ``remarks`` are sentences about what is worth knowing
             and no reason to wait, like a second pack at work.
``/metrics`` the table of `monitor.metrics`, as Prometheus text or OpenMetrics.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monitor.heartbeat import Heartbeat
from monitor.metrics import METRICS

Readiness = Callable[[], Mapping[str, bool | str]]
"""What must hold before the process can be counted on: True, or False or the reason why not."""


Remarks = Callable[[], Sequence[str]]

READY_SECONDS: Final = 0.8
"""How long ``/readyz`` waits for what it asks; then it says that nothing answers."""

_Checks = dict[str, bool | str]
_Seen = tuple[_Checks, list[str]]


def _holds(state: bool | str) -> bool:
    return state is True


class _Looking:
    """Looks at what may hang, in a thread of its own and one at a time, for callers that will not wait.

    The threads that serve requests are no place for it: a frozen database holds all of them.
    """

    def __init__(self, look: Callable[[], _Seen]) -> None:
        self._look = look
        self._under_way: Future[_Seen] | None = None
        self._last: _Checks = {}

    async def seen(self, seconds: float) -> _Seen:
        if self._under_way is None or self._under_way.done():
            self._under_way = self._started()
        asked = asyncio.wrap_future(self._under_way)
        try:
            checks, said = await asyncio.wait_for(asyncio.shield(asked), seconds)
        except TimeoutError:
            asked.add_done_callback(lambda one: one.cancelled() or one.exception())
            hangs = f"no answer within {seconds:g} s: what is asked hangs, the database most likely"
            return {**self._last, "answer": hangs}, []
        self._last = checks
        return checks, said

    def _started(self) -> Future[_Seen]:
        future: Future[_Seen] = Future()

        def run() -> None:
            try:
                future.set_result(self._look())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="readiness", daemon=True).start()
        return future


def routes(
    heartbeat: Heartbeat, readiness: Readiness, remarks: Remarks, live_within_seconds: float
) -> list[Route]:
    async def livez(_request: Request) -> Response:
        ages = heartbeat.ages()
        silent = sorted(loop for loop, age in ages.items() if age > live_within_seconds)
        body = {
            "alive": not silent,
            "silent": silent,
            "seconds_since_beat": {loop: round(age, 3) for loop, age in sorted(ages.items())},
        }
        return JSONResponse(body, status_code=503 if silent else 200)

    def looked() -> _Seen:
        checks = dict(readiness())
        return checks, list(remarks()) if all(map(_holds, checks.values())) else []

    looking = _Looking(looked)

    async def readyz(_request: Request) -> Response:
        checks, said = await looking.seen(READY_SECONDS)
        waiting = sorted(name for name, state in checks.items() if not _holds(state))
        body = {
            "ready": not waiting,
            "waiting_for": waiting,
            "checks": checks,
            "remarks": [] if waiting else said,
        }
        return JSONResponse(body, status_code=503 if waiting else 200)

    async def metrics(request: Request) -> Response:
        METRICS.heartbeat_age.clear()
        for loop, age in heartbeat.ages().items():
            METRICS.heartbeat_age.labels(loop=loop).set(age)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(METRICS.registry), media_type=content_type)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
