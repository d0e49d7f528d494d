"""The tables of benchmarks/README.md about the engine on a CPU, out of benchmarks/results.

python -m benchmarks.beside --write benchmarks/README.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import pages

RESULTS: Final = Path(__file__).parent / "results"
ENGINE, LIBRARIES, PIECES = "engine-cpu", "engine-libraries", "pieces"
"""Names of the tables, and of the results that they are made of."""
WORKLOADS: Final = ("own prompts", "shared system prompt")
DTYPES: Final = ("float32", "bfloat16")


def tables() -> dict[str, str]:
    """By name, what stands between its marks."""
    made = {name: "\n".join(_engine(_result(name))) for name in (ENGINE, LIBRARIES)}
    return made | {PIECES: "\n".join(_pieces(_result(PIECES)))}


def _engine(found: Mapping[str, Any]) -> Iterator[str]:
    names = [f"{name}, {dtype}" for dtype in DTYPES for name in WORKLOADS]
    names = [name for name in names if name in found]
    parts = [found[name] for name in names]
    yield from _head("the engine is × faster than", names)
    for way in parts[0]["engine_times_faster"]:
        if way != "engine":
            yield _line(way, [_two(part["engine_times_faster"][way]) for part in parts])
    yield _line(
        "share of the matrix products' limit",
        [_two(part["share_of_matmul_limit"]) for part in parts],
    )
    yield _line(
        "largest difference from transformers",
        [f"{part['largest_difference']['engine']:.1e}" for part in parts],
    )
    yield _line(
        "deviation of readings between prompts", [_two(part["reading_deviation"]) for part in parts]
    )


def _pieces(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _head("the engine is × faster with", DTYPES)
    for piece in found[DTYPES[0]]:
        yield _line(piece, [_two(found[dtype][piece]) for dtype in DTYPES])


def _head(first: str, columns: Sequence[str]) -> Iterator[str]:
    yield _line(first, columns)
    yield "|---" * (1 + len(columns)) + "|"


def _line(first: str, rest: Sequence[str]) -> str:
    return f"| {' | '.join([first, *rest])} |"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    return pages.run("benchmarks.beside", tables, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
