"""The test on a server's answers, simulated: how often it accuses a server that is the copy, by fixed seeds.

Each question is answered beyond tolerance with probability `SLIP`, one independently of another. Asked
again, a server says the same with probability ``same``: 1 is a deterministic server, 0 one whose batches
decide. A round asks `A_ROUND` of the `QUESTIONS` in turn. ``python -m tests.drift.server_simulation`` prints
the figures.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from monitor.drift.server import SLIP, evidence, limit

QUESTIONS, A_ROUND = 32, 8
EVERY, HORIZON = timedelta(hours=1), timedelta(days=30)
ROUNDS = HORIZON // EVERY
RUNS = 2_000


def fewest(risk: float, questions: int = QUESTIONS) -> int:
    """Answers beyond tolerance that make an alarm."""
    least = limit(risk=risk, every=EVERY, horizon=HORIZON)
    return next(k for k in range(questions + 1) if evidence(k, questions) >= least)


def alarms(seed: int, *, risk: float, same: float, share: float = SLIP) -> np.ndarray:
    """Of each run, the first round at which it alarms [r]; `ROUNDS` where none does."""
    random = np.random.default_rng(seed)
    beyond = random.random((RUNS, QUESTIONS)) < share
    first = np.full(RUNS, ROUNDS)
    least = fewest(risk)
    for number in range(ROUNDS):
        asked = (np.arange(A_ROUND) + number * A_ROUND) % QUESTIONS
        anew = random.random((RUNS, A_ROUND)) >= same
        drawn = random.random((RUNS, A_ROUND)) < share
        beyond[:, asked] = np.where(anew, drawn, beyond[:, asked])
        first = np.where((beyond.sum(axis=1) >= least) & (first == ROUNDS), number, first)
    return first


def share_of_alarms(seed: int, *, risk: float, same: float) -> float:
    return float((alarms(seed, risk=risk, same=same) < ROUNDS).mean())


def delay(seed: int, share: float, *, risk: float = 0.01, runs: int = 500) -> float:
    """Median of the rounds until the alarm after a change by which ``share`` is answered beyond tolerance.

    What was asked before the change was answered within it.
    """
    random = np.random.default_rng(seed)
    least = fewest(risk)
    found = []
    for _ in range(runs):
        beyond = np.zeros(QUESTIONS, dtype=bool)
        would = random.random(QUESTIONS) < share
        rounds = next(
            (
                number + 1
                for number in range(4 * QUESTIONS // A_ROUND)
                if _asked(beyond, would, number).sum() >= least
            ),
            np.inf,
        )
        found.append(rounds)
    return float(np.median(found))


def _asked(beyond: np.ndarray, would: np.ndarray, number: int) -> np.ndarray:
    asked = (np.arange(A_ROUND) + number * A_ROUND) % QUESTIONS
    beyond[asked] = would[asked]
    return beyond


if __name__ == "__main__":
    for stated in (0.05, 0.01):
        print("risk", stated, "alarm at", fewest(stated), "of", QUESTIONS)
        for sticky in (1.0, 0.9, 0.0):
            print("  same", sticky, "alarms", share_of_alarms(1, risk=stated, same=sticky))
    for changed in (1.0, 0.5, 0.3):
        print("changed", changed, "rounds", delay(1, changed))
