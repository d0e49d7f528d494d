"""`make persona`: every proof about persona features on the small chat model.

    python -m benchmarks.persona [--device cuda] [--jobs 16] [--pack old=FOLDER --pack new=FOLDER] [--model FOLDER]

Takes some hours on two cores, minutes with a GPU. With ``--jobs`` above 1, proofs that do not need each other run
at once. Proofs that compare no packs are made with the last one given. The SAE's recipe and the cost are apart
(`python -m benchmarks.persona.sae`, `.cost`): the one's library needs an environment of its own, the other a
machine that does nothing else. Organisms and their measurements are kept in ``--organisms`` and not made twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.persona.machine import machine_arguments
from monitor.demo.chat_model import chat_model

SEEDS = (0, 1, 2)
"""Of three trainings of each organism."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One benchmark, and the processes it may start."""

    name: str
    arguments: tuple[str, ...]
    jobs: int

    def run(self, *, captured: bool) -> int:
        """Its exit status. What it says comes in one piece where others run beside it."""
        command = [sys.executable, "-m", f"benchmarks.persona.{self.name}", *self.arguments]
        started = time.monotonic()
        print(f"== {self.name}", flush=True)
        ended = subprocess.run(
            [*command, "--jobs", f"{self.jobs}"],
            check=False,
            text=True,
            stdout=subprocess.PIPE if captured else None,
            stderr=subprocess.STDOUT if captured else None,
        )
        seconds = time.monotonic() - started
        said = f"{ended.stdout}" if captured else ""
        print(f"{said}== {self.name} ended after {seconds:.0f} s", flush=True)
        return ended.returncode


def chains(options: argparse.Namespace) -> list[list[list[Step]]]:
    """Chains that need nothing of each other; their stages, one after the other; independent steps of each."""
    where = ("--model", f"{options.model}", "--device", options.device)
    seeded = ("--seed", f"{options.seed}")
    organisms = ("--organisms", f"{options.organisms}")
    packs = tuple(word for pack in options.pack for word in ("--pack", pack))
    few, many = max(options.jobs // 4, 1), options.jobs

    trained = [
        Step(
            name="organisms",
            arguments=(*where, "--out", f"{options.organisms / str(seed)}", "--seed", f"{seed}"),
            jobs=few,
        )
        for seed in SEEDS
    ]
    measured = Step(name="measure", arguments=(*where, *seeded, *organisms, *packs), jobs=many)
    compared = [
        Step(name=name, arguments=(*where, *seeded, *organisms, *packs), jobs=many)
        for name in ("traffic", "discrimination", "early_warning")
    ]
    steered = [
        Step(name=name, arguments=(*where, *seeded, *organisms, *packs[-2:]), jobs=1)
        for name in ("control", "realignment")
    ]
    without_organisms = [
        Step(name="storms", arguments=(*where, *seeded, *packs), jobs=max(many // 2, 1)),
        Step(name="ceiling", arguments=(*where, *seeded), jobs=1),
    ]
    return [[trained, [measured], [*compared, *steered]], [without_organisms]]


def run(chain: Sequence[Sequence[Step]], *, at_once: bool) -> list[str]:
    """The names of the steps of a chain that failed; a stage runs whatever became of the one before."""
    failed = []
    for steps in chain:
        with ThreadPoolExecutor(len(steps) if at_once else 1) as pool:
            ended = list(pool.map(lambda step: step.run(captured=at_once), steps))
        failed += [step.name for step, status in zip(steps, ended, strict=True) if status]
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="its folder; the demo's model when left out")
    parser.add_argument("--organisms", type=Path, default=Path(".cache") / "organisms")
    parser.add_argument("--pack", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    machine_arguments(parser)
    options = parser.parse_args()
    if importlib.util.find_spec("river") is None:
        sys.exit("one proof, traffic, needs river: .venv/bin/pip install river")
    options.model = options.model or chat_model(Path(".cache"), progress=print)
    at_once = options.jobs > 1
    run_one = partial(run, at_once=at_once)
    with ThreadPoolExecutor(2 if at_once else 1) as pool:
        failed = [name for names in pool.map(run_one, chains(options)) for name in names]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
