"""Reports for people: one HTML page without scripts or links, and plots as SVG text.

The same input gives the same bytes (fixed ids, no dates). Plots have no background of their own and
take the page's ink, so that one figure serves light and dark. Drawing needs matplotlib, which is
imported when the first plot is drawn.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#010203"
"""Stands for the page's text colour while a figure is drawn."""
COLOURS: Final = ("#3b7dd8", "#d9822b", "#2f9e6e", "#c2417c", "#7d5fc7", "#8a7f1e", "#5b8c9e")
"""Readable on white and on near-black."""
_DASHES: Final = ("-", "--", "-.", ":")

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #63676e; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --paper: #16181b; --soft: #9aa0a8; --line: #33373d; }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
.subtitle { color: var(--soft); margin-top: 0; overflow-wrap: anywhere; }
p { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem .3rem 0; text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; }
svg { height: auto; max-width: 100%; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with plain-text paragraphs, then a figure (SVG of this module), then a table.

    ``table`` holds rows with the same keys in the same order; numbers are shown with four digits.
    """

    title: str
    paragraphs: Sequence[str] = ()
    figure: str | None = None
    table: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line through (x, y); ``low`` and ``high`` are its band. NaN leaves a gap."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """One self-contained HTML document. All texts are escaped; figures stand as they are."""
    head = html.escape(title)
    parts = [f"<h1>{head}</h1>"]
    if subtitle:
        parts.append(f'<p class="subtitle">{html.escape(subtitle)}</p>')
    for section in sections:
        parts.append(f"<section>\n<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        if section.figure is not None:
            parts.append(f"<figure>{section.figure}</figure>")
        if section.table:
            parts.append(_table(section.table))
        parts.append("</section>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def line_plot(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    log_x: bool = False,
) -> str:
    """Curves by name with their bands, and horizontal ``levels`` by name, as SVG."""

    def draw(axes: Axes) -> None:
        for (name, curve), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            axes.plot(curve.x, curve.y, marker="o", markersize=3, color=colour, label=name)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0
                )
        for (name, level), dash in zip((levels or {}).items(), cycle(_DASHES[1:]), strict=False):
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=dash, label=name)
        if log_x:
            axes.set_xscale("log")
        _legend(axes)

    return _drawn(draw, title, x_label, y_label)


def bar_plot(
    values: Mapping[str, float],
    *,
    title: str,
    x_label: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Horizontal bars by name, first on top, as SVG.

    ``intervals`` are whiskers (low, high) by bar; ``references`` are points set beside the bars, by
    their own name and then by bar (a control, a threshold).
    """
    names = list(values)

    def draw(axes: Axes) -> None:
        axes.barh(range(len(names)), [values[n] for n in names], height=0.6, color=COLOURS[0])
        for row, name in enumerate(names):
            if intervals is not None and name in intervals:
                axes.plot(intervals[name], (row, row), color=INK, linewidth=1.2)
        for (label, points), colour in zip(
            (references or {}).items(), cycle(COLOURS[1:]), strict=False
        ):
            rows = [row for row, name in enumerate(names) if name in points]
            axes.plot(
                [points[names[row]] for row in rows],
                rows,
                linestyle="none",
                marker="D",
                markersize=4,
                color=colour,
                label=label,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        _legend(axes)

    return _drawn(draw, title, x_label, "", height=1.2 + 0.28 * len(names))


def heat_plot(
    labels: Sequence[str], matrix: Sequence[Sequence[float]], *, title: str, legend: str
) -> str:
    """A square matrix of values in [-1, 1] with their figures, as SVG."""

    def draw(axes: Axes) -> None:
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        for row, line in enumerate(matrix):
            for column, value in enumerate(line):
                ink = "#ffffff" if abs(value) > 0.6 else "#000000"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink
                )
        axes.figure.colorbar(image, ax=axes, label=legend, fraction=0.04)

    return _drawn(draw, title, "", "", height=1.6 + 0.4 * len(labels))


def span_plot(
    rows: Mapping[str, Mapping[str, Sequence[tuple[datetime, datetime]]]],
    *,
    kinds: Sequence[str],
    title: str,
    bounds: tuple[datetime, datetime],
) -> str:
    """What lasted from when to when, as SVG: a row for each name, in it a bar for each of ``kinds``."""
    height = 0.8 / len(kinds)

    def draw(axes: Axes) -> None:
        for index, (kind, colour) in enumerate(zip(kinds, cycle(COLOURS), strict=False)):
            axes.plot([], [], color=colour, linewidth=5, label=kind)
            for row, spans in enumerate(rows.values()):
                bars = [(begun, ended - begun) for begun, ended in spans.get(kind, ())]
                lower = row - 0.4 + index * height
                axes.broken_barh(bars, (lower, 0.9 * height), color=colour)  # type: ignore[arg-type]
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set_xlim(*bounds)  # type: ignore[arg-type]
        axes.tick_params(axis="x", labelrotation=30)
        _legend(axes)

    return _drawn(draw, title, "UTC", "", height=1.6 + 0.4 * len(rows))


def _drawn(
    draw: Callable[[Axes], None], title: str, x_label: str, y_label: str, height: float = 3.6
) -> str:
    """The SVG of one pair of axes, 7.2 inches wide. Raises `ConfigurationError` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError(
            "a report with plots needs matplotlib",
            hint="pip install '.[research]' in a checkout of the monitor",
        ) from None
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {
        "svg.hashsalt": "persona-monitor",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        **dict.fromkeys(inks, INK),
    }
    buffer = io.StringIO()
    # Settings of the user's own matplotlibrc would make other bytes.
    with matplotlib.rc_context(dict(matplotlib.rcParamsDefault) | style):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """``svg`` as it stands inside HTML: no prolog, no repeated ids, ink of the page, a spoken name."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[A-Za-z0-9_.]+"', "<g", svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _legend(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [_line("th", rows[0]), *(_line("td", row.values()) for row in rows)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _line(tag: str, cells: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(_shown(c))}</{tag}>" for c in cells) + "</tr>"


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
