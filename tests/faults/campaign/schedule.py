"""What is broken, on what, for how long and in which order: drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

MORTAL = ("worker-0", "watcher-0", "courier-0")
"""Killed and started again. The others of their kind live through the whole campaign."""
LASTING = ("worker-1", "watcher-1", "courier-1")
ENDPOINTS = ("ops", "pager")
WIRES = ("postgres", "kafka", *ENDPOINTS)
TABLES = ("scores", "buckets", "offsets", "dead_letters", "alerts", "deliveries", "leadership")
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``kind`` done to ``target`` and undone after ``seconds``; ``amount`` is what the kind makes of it."""

    kind: str
    target: str
    seconds: float
    amount: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How often a fault of this kind comes in a round, and what is drawn for it."""

    name: str
    times: int
    targets: Sequence[str]
    seconds: tuple[float, float] = (0.2, 0.8)
    amounts: Sequence[float] = (0.0,)

    def drawn(self, chance: random.Random) -> Fault:
        return Fault(
            kind=self.name,
            target=chance.choice(self.targets),
            seconds=round(chance.uniform(*self.seconds), 3),
            amount=chance.choice(self.amounts),
        )


KINDS = (
    Kind(name="kill", times=7, targets=MORTAL, seconds=(0.0, 0.4)),
    Kind(name="terminate", times=3, targets=MORTAL, seconds=(0.0, 0.2)),
    Kind(name="freeze", times=5, targets=MORTAL + LASTING, seconds=(0.2, 1.0)),
    Kind(name="outlast the lease", times=1, targets=("watcher-0", "watcher-1"), seconds=(2.0, 2.5)),
    Kind(name="postgres: freeze", times=2, targets=("postgres",), seconds=(0.3, 1.0)),
    Kind(name="postgres: restart", times=1, targets=("postgres",), seconds=(0.0, 0.5)),
    Kind(name="postgres: crash", times=1, targets=("postgres",), seconds=(0.0, 0.5)),
    Kind(name="postgres: kill a backend", times=1, targets=("postgres",), seconds=(0.0, 0.1)),
    Kind(name="postgres: end all sessions", times=2, targets=("postgres",), seconds=(0.0, 0.1)),
    Kind(name="postgres: lock a table", times=2, targets=TABLES, seconds=(0.3, 1.0)),
    Kind(name="disk full", times=2, targets=("postgres",), seconds=(0.4, 1.0)),
    Kind(name="network: cut", times=3, targets=WIRES, seconds=(0.0, 0.1)),
    Kind(name="network: cut in a message", times=3, targets=WIRES, amounts=(1, 100, 5_000, 40_000)),
    Kind(name="network: refuse", times=2, targets=WIRES),
    Kind(name="network: stall", times=3, targets=WIRES),
    Kind(name="network: slow", times=2, targets=WIRES, amounts=(0.01, 0.05)),
    Kind(name="broker: freeze", times=2, targets=("broker",), seconds=(0.3, 1.0)),
    Kind(name="broker: restart", times=1, targets=("broker",), seconds=(0.0, 0.3)),
    Kind(
        name="clock",
        times=3,
        targets=("watcher-0", "watcher-1"),
        seconds=(0.3, 0.8),
        amounts=(50 * DAY, -50 * DAY, 120.0, -120.0),
    ),
    Kind(name="rebalance: one more worker", times=1, targets=("group",), seconds=(0.5, 1.5)),
    Kind(name="rebalance: a foreign member", times=1, targets=("group",), seconds=(0.5, 1.5)),
    Kind(name="receiver: 500", times=1, targets=ENDPOINTS, amounts=(1, 3, 5)),
    Kind(name="receiver: slow down", times=1, targets=ENDPOINTS, amounts=(1,)),
    Kind(name="receiver: hangs", times=1, targets=ENDPOINTS, amounts=(1, 2)),
    Kind(name="receiver: floods", times=1, targets=ENDPOINTS, seconds=(0.5, 1.5)),
    Kind(name="receiver: drips", times=1, targets=ENDPOINTS, seconds=(0.5, 1.5)),
)
RARE = Kind(
    name="outlast the session", times=1, targets=("worker-0", "worker-1"), seconds=(6.5, 8.0)
)
"""Takes its time: once in every third round."""
ROUND = sum(kind.times for kind in KINDS)


def schedule(seed: int, faults: int) -> list[Fault]:
    """The first ``faults`` of this seed: every round of `ROUND` holds each kind, in an order of its own."""
    return list(islice(_rounds(random.Random(seed)), faults))


def _rounds(chance: random.Random) -> Iterator[Fault]:
    number = 0
    while True:
        drawn = [kind.drawn(chance) for kind in KINDS for _ in range(kind.times)]
        if number % 3 == 1:
            drawn.append(RARE.drawn(chance))
        chance.shuffle(drawn)
        yield from drawn
        number += 1
