"""Break a working monitor over and over, by a seeded schedule, and see after each fault that nothing is lost.

    python -m tests.faults.campaign.run --faults 1000 --seed 1 [--json FILE]

Starts its own PostgreSQL and broker; a thousand faults take about half an hour.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.campaign.inflict import inflict
from tests.faults.campaign.invariants import Ledger, untold
from tests.faults.campaign.schedule import ENDPOINTS, LASTING, Fault, schedule
from tests.faults.campaign.stage import Stage, stage, wait_for

REST_EVERY: Final = 100
"""Faults between two moments of rest, when all that was sent must be there and told."""
GROWTH_BYTES: Final = 25_000_000
"""What a process may grow by from the first tenth of the campaign to its last."""


@dataclass(slots=True)
class Campaign:
    on: Stage
    ledger: Ledger = field(default_factory=Ledger)
    kinds: Counter[str] = field(default_factory=Counter)
    recovered: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By kind, seconds from the fault's end until records are stored again."""
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    told: Callable[[dict[str, Any]], None] = lambda figures: None

    def suffer(self, faults: list[Fault]) -> None:
        for number, fault in enumerate(faults, start=1):
            try:
                self._one(fault)
                if number % REST_EVERY == 0 or number == len(faults):
                    self.rest()
                    self.on.load.go_on()
                    self.told(self.figures())
            except Exception as failure:
                raise AssertionError(f"after fault {number}, {fault}: {failure}") from failure

    def _one(self, fault: Fault) -> None:
        inflict(fault, self.on)
        self.kinds[fault.kind] += 1
        before = self.on.read()
        self.recovered[fault.kind].append(
            wait_for(lambda: self.on.read() > before, "nothing is stored any more")
        )
        self.ledger.at_any_moment(self.on)
        for name, actor in self.on.actors.items():
            assert actor.exit_code is None, f"{name} ended by itself with {actor.exit_code}"
        for name in LASTING:
            self.memory[name].append(self.on.actors[name].memory())

    def rest(self) -> None:
        """Send no more until everything is stored and told, and look at all of it."""
        self.on.load.rest()
        ends = sum(self.on.load.ends().values())
        wait_for(lambda: self.on.read() == ends, f"{ends} records are not all stored")
        # Watchers stand still meanwhile: they would tell something new for ever.
        for name in ("watcher-0", "watcher-1"):
            self.on.actors[name].signal(signal.SIGSTOP)
        try:
            wait_for(lambda: not untold(self.on), "not everything is told")
            self.ledger.at_rest(self.on)
        finally:
            for name in ("watcher-0", "watcher-1"):
                self.on.actors[name].signal(signal.SIGCONT)

    def figures(self) -> dict[str, Any]:
        number = self.on.number
        tell = {name: self.on.receivers[name] for name in ENDPOINTS}
        return {
            "faults": sum(self.kinds.values()),
            "by_kind": dict(sorted(self.kinds.items())),
            "records_sent": len(self.on.load.sent),
            "scored": self.ledger.scored,
            "dead_letters": self.ledger.dead,
            "alerts": number("SELECT count(*) FROM monitor_data.alerts"),
            "events": number("SELECT count(*) FROM monitor_data.events"),
            "deliveries": number("SELECT count(*) FROM monitor_data.deliveries"),
            "attempts": number("SELECT count(*) FROM monitor_data.delivery_attempts"),
            "requests_received": {name: len(one.received) for name, one in tell.items()},
            "leaders": number("SELECT max(token) FROM monitor_data.leadership"),
            "recovery_seconds": {
                kind: {"median": round(statistics.median(s), 2), "worst": round(max(s), 2)}
                for kind, s in sorted(self.recovered.items())
            },
            "memory_mb": {
                name: {"begun": round(begun / 1e6), "ended": round(ended / 1e6)}
                for name, (begun, ended) in self.growth().items()
            },
            "disk": "a file system of its own" if self.on.disk.real else "a limit on files",
        }

    def growth(self) -> dict[str, tuple[float, float]]:
        """Median memory in the first tenth of the faults and in the last, by process."""
        found = {}
        for name, sizes in self.memory.items():
            tenth = max(1, len(sizes) // 10)
            found[name] = statistics.median(sizes[:tenth]), statistics.median(sizes[-tenth:])
        return found


def campaign(
    folder: Path,
    *,
    seed: int,
    faults: int,
    told: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """Run it; its figures, or an `AssertionError` that names the fault after which something did not hold.

    ``told`` is given the figures so far at every moment of rest.
    """
    started = time.monotonic()
    with stage(folder) as on:
        under_way = Campaign(on, told=told)
        begun = time.monotonic()
        under_way.suffer(schedule(seed, faults))
        seconds = time.monotonic() - begun
        for name, (before, after) in under_way.growth().items():
            assert after - before < GROWTH_BYTES, f"{name} grew from {before:.0f} to {after:.0f}"
        return {
            "seed": seed,
            **under_way.figures(),
            "seconds": round(seconds),
            "seconds_a_fault": round(seconds / faults, 2),
            "seconds_to_set_up": round(begun - started, 1),
        }


def _progress(figures: dict[str, Any]) -> None:
    short = {name: value for name, value in figures.items() if not isinstance(value, dict)}
    print(time.strftime("%H:%M:%S"), json.dumps(short), file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for data and logs; kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="monitor-campaign-") as made:
        folder = given.folder or Path(made)
        figures = campaign(folder, seed=given.seed, faults=given.faults, told=_progress)
    text = json.dumps(figures, indent=1)
    if given.json:
        given.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
