"""What the platform asks: is the process alive, may it be counted on, what are its figures.

``/livez``   200 while every loop of this process goes round, or none has begun to. It never asks a
             dependency: a database that is down must not restart the process.
``/readyz``  200 when everything that `Readiness` names is True (model, database, assignment);
             else 503, with the reason of each. ``remarks`` are sentences about what is worth knowing
             and no reason to wait, like a second pack at work.
``/metrics`` the table of `monitor.metrics`, as Prometheus text or OpenMetrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monitor.heartbeat import Heartbeat
from monitor.metrics import METRICS

Readiness = Callable[[], Mapping[str, bool | str]]
"""What must hold before the process can be counted on: True, or False or the reason why not."""


Remarks = Callable[[], Sequence[str]]


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

    def readyz(_request: Request) -> Response:
        checks = dict(readiness())
        waiting = sorted(name for name, state in checks.items() if state is not True)
        body = {
            "ready": not waiting,
            "waiting_for": waiting,
            "checks": checks,
            "remarks": [] if waiting else list(remarks()),
        }
        return JSONResponse(body, status_code=503 if waiting else 200)

    async def metrics(request: Request) -> Response:
        METRICS.heartbeat_age.clear()
        for loop, age in heartbeat.ages().items():
            METRICS.heartbeat_age.labels(loop=loop).set(age)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(METRICS.registry), media_type=content_type)

    return [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
