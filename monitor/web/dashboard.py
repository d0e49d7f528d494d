"""The dashboard: one page, rendered here, without script: open alerts, state, drift per feature."""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from monitor.store import overview
from monitor.store.overview import Database
from monitor.store.packs import pack_features
from monitor.values.prompts import EVERYTHING
from monitor.web import chart
from monitor.web.api import POINTS, Clock, View, drift_of, state_of_things

PERIODS: Final = (6, 24, 168)
"""Hours that the page offers."""


def _age(moment: datetime | None, now: datetime) -> str:
    """``12 s``, ``5 min``, ``3 h`` or ``2 d``; a dash for never."""
    return _duration(None if moment is None else max(0.0, (now - moment).total_seconds()))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _span(seconds: int) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


_TEMPLATES: Final = Environment(
    loader=PackageLoader("monitor.web", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(span=_span, figure=_figure, duration=_duration)


def page(database: Database, request: Request, now: datetime) -> str:
    """The page as HTML. Raises `BadInput` for a wrong parameter."""
    view = View.of(request)
    with overview.reading(database) as c:
        state = state_of_things(c, now, view.pack)
        pack = state["pack"]
        features = pack_features(c, pack["pack_id"]) if pack else []
        choices: dict[str, list[Any]] = {"segments": [], "window_seconds": []}
        if pack:
            # Evaluations come every few minutes at the slowest: an hour shows every view in use.
            choices = overview.drift_views(c, pack["pack_id"], now - timedelta(hours=1))
        windows = choices["window_seconds"]
        if "window" not in request.query_params and windows and _seconds(view) not in windows:
            view = view.with_window(windows[len(windows) // 2])
        names = [feature.name for feature in features]
        series = drift_of(c, pack["pack_id"], names, view, now) if pack else {}
    since, step = now - timedelta(hours=view.hours), timedelta(hours=view.hours) / POINTS
    cards = [
        {
            "feature": feature,
            "chart": chart.drift_chart(series[feature.name], since, now, step),
            "last": series[feature.name][-1] if series[feature.name] else None,
        }
        for feature in features
    ]
    return _TEMPLATES.get_template("dashboard.html").render(
        state=state,
        cards=sorted(cards, key=_most_drifted_first),
        view=view,
        window_seconds=_seconds(view),
        segments=choices["segments"] or [EVERYTHING],
        windows=windows or [_seconds(view)],
        periods=PERIODS,
        now=now,
        age=lambda moment: _age(moment, now),
        width=chart.WIDTH,
        height=chart.HEIGHT,
        left=chart.LEFT,
    )


def _seconds(view: View) -> int:
    return int(view.window.total_seconds())


def _most_drifted_first(card: dict[str, Any]) -> tuple[float, str]:
    """By how far the shift is from zero beyond its bound, in the direction that the feature moves."""
    last, name = card["last"], card["feature"].name
    if last is None or last["shift"] is None:
        return (float("inf"), name)
    return (-card["feature"].toward(last["shift"]), name)


def routes(database: Database, clock: Clock) -> list[Route]:
    style = resources.files("monitor.web").joinpath("pages/dashboard.css").read_text("utf-8")

    def dashboard(request: Request) -> Response:
        return HTMLResponse(page(database, request, clock()))

    async def stylesheet(_request: Request) -> Response:
        return Response(style, media_type="text/css")

    return [Route("/", dashboard), Route("/dashboard.css", stylesheet)]
