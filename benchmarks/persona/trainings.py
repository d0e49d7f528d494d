"""Several trainings of each organism, and figures whose intervals hold both kinds of chance.

A figure over t trainings and n questions is uncertain in both: other questions could have been asked, and the
same data could have been trained on from another seed. Every interval here draws, or counts, the two apart
(crossed). Of three trainings little can be drawn, so every training's own figure stands beside the interval.

Legend: t = trainings, n = questions, k = columns, r = draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from monitor.research.statistics import ROUNDS, TAILS, auc
from monitor.values.arrays import Doubles

FIRST = "sound"
"""The organism that makes a folder a training: all others are compared with it."""
CONFIDENCE = 0.95


def trainings(organisms: Path) -> list[Path]:
    """The folders that hold organisms of one training each: ``organisms`` itself, or those in it."""
    if _is_made(organisms, FIRST):
        return [organisms]
    found = sorted(folder for folder in organisms.iterdir() if _is_made(folder, FIRST))
    if not found:
        raise SystemExit(
            f"{organisms} holds no training: make one with benchmarks.persona.organisms"
        )
    return found


def made_in(training: Path, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that this training has."""
    return [name for name in names if _is_made(training, name)]


def _is_made(training: Path, name: str) -> bool:
    return (training / name / "organism.json").exists()


def paired(ours: Doubles, theirs: Doubles) -> dict[str, Any]:
    """The mean of ``ours - theirs`` [t, n], its 95 % interval and the one-sided p-value.

    The squared error is that of the questions' means over trainings plus that of the trainings' means over
    questions (two-way, crossed; what both share is counted twice, so the interval is rather too wide), with
    Satterthwaite's degrees of freedom. Of one training it is Student's t over questions. A question without
    a value on either side in any training is left out.
    """
    difference = ours - theirs
    difference = difference[:, np.isfinite(difference).all(axis=0)]
    t, n = difference.shape
    mean = float(difference.mean())
    parts = [(float(difference.mean(axis=0).var(ddof=1)) / n, n - 1)]
    if t > 1:
        parts.append((float(difference.mean(axis=1).var(ddof=1)) / t, t - 1))
    squared = sum(part for part, _ in parts)
    found: dict[str, Any] = {"n": n, "trainings": t, "mean": mean}
    found["each"] = difference.mean(axis=1).tolist()
    if not squared > 0.0:
        return found | {"low": mean, "high": mean, "p": 1.0}
    freedom = squared**2 / sum(part**2 / degrees for part, degrees in parts)
    error = squared**0.5
    low, high = stats.t.interval(CONFIDENCE, freedom, mean, error)
    return found | {
        "low": float(low),
        "high": float(high),
        "p": float(stats.t.sf(mean / error, freedom)),
    }


def separated(ours: Doubles, theirs: Doubles, generator: np.random.Generator) -> dict[str, Any]:
    """AUC of ``ours`` over ``theirs`` [t, n], its mean over trainings, with a bootstrap interval.

    Trainings and questions are drawn apart (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
    2007); all trainings of a draw share its questions.
    """
    each = [auc(a, b) for a, b in zip(ours, theirs, strict=True)]
    drawn = resampled(ours, theirs, generator)
    low, high = np.quantile(drawn, TAILS)
    return {
        "auc": float(np.mean(each)),
        "interval_95": [float(low), float(high)],
        "each": each,
        "shift": float(np.mean(ours - theirs)),
    }


def resampled(ours: Doubles, theirs: Doubles, generator: np.random.Generator) -> Doubles:
    """AUCs [r] of drawn trainings and drawn questions.

    An AUC is the mean over pairs of questions of "ours is higher" (a tie counts half), so that of drawn
    questions is a mean weighted by how often each was drawn: one matrix product for all draws.
    """
    t, n = ours.shape
    weights = generator.multinomial(n, np.full(n, 1 / n), size=ROUNDS) / n
    by_training = []
    for a, b in zip(ours, theirs, strict=True):
        higher = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)
        by_training.append(np.einsum("rn,rn->r", weights @ higher, weights))
    chosen = generator.integers(t, size=(ROUNDS, t))
    found: Doubles = np.take_along_axis(np.stack(by_training, axis=1), chosen, axis=1).mean(axis=1)
    return found
