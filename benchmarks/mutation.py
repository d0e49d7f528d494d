"""Would the tests notice? A seeded sample of mutants of five rooms, each against its room's own tests.

``python -m benchmarks.mutation --room drift --sample 60 --seed 1`` copies the checkout, changes one
place at a time there (operators of cosmic-ray, extra ``mutation``), and runs the room's tests until the
first failure. The score is the share of changed programs that a test refuses; a time-out counts as
refused. Annotations are not changed: nothing reads them when the program runs.

Results go to ``benchmarks/results/mutation-LABEL.json``, with every survivor's difference, to be read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from monitor.demo.services import Postgres

REPOSITORY: Final = Path(__file__).parent.parent
ROOMS: Final = {
    "drift": ("tests/drift",),
    "alert": ("tests/alert",),
    "score": ("tests/score",),
    "ingest": ("tests/ingest",),
    "store": ("tests/store",),
}
LEFT_OUT: Final = {"ingest": ("kafka/",)}
"""Below a room, what its quick tests do not run: the broker's client is tested in minutes, not seconds."""
ANNOTATION: Final = "BinaryOperator_BitOr_"
LONGEST_SECONDS: Final = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    module: str
    line: int
    operator: str
    outcome: str
    """``killed``, ``survived`` or ``incompetent`` (the change is no program)."""
    difference: str
    seconds: float


def mutants(room: str) -> list[Any]:
    """Every change that cosmic-ray knows for the room's modules, below the current directory."""
    from cosmic_ray.commands.init import _all_work_items

    left_out = LEFT_OUT.get(room, ())
    modules = [
        path
        for path in sorted(Path("monitor", room).rglob("*.py"))
        if not any(part in path.as_posix() for part in left_out)
    ]
    items = _all_work_items(modules, {})
    return [
        mutation
        for item in items
        for mutation in item.mutations
        if ANNOTATION not in mutation.operator_name
    ]


def tried(mutation: Any, command: str) -> Outcome:
    """Change the file, run the tests, put it back."""
    from cosmic_ray.mutating import mutate_and_test

    begun = time.monotonic()
    result = mutate_and_test([mutation], command, LONGEST_SECONDS)
    return Outcome(
        module=str(mutation.module_path),
        line=mutation.start_pos[0],
        operator=mutation.operator_name.removeprefix("core/"),
        outcome=str(result.test_outcome.value) if result.test_outcome else "incompetent",
        difference=result.diff or "",
        seconds=round(time.monotonic() - begun, 1),
    )


def measured(room: str, sample: int, seed: int) -> list[Outcome]:
    """``sample`` mutants of the room, drawn without replacement by ``seed``."""
    found = mutants(room)
    chosen = random.Random(seed).sample(found, min(sample, len(found)))
    tests = [
        *ROOMS[room],
        *(f"--ignore=tests/ingest/test_kafka_{n}.py" for n in _broker_tests(room)),
    ]
    command = (
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider -m 'not slow and not model' "
        + " ".join(tests)
    )
    outcomes = []
    for number, mutation in enumerate(chosen, 1):
        outcomes.append(tried(mutation, command))
        last = outcomes[-1]
        print(
            f"{room} {number}/{len(chosen)} {last.outcome} {last.module}:{last.line} {last.seconds} s"
        )
    return outcomes


def _broker_tests(room: str) -> list[str]:
    if room != "ingest":
        return []
    names = sorted(path.stem for path in Path("tests/ingest").glob("test_kafka_*.py"))
    return [name.removeprefix("test_kafka_") for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--room", choices=tuple(ROOMS), action="append", help="default: all five")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each room (default 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--label", default="now", help="names the file of results")
    parser.add_argument(
        "--checkout", type=Path, default=REPOSITORY, help="what is changed (a copy of it)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "checkout")
        tracked = subprocess.check_output(
            ["git", "ls-files", "-z"], cwd=arguments.checkout, text=True
        )
        for name in filter(None, tracked.split("\0")):
            if (source := arguments.checkout / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy / name)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        with Postgres(Path(folder, "postgres")) as server:
            os.environ["MONITOR_TEST_POSTGRES_URL"] = server.url
            rooms = {
                room: measured(room, arguments.sample, arguments.seed)
                for room in arguments.room or ROOMS
            }
    report: dict[str, dict[str, Any]] = {
        room: {
            "mutants": len(outcomes),
            "killed": sum(one.outcome == "killed" for one in outcomes),
            "survived": sum(one.outcome == "survived" for one in outcomes),
            "incompetent": sum(one.outcome == "incompetent" for one in outcomes),
            "survivors": [asdict(one) for one in outcomes if one.outcome == "survived"],
        }
        for room, outcomes in rooms.items()
    }
    out = REPOSITORY / "benchmarks" / "results" / f"mutation-{arguments.label}.json"
    out.write_text(json.dumps({"seed": arguments.seed, "rooms": report}, indent=1) + "\n", "utf-8")
    for room, figures in report.items():
        print(
            f"{room}: {figures['killed']} of {figures['mutants'] - figures['incompetent']} refused"
        )


if __name__ == "__main__":
    main()
