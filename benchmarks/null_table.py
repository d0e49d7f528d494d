"""The table of the null path in benchmarks/README.md, made from results/null*.json.

python -m benchmarks.null_table [--write benchmarks/README.md]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import pages

TABLE: Final = "null"
RESULTS: Final = Path(__file__).parent / "results"
FILES: Final = (
    ("before", "null-before.json"),
    ("now", "null.json"),
    ("now", "null-kafka.json"),
)
PARTS: Final = (
    ("fetch", "parsing"),
    ("replay", "replay and scores"),
    ("store", "store"),
    ("kafka client", "Kafka client"),
)
"""What the worker's threads do, by their names in the results."""
SERVERS: Final = (("postgres", "PostgreSQL"), ("broker", "broker"))


def table() -> list[str]:
    """A row for each file and number of segments; every round's own figure, in the order they ran."""
    named = [name for _, name in (*PARTS, *SERVERS)]
    lines = [
        f"| broker | | segments | records a second | load before | worker, CPU µs a record | {' | '.join(named)} |",
        f"|{'---|' * (6 + len(named))}",
    ]
    for when, name in FILES:
        result = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        for segments, found in result["segments"].items():
            lines.append(_line(result, when, segments, found["rounds"]))
    return lines


def _line(
    result: dict[str, Any], when: str, segments: str, rounds: Sequence[dict[str, Any]]
) -> str:
    records = result["records"]
    spent = [one["cpu_seconds"] for one in rounds]
    worker = [sum(one[part] for part, _ in PARTS) for one in spent]
    cells = [
        *(result["broker"], when, segments),
        _each([f"{one['records_per_second']:,.0f}" for one in rounds]),
        _each([f"{one['load']:.1f}" for one in rounds]),
        _micros(worker, records),
        *(_micros([one[part] for one in spent], records) for part, _ in (*PARTS, *SERVERS)),
    ]
    return f"| {' | '.join(cells)} |"


def _micros(seconds: Sequence[float], records: int) -> str:
    return _each([f"{1e6 * one / records:.0f}" for one in seconds])


def _each(said: Sequence[str]) -> str:
    return said[0] if len(set(said)) == 1 else ", ".join(said)


def main(arguments: Sequence[str] | None = None) -> int:
    return pages.run("benchmarks.null_table", lambda: {TABLE: "\n".join(table())}, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
