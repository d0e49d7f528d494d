"""The tables and plots of this folder's README, made from ``results/*.json``.

python -m benchmarks.identity tables            # prints them
python -m benchmarks.identity tables --write    # puts tables between their marks, and plots beside the results
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.identity.results import RESULTS
from benchmarks.identity.shares import FEATURES, TOGETHER
from benchmarks.pages import placed
from benchmarks.persona.results import picture
from benchmarks.persona.tables import table
from monitor.research.report import Curve, bar_plot, line_plot

README: Final = Path(__file__).parent / "README.md"
VERDICTS: Final = (
    "input_shift",
    "model_shift",
    "instrument_shift",
    "undecided",
    "unknown",
)


def swap(found: Mapping[str, Any]) -> Iterator[str]:
    longest = found["longest_run"]
    yield from table(
        [
            "answers of (temperature 1)",
            "in the pool",
            "surprise, nats a token",
            "identity, any look: tokens",
            "z of the surprise, one look: tokens",
        ],
        [
            [
                name,
                str(row["answers_in_pool"]),
                f"{row['z_test']['surprise']:+.3f} ± {row['z_test']['error']:.3f}",
                _seen(row["identity"], longest),
                _number(row["z_test"]["tokens"]),
            ]
            for name, row in found["drawn"].items()
        ],
    )
    yield from table(
        [
            "answers of (temperature 0)",
            "margin, nats a token",
            "tokens given away",
            "identity, any look: tokens",
            "Token-DiFR, one look",
            "identity's over DiFR's",
        ],
        [
            [
                name,
                f"{row['margin']:.4f}",
                f"{row['given_away']:.1%}",
                _seen(row["identity"], longest),
                _number(row["token_difr"]["tokens"]),
                _over(row["identity"]["tokens"], row["token_difr"]["tokens"]),
            ]
            for name, row in found["greedy"].items()
        ],
    )


def equality(found: Mapping[str, Any]) -> Iterator[str]:
    sizes = list(next(iter(found["servers"].values()))["rejected"])
    shown = [one for one in sizes if one.endswith(" x 10")]
    yield from table(
        [
            "answers of",
            *(f"{one} answers" for one in shown),
            "tokens until half of all runs reject",
        ],
        [
            [
                name,
                *(f"{row['rejected'][one]:.0%}" for one in shown),
                _number(row["tokens"]) if row["tokens"] else f"not by {found['most']} answers",
            ]
            for name, row in found["servers"].items()
        ],
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _seen(row: Mapping[str, Any], longest: int) -> str:
    if row["tokens"] is not None:
        return f"**{row['tokens']:,.0f}**"
    return f"not within {longest:,} answers ({row['seen']:.1%} of runs)"


def _over(ours: float | None, theirs: float | None) -> str:
    return "–" if ours is None or theirs is None else f"{ours / theirs:,.1f}"


def shares(found: Mapping[str, Any]) -> Iterator[str]:
    by_share = next(iter(found["prompts"].values()))
    yield from table(
        ["", *(f"{float(one):.0%}" if float(one) else "none (false alarms)" for one in by_share)],
        [
            [_witness(name), *(_prompts(row) for row in its.values())]
            for name, its in found["prompts"].items()
        ],
    )


def _witness(name: str) -> str:
    if name in (FEATURES, TOGETHER):
        return {
            FEATURES: "the default rules on the pack's features",
            TOGETHER: "**identity of every answer, and the rules, until one fires**",
        }[name]
    weighed, *counted = name.split(", ")
    return f"identity, {float(weighed):.0%} of the answers weighed" + (
        ", token counts logged" if counted else ""
    )


def _prompts(row: Mapping[str, Any]) -> str:
    alarmed = f"{row['alarmed']} of {row['runs']}"
    median = row["median_prompts"]
    if median is None:
        return alarmed
    fires = row.get("median_prompts_fires")
    told = f"**{median:,.0f}**" + ("" if fires is None else f", fires at {fires:,.0f}")
    return f"{told} ({alarmed})"


def validity(found: Mapping[str, Any]) -> Iterator[str]:
    laws = [law for law in found if isinstance(found[law], dict) and "crossed" in found[law]]
    yield from table(
        [
            "law",
            "answers in the pool",
            "runs that pass 20 (5 %)",
            "runs that pass 100 (1 %)",
            "largest e-value",
            "detector's alarms",
            "other languages alone: runs that pass 20, 100; alarms",
            "mean wager by share bet on",
        ],
        [
            [
                law,
                str(row["answers_in_pool"]),
                *(f"{one['runs']} of {row['runs']}" for one in row["crossed"].values()),
                f"{math.exp(row['largest_log_e_value']):.1f}",
                f"{row['detector_alarms']} of {row['runs']}",
                _alone(row["alone"]),
                ", ".join(
                    f"{mean:.3f} ± {error:.3f}"
                    for mean, error in zip(row["mean_wager"], row["mean_wager_error"], strict=True)
                ),
            ]
            for law, row in ((law, found[law]) for law in laws)
        ],
    )


def _alone(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    passed = ", ".join(str(one["runs"]) for one in row["crossed"].values())
    return f"{passed}; {row['detector_alarms']} of {row['runs']}"


def causes(found: Mapping[str, Any]) -> Iterator[str]:
    for weighed, its in found["weighed"].items():
        for kind, title in (
            ("causes", "what happened"),
            ("input_shifts", "shift of the input alone"),
            ("beside", "beside"),
        ):
            yield from table(
                [
                    f"{title} ({_witnessing(weighed)})",
                    *(f"`{verdict}`" for verdict in VERDICTS),
                    "nobody paged",
                    "median prompts until a page",
                    "at the end",
                ],
                [
                    [
                        name,
                        *(str(row["verdict"].get(verdict, "")) for verdict in VERDICTS),
                        str(row["quiet"] or ""),
                        _number(row["median_prompts"]),
                        ", ".join(f"`{verdict}` {n}" for verdict, n in row["history"].items()),
                    ]
                    for name, row in its[kind].items()
                ],
            )


def _witnessing(name: str) -> str:
    weighed, *twins = name.split(", twins ")
    return f"{float(weighed):.0%} weighed" + (
        f", {float(twins[0]):.0%} with a twin" if twins else ""
    )


def plots(found: Mapping[str, Mapping[str, Any]]) -> None:
    if "shares" in found:
        its = found["shares"]["prompts"]
        foreign = [share for share in next(iter(its.values())) if float(share)]
        curves = {_witness(name).strip("*"): _curve(foreign, row) for name, row in its.items()}
        svg = line_plot(
            curves,
            title="Prompts until a small share is seen (median)",
            x_label="share of the answers that the reckless organism gives",
            y_label="prompts",
            log_x=True,
        )
        picture("shares", svg, RESULTS)
    if "causes" in found:
        its = next(iter(found["causes"]["weighed"].values()))
        picture("causes", _confusion(its), RESULTS)


def _curve(foreign: Sequence[str], row: Mapping[str, Any]) -> Curve:
    medians = [row[share]["median_prompts"] for share in foreign]
    return Curve(
        x=[float(share) for share in foreign], y=[math.nan if m is None else m for m in medians]
    )


def _confusion(its: Mapping[str, Any]) -> str:
    """The share of right verdicts of each cause, and of shifts of the input alone."""
    expected = {
        "users change": "input_shift",
        "instrument": "instrument_shift",
        **dict.fromkeys(its["input_shifts"], "input_shift"),
    }
    rows = {**its["causes"], **its["input_shifts"]}
    bars = {
        name: row["verdict"].get(expected.get(name, "model_shift"), 0)
        / sum(row["verdict"].values())
        for name, row in rows.items()
    }
    return bar_plot(bars, title="Share of right verdicts", x_label="share of runs")


TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "swap": swap,
    "shares": shares,
    "validity": validity,
    "causes": causes,
    "equality": equality,
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    options = parser.parse_args(arguments)
    found = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in TABLES
        if (RESULTS / f"{name}.json").exists()
    }
    tables = {name: "\n".join(TABLES[name](content)).strip() for name, content in found.items()}
    if options.write:
        README.write_text(placed(README.read_text(), tables))
        plots(found)
    for name, lines in tables.items():
        print(f"## {name}\n\n{lines}\n")
