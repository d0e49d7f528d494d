"""What the demo shows while it runs; drawn from a snapshot, so that the last one can be recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
MOVED = 0.3
"""A shift towards the persona that is surely beyond this is drawn in red."""
TOLD = {"code": "about code", "refusals": "refuse", "replaced": "by another model"}
COLOURS = {"pending": "yellow", "firing": "bold red", "resolved": "green", "unwatched": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLine:
    """One feature's drift over time: standardised shifts, oldest first, and the newest bounds.

    ``sign`` turns them towards the persona.
    """

    name: str
    sign: int
    shifts: Sequence[float]
    low: float
    high: float
    tail_ratio: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    act: str
    elapsed_seconds: float
    prompts_per_second: float
    scored: int
    shares: Mapping[str, float]
    """Of the answers, by what they are; the rest is everyday traffic."""
    features: Sequence[FeatureLine] = ()
    alerts: Sequence[tuple[str, str, str]] = ()
    """(state, severity, summary), newest first."""
    webhooks: Sequence[str] = ()
    notes: Sequence[str] = field(default=())


def draw(snapshot: Snapshot) -> RenderableType:
    """The whole screen as one renderable."""
    parts: list[RenderableType] = [_head(snapshot), _features(snapshot.features)]
    parts.append(_alerts(snapshot.alerts))
    parts.append(_webhooks(snapshot.webhooks))
    parts.extend(Text(note, style="dim") for note in snapshot.notes)
    return Group(*parts)


def _head(snapshot: Snapshot) -> Panel:
    line = Text()
    line.append(snapshot.act + "\n", style="bold cyan")
    line.append(f"{snapshot.elapsed_seconds:5.0f} s   ")
    line.append(f"{snapshot.prompts_per_second:4.1f} prompts/s replayed   ")
    line.append(f"{snapshot.scored} scored   ")
    told = [f"{share:.0%} {TOLD.get(name, name)}" for name, share in snapshot.shares.items()]
    line.append("answers: " + (", ".join(told) or "everyday"), style="red" if told else "green")
    return Panel(line, title="persona monitor", border_style="cyan")


def _features(features: Sequence[FeatureLine]) -> Table:
    table = Table(title="drift against the approved baseline", title_justify="left", expand=True)
    table.add_column("feature", no_wrap=True)
    table.add_column("shift over time", no_wrap=True)
    table.add_column("shift (sd)", justify="right")
    table.add_column("bounds", justify="right")
    table.add_column("tail ×", justify="right")
    table.add_column("n", justify="right")
    for feature in features:
        moved = min(feature.sign * feature.low, feature.sign * feature.high) > MOVED
        now = feature.shifts[-1] if feature.shifts else 0.0
        table.add_row(
            feature.name,
            sparkline(feature.shifts),
            f"{now:+.2f}",
            f"{feature.low:+.2f} … {feature.high:+.2f}",
            f"{feature.tail_ratio:.1f}",
            str(feature.n),
            style="red" if moved else "",
        )
    return table


def _alerts(alerts: Sequence[tuple[str, str, str]]) -> Panel:
    text = Text("none" if not alerts else "")
    for state, severity, summary in alerts:
        text.append(f"{state:<9}", style=COLOURS.get(state, ""))
        text.append(f"{severity:<9}{summary}\n")
    text.rstrip()
    return Panel(text, title="alerts", title_align="left", border_style="yellow")


def _webhooks(webhooks: Sequence[str]) -> Panel:
    return Panel(
        Text("\n".join(webhooks) or "none yet"),
        title="what the webhook receiver got",
        title_align="left",
        border_style="magenta",
    )


def sparkline(values: Sequence[float], *, width: int = 24, top: float = 2.0) -> str:
    """The last ``width`` values as block characters; ``top`` or more (either sign) is a full block."""
    steps = len(BARS) - 1
    return "".join(BARS[min(steps, round(abs(value) / top * steps))] for value in values[-width:])
