"""One feature's drift over time as figures for an inline SVG. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

WIDTH: Final = 480
HEIGHT: Final = 110
LEFT: Final = 34
BOTTOM: Final = 16
SMALLEST_SPAN: Final = 0.5
"""Below this shift the scale stays still, so that noise does not look like drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """SVG path data and ticks in a view box of `WIDTH` × `HEIGHT`."""

    line: str
    band: str
    zero: float
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def drift_chart(
    points: Sequence[Mapping[str, Any]], since: datetime, until: datetime, step: timedelta
) -> Chart:
    """The shift as a line over its confidence band; the line breaks where evaluations are missing."""
    bounds: list[float | None] = [
        point[key] for point in points for key in ("shift", "shift_low", "shift_high")
    ]
    seen = [value for value in bounds if value is not None]
    low = min([-SMALLEST_SPAN, *seen])
    high = max([SMALLEST_SPAN, *seen])

    def x(moment: datetime) -> float:
        return round(LEFT + (WIDTH - LEFT) * ((moment - since) / (until - since)), 1)

    def y(value: float) -> float:
        return round((HEIGHT - BOTTOM - 4) * (high - value) / (high - low) + 4, 1)

    runs = _runs(points, step * 3)
    return Chart(
        line=" ".join(_path([(x(p["evaluated_at"]), y(p["shift"])) for p in run]) for run in runs),
        band=" ".join(_band(run, x, y) for run in runs),
        zero=y(0.0),
        across=tuple(
            Tick(place=x(moment), label=_time_label(moment, until - since))
            for moment in (since + (until - since) * part / 4 for part in range(4))
        ),
        up=tuple(Tick(place=y(value), label=f"{value:+.1f}") for value in (low, high)),
    )


def _runs(
    points: Sequence[Mapping[str, Any]], longest_gap: timedelta
) -> list[list[Mapping[str, Any]]]:
    runs: list[list[Mapping[str, Any]]] = []
    for point in points:
        if point["shift"] is None:
            continue
        if runs and point["evaluated_at"] - runs[-1][-1]["evaluated_at"] <= longest_gap:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _path(places: Sequence[tuple[float, float]]) -> str:
    # A lone point is drawn as a dot: a line of no length with round ends.
    shown = places if len(places) > 1 else [*places, *places]
    return "M" + "L".join(f"{across},{up}" for across, up in shown)


def _band(
    run: Sequence[Mapping[str, Any]],
    x: Callable[[datetime], float],
    y: Callable[[float], float],
) -> str:
    bounded = [p for p in run if p["shift_low"] is not None and p["shift_high"] is not None]
    if not bounded:
        return ""
    above = [(x(p["evaluated_at"]), y(p["shift_high"])) for p in bounded]
    below = [(x(p["evaluated_at"]), y(p["shift_low"])) for p in reversed(bounded)]
    return _path([*above, *below]) + "Z"


def _time_label(moment: datetime, span: timedelta) -> str:
    return moment.strftime("%d %b %H:%M" if span > timedelta(days=1) else "%H:%M")
