"""Which faults come, and in which order: drawn from a seed, so that a campaign can be had again. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

MOST_WORKERS: Final = 4
LONGEST_PAUSE_SECONDS: Final = 25.0
"""Longer than any timeout of these workers: session, request, and the broker's own."""


class Kind(StrEnum):
    KILL_LEADER = "leader of a partition killed"
    PAUSE_LEADER = "leader of a partition paused"
    STOP_BROKER = "broker stopped in order"
    ROLLING_RESTART = "rolling restart of all brokers"
    RESIZE = "number of workers changed"
    KILL_WORKER = "worker killed"
    GROW = "partition added"
    MAKE_ANEW = "topic deleted and made anew"


SHARES: Final[Mapping[Kind, float]] = MappingProxyType(
    {
        Kind.KILL_LEADER: 0.26,
        Kind.PAUSE_LEADER: 0.20,
        Kind.STOP_BROKER: 0.12,
        Kind.ROLLING_RESTART: 0.04,
        Kind.RESIZE: 0.20,
        Kind.KILL_WORKER: 0.10,
        Kind.GROW: 0.05,
        Kind.MAKE_ANEW: 0.03,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    kind: Kind
    chance: int
    """Chooses the partition, broker or worker among those that are there when the fault comes."""
    seconds: float = 0.0
    """How long what was ended or paused stays away."""
    workers: int = 0
    """How many there are after `Kind.RESIZE`."""

    def __str__(self) -> str:
        match self.kind:
            case Kind.RESIZE:
                return f"{self.kind} to {self.workers}"
            case Kind.GROW | Kind.MAKE_ANEW | Kind.ROLLING_RESTART:
                return str(self.kind)
        return f"{self.kind}, away for {self.seconds:.1f} s"


def schedule(faults: int, seed: int) -> Sequence[Fault]:
    """``faults`` of them: each kind once, where there is room, and the others drawn by `SHARES`.

    The number of workers goes up and down between one and `MOST_WORKERS`, each change to another number.
    """
    chance = random.Random(seed)
    more = max(0, faults - len(SHARES))
    kinds = [*SHARES, *chance.choices(list(SHARES), list(SHARES.values()), k=more)][:faults]
    chance.shuffle(kinds)
    drawn, workers = [], 1
    for kind in kinds:
        if kind is Kind.RESIZE:
            workers = chance.choice([n for n in range(1, MOST_WORKERS + 1) if n != workers])
        longest = LONGEST_PAUSE_SECONDS if kind is Kind.PAUSE_LEADER else 5.0
        drawn.append(
            Fault(
                kind=kind,
                chance=chance.randrange(1_000_000),
                seconds=chance.uniform(0.0, longest),
                workers=workers,
            )
        )
    return drawn
