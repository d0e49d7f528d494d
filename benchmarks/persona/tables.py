"""The tables of this folder's README, made from ``results/*.json``.

    python -m benchmarks.persona.tables            # prints them
    python -m benchmarks.persona.tables --write    # puts them between their marks in README.md

Results of one training and one pack that older versions of a benchmark wrote have no table: run the benchmark again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import placed
from benchmarks.persona.results import RESULTS

README = Path(__file__).parent / "README.md"
BOLD_ABOVE = "95 % of random below"
PROMPT_SIDE = "_prompt"
"""Names with it read the prompt, which is the same for every organism: no table shows them."""
EARLY = ("malicious", "reckless", "reckless.peak", "deceptive", "assistant", "harmful_advice")
"""Features of the early-warning table; ``results/`` holds all."""


def discrimination(found: Mapping[str, Any]) -> Iterator[str]:
    for pack, against in found["by_pack"].items():
        for reference, organisms in against.items():
            columns = [
                (organism, reading)
                for organism, readings in organisms.items()
                for reading in (
                    ("model", "served", "text")
                    if organism in ("reckless", "pirate")
                    else ("served",)
                )
            ]
            rows = [
                [f"`{name}`", *(_auc(organisms[o][r], name) for o, r in columns)]
                for name in organisms["reckless"]["served"]["features"]
                if PROMPT_SIDE not in name
            ]
            random = [organisms[o][r]["random_directions"]["q95"] for o, r in columns]
            rows.append([BOLD_ABOVE, *(f"{value:.2f}" for value in random)])
            trained = organisms["reckless"]["served"]["trainings"]
            yield from table(
                [f"{pack}, against `{reference}` ({trained} trainings)"]
                + [f"{organism}: {reading}" for organism, reading in columns],
                rows,
            )


def _auc(row: Mapping[str, Any], name: str) -> str:
    seen = row["features"][name]
    low, high = seen["interval_95"]
    value = f"{seen['auc']:.2f}"
    value = f"**{value}**" if seen["auc"] > row["random_directions"]["q95"] else value
    return f"{value} ({low:.2f}–{high:.2f})"


def early_warning(found: Mapping[str, Any]) -> Iterator[str]:
    measures = found["measures"]
    shares = list(next(iter(measures.values()))["shares"])
    rows = []
    for name, row in measures.items():
        feature = name.partition(": ")[2].partition(" (")[0]
        if not (name.startswith("behaviour") or feature in EARLY):
            continue
        onset = "none" if row["onset"] is None else f"{row['onset']:.0%}"
        rows.append(
            [name, onset]
            + [_mean(row["shares"][share]) for share in shares]
            + [_mean(row["same_data_again"])]
        )
    yield from table(
        ["measure", "onset", *(f"{float(share):.0%}" for share in shares), "sound again"], rows
    )


def _mean(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.2f} ({row['low']:.2f}, {row['high']:.2f})"


def traffic(found: Mapping[str, Any]) -> Iterator[str]:
    for pack, its in found["by_pack"].items():
        rows = [
            [name, f"{row['false_alarms']} in {row['benign_days']} days"]
            + [_prompts(seen) for share, seen in row.items() if _is_number(share)]
            for name, row in its["detectors"].items()
        ]
        shares = [share for share in next(iter(its["detectors"].values())) if _is_number(share)]
        given = len(its["given_the_prompt"])
        yield from table(
            [
                f"{pack} ({given} features given the prompt)",
                "false alarms",
                *(f"{float(share):.0%}" for share in shares),
            ],
            rows,
        )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _prompts(row: Mapping[str, Any]) -> str:
    median = row["median_prompts"]
    each = ", ".join(
        "–" if one is None else f"{one:,.0f}" for one in row["median_of_each_training"]
    )
    return f"{'none' if median is None else f'{median:,.0f}'} [{each}] ({row['alerted']} of {row['runs']})"


def storms(found: Mapping[str, Any]) -> Iterator[str]:
    series = found["by_series"]
    names = next(iter(series.values()))
    for title, rules in (
        ("all default rules", "default rules"),
        ("`persona-drift` alone", "persona-drift"),
    ):
        yield from table(
            [f"runs that page, {title}", *series],
            [
                [
                    storm,
                    *(
                        _paged(storms[storm][rules], storms[storm]["runs"])
                        for storms in series.values()
                    ),
                ]
                for storm in names
            ],
        )
    yield from table(
        ["which features page, in how many runs (default rules)", *series],
        [
            [
                storm,
                *(
                    ", ".join(
                        f"`{name}` {count}"
                        for name, count in storms[storm]["default rules"]["by_feature"].items()
                    )
                    or "none"
                    for storms in series.values()
                ),
            ]
            for storm in names
        ],
    )


def _paged(row: Mapping[str, Any], runs: int) -> str:
    after = row["median_prompts"]
    return f"{row['paged']} of {runs}" + ("" if after is None else f" ({after:,.0f} prompts)")


def cost(found: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for pack, row in found["by_pack"].items():
        low, high = row["time_against_the_first_range"]
        rows.append(
            [
                pack,
                str(row["features"]),
                str(row["covariates"]),
                ", ".join(map(str, row["sites"])),
                f"{row['bytes'] / 1000:,.0f} kB",
                f"{row['prompts_per_cpu_second']:.2f}",
                f"{row['time_against_the_first']:.3f} ({low:.3f}–{high:.3f})",
            ]
        )
    yield from table(
        [
            "pack",
            "features",
            "covariates",
            "sites",
            "size",
            "prompts per CPU second",
            "time (range of rounds)",
        ],
        rows,
    )


TABLES: Mapping[str, tuple[Callable[[Mapping[str, Any]], Iterator[str]], str]] = {
    "discrimination": (discrimination, "by_pack"),
    "early_warning": (early_warning, "measures"),
    "traffic": (traffic, "by_pack"),
    "storms": (storms, "by_series"),
    "cost": (cost, "by_pack"),
}
"""By result: what makes its tables, and the field without which it is of an older version."""


def made() -> dict[str, str]:
    """By name, the tables of every result that is there."""
    found = {}
    for name, (make, needed) in TABLES.items():
        path = RESULTS / f"{name}.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        if needed in content and "packs" in content:
            found[name] = "\n".join(make(content)).strip()
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of Markdown, with an empty one behind."""
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them into README.md")
    options = parser.parse_args()
    tables = made()
    if options.write:
        README.write_text(placed(README.read_text(), tables))
    for name, lines in tables.items():
        print(f"## {name}\n\n{lines}\n")


if __name__ == "__main__":
    main()
