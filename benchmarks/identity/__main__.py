"""Is it the served model? What the witnesses see, on real answers of the small model.

python -m benchmarks.identity pools    --model M --organisms O --cache C   # once; --device cuda for large ones
python -m benchmarks.identity untold   --model M --cache C   # once: as if nobody told how the copy's answers were drawn
python -m benchmarks.identity swap     --model M --cache C   # other precisions, a few steps of training
python -m benchmarks.identity shares   --model M --cache C   # 1 %, 5 % and 20 % of the answers
python -m benchmarks.identity validity --model M --cache C   # the copy itself is not accused
python -m benchmarks.identity causes   --model M --cache C   # six causes, and shifts of input alone
python -m benchmarks.identity equality --model M --cache C   # what model equality testing needs
python -m benchmarks.identity cost     --model M             # what weighing costs
python -m benchmarks.identity tables   [--write]             # README's tables, from results/*.json
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.identity.cost import main as cost
from benchmarks.identity.results import keep
from benchmarks.persona.results import arguments

PARTS = {
    "swap": ("swap", "swapped", 400),
    "shares": ("shares", "small_shares", 40),
    "validity": ("validity", "valid", 400),
    "causes": ("causes", "six_causes", 40),
    "equality": ("equality", "equality", 200),
}
"""By name: module, function and the number of runs."""


def main() -> None:
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name == "cost":
        cost(rest)
    elif name == "tables":
        from benchmarks.identity.tables import main as tables

        tables(rest)
    elif name in ("pools", "untold") or name in PARTS:
        measure(name, rest)
    else:
        raise SystemExit(__doc__)


def measure(name: str, rest: list[str]) -> None:
    parser = arguments(__doc__, organisms=False)
    parser.prog = f"benchmarks.identity {name}"
    parser.add_argument("--cache", type=Path, required=True, help="where the pools lie")
    if name == "untold":
        parser.add_argument("--answers", type=int, default=1_400)
        from benchmarks.identity.untold import make_untold

        return make_untold(parser.parse_args(rest))
    if name == "pools":
        parser.add_argument(
            "--organisms", type=Path, required=True, help="one training of organisms.py"
        )
        parser.add_argument("--questions", type=int, help="of each topic; all of them on a GPU")
        parser.add_argument("--draws", type=int, help="answers to each question")
        from benchmarks.identity.drawing import make_pools

        return make_pools(parser.parse_args(rest))
    module, function, runs = PARTS[name]
    parser.add_argument("--runs", type=int, default=runs)
    options = parser.parse_args(rest)
    found = getattr(importlib.import_module(f"benchmarks.identity.{module}"), function)(options)
    keep(name, options, found)
    return None


if __name__ == "__main__":
    main()
