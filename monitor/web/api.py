"""The read-only API: what the dashboard shows, as JSON. It holds scores and ids, never prompt text.

``/api/overview``  packs, baseline, canaries, discoveries, ingest, open alerts, waiting deliveries
``/api/features``  the pack's features
``/api/drift``     drift over time: ``feature`` (all when left out), ``segment``, ``window`` (seconds),
                   ``hours`` back
``/api/alerts``    firing, pending, and those that ended within ``hours``

All but the last take ``pack``: an id, or the beginning of one. Left out, it is the live pack with an
approved baseline (`monitor.values.presence.foremost`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.errors import BadInput
from monitor.store import overview
from monitor.store.discoveries import read_discoveries
from monitor.store.fidelity import replays_compared
from monitor.store.ingest import ingest_health
from monitor.store.overview import Database, Reader
from monitor.store.packs import PackFeature, pack_features, pack_presence
from monitor.values.presence import PackPresence, foremost, said_by, several_live
from monitor.values.prompts import EVERYTHING

MOST_HOURS: Final = 24 * 31
POINTS: Final = 180
MOST_ALERTS: Final = 100
DEFAULT_WINDOW_SECONDS: Final = 3_600

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What part of the drift a request asks for."""

    hours: float
    segment: str
    window: timedelta
    feature: str | None
    pack: str | None

    @classmethod
    def of(cls, request: Request) -> View:
        """Raises `BadInput` naming the parameter."""
        return cls(
            hours=_number(request, "hours", 24.0, 0.1, MOST_HOURS),
            segment=_name(request, "segment") or EVERYTHING,
            window=timedelta(
                seconds=_number(request, "window", DEFAULT_WINDOW_SECONDS, 1, MOST_HOURS * 3_600)
            ),
            feature=_name(request, "feature"),
            pack=_name(request, "pack"),
        )

    def with_window(self, seconds: int) -> View:
        return replace(self, window=timedelta(seconds=seconds))


def _name(request: Request, name: str) -> str | None:
    given = request.query_params.get(name) or None
    if given and "\0" in given:
        raise BadInput(f"{name} must not hold NUL")
    return given


def _number(request: Request, name: str, default: float, least: float, most: float) -> float:
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadInput(f"{name} must be a number from {least} to {most}")
    return value


def pack_of(packs: Sequence[PackPresence], given: str | None) -> dict[str, Any] | None:
    """The pack that is shown; keys: pack_id, name, registered_at. `BadInput` for one not known."""
    if given is None:
        shown = foremost(packs)
    else:
        shown = foremost([pack for pack in packs if pack.pack_id.startswith(given)])
        if shown is None:
            known = ", ".join(pack.pack_id for pack in packs) or "(no pack yet)"
            raise BadInput(f"pack must be the beginning of one of: {known}")
    if shown is None:
        return None
    return {name: getattr(shown, name) for name in ("pack_id", "name", "registered_at")}


def state_of_things(c: Reader, now: datetime, given: str | None = None) -> dict[str, Any]:
    """Everything but the drift: what ``/api/overview`` answers and the top of the dashboard shows."""
    packs = pack_presence(c, now)
    pack = pack_of(packs, given)
    shown = pack["pack_id"] if pack else None
    compared = replays_compared(c, now - overview.LOOKED_AT, now).get(shown or "")
    alerts = overview.alerts_now(c, now - timedelta(hours=24), MOST_ALERTS)
    health = ingest_health(c, now - timedelta(hours=1), now)
    delays = {one.source: one.delay(now) for one in health.progress}
    known = {source: delay for source, delay in delays.items() if delay is not None}
    alive = {worker.worker_id for worker in health.workers}
    return {
        "now": now,
        "pack": pack,
        "packs": [asdict(one) for one in packs if one.live_workers or one.pack_id == shown],
        "several_packs": several_live(packs),
        "remarks": said_by(health.workers),
        "baseline": overview.approved_baseline(c, pack["pack_id"]) if pack else None,
        "discoveries": read_discoveries(c, shown, now - overview.LOOKED_AT) if shown else [],
        # As in an evaluation: a worker that is gone vouches for nothing, unless nobody else does.
        "canaries": [
            state
            for state in overview.canary_states(c, now - timedelta(days=1))
            if not alive or state["worker_id"] in alive
        ],
        # Of the last quarter of an hour; null: no record carries the server's token counts.
        "fidelity": asdict(compared) | {"share": compared.share} if compared else None,
        "ingest": {
            # Null: of no partition is the end of the log known.
            "lag_records": sum(health.lag.values()) if health.lag else None,
            "lag": health.lag or {},
            "delay_seconds": max(known.values(), default=None),
            "slowest": max(known, key=known.__getitem__, default=None),
            "last_hour": health.outcomes,
            "last_stored_at": health.last_scored_at,
            "workers": [asdict(worker) for worker in health.workers],
        },
        "alerts": [alert for alert in alerts if alert["state"] in ("pending", "firing")],
        "resolved": [alert for alert in alerts if alert["state"] == "resolved"],
        "unwatched": [alert for alert in alerts if alert["state"] == "unwatched"],
        "deliveries": overview.deliveries_waiting(c),
    }


def drift_of(c: Reader, pack_id: str, features: list[str], view: View, now: datetime) -> Any:
    return overview.drift_series(
        c,
        pack_id,
        features,
        segment=view.segment,
        window=view.window,
        since=now - timedelta(hours=view.hours),
        until=now,
        points=POINTS,
    )


def routes(database: Database, clock: Clock) -> list[Route]:
    def overview_(request: Request) -> Response:
        given = _name(request, "pack")
        with overview.reading(database) as c:
            return _json(state_of_things(c, clock(), given))

    def features(request: Request) -> Response:
        given = _name(request, "pack")
        with overview.reading(database) as c:
            pack = pack_of(pack_presence(c, clock()), given)
            found = pack_features(c, pack["pack_id"]) if pack else []
        return _json({"pack": pack, "features": [_described(feature) for feature in found]})

    def drift(request: Request) -> Response:
        view, now = View.of(request), clock()
        with overview.reading(database) as c:
            pack = pack_of(pack_presence(c, now), view.pack)
            names = [f.name for f in pack_features(c, pack["pack_id"])] if pack else []
            if view.feature is not None:
                if view.feature not in names:
                    raise BadInput(f"feature must be one of: {', '.join(names) or '(no pack yet)'}")
                names = [view.feature]
            series = drift_of(c, pack["pack_id"], names, view, now) if pack else {}
        return _json(
            {
                "pack": pack,
                "segment": view.segment,
                "window_seconds": view.window.total_seconds(),
                "drift": series,
            }
        )

    def alerts(request: Request) -> Response:
        hours = _number(request, "hours", 24.0, 0, MOST_HOURS)
        with overview.reading(database) as c:
            since = clock() - timedelta(hours=hours)
            return _json({"alerts": overview.alerts_now(c, since, MOST_ALERTS)})

    return [
        Route("/api/overview", overview_),
        Route("/api/features", features),
        Route("/api/drift", drift),
        Route("/api/alerts", alerts),
    ]


def _described(feature: PackFeature) -> dict[str, Any]:
    return {key: value for key, value in asdict(feature).items() if key != "tail_threshold"}


def _json(value: Any) -> Response:
    content = json.dumps(value, default=_as_text, allow_nan=False, separators=(",", ":"))
    return Response(content, media_type="application/json")


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
