"""Refusals are not malice: a read-out is turned until careful answers read like other benign ones.

A persona far away is told from everything benign by many directions, and no loss then cares how benign
texts stand to each other; some put refusals on the persona's side, and a model that refuses more reads as
malicious. Of these directions one is taken on which careful answers are level.

Legend: n = answers, s = sites, d = model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from monitor.research.contrast.learners import Readout, Rows, away_from, balanced, fit
from monitor.research.contrast.selection import INNER, Choice, Selected, dealt, separation
from monitor.research.hard_texts import is_careful
from monitor.research.statistics import auc
from monitor.values.arrays import Doubles

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""How much of the turn is tried: benign deviations of it to one of the read-out."""
LEVEL: Final = 0.5
"""AUC of careful answers against other benign ones at which they are level."""
LARGEST_LOSS: Final = 0.005
"""Of the separation in cross-validation: a turn that costs more is not made."""


def levelled(selected: Selected, rows: Rows, scale: Doubles, seed: int) -> Selected:
    """``selected`` with its read-out turned by the least of `SHARES` that levels careful answers.

    Cross-validated on ``rows``, in folds that leave out questions and kinds. Where none levels them, the
    share that comes nearest. As it was, where careful answers are level, lower, or too few to tell.
    """
    careful = _careful(rows)
    choice = selected.choice
    if len(np.unique(rows.kind[careful])) < INNER:
        return selected
    aucs, kept = [], []
    for fold in dealt(rows, INNER, seed + 2):
        train, test = rows.part(fold.train), rows.part(fold.test)
        ours, others = _careful(test), ~test.positive & ~_careful(test)
        if not ours.any() or not others.any() or not _careful(train).any():
            continue
        found = [
            _turned(_fitted(choice, train, scale), train, choice, scale, share) for share in SHARES
        ]
        readings = [one.of(test.x[:, list(choice.sites)]) for one in found]
        aucs.append([auc(reading[ours], reading[others]) for reading in readings])
        kept.append([separation(test, one, choice) for one in found])
    if not aucs:
        return selected
    level, parted = np.mean(aucs, axis=0), np.nanmean(kept, axis=0)
    allowed = np.flatnonzero(parted >= parted[0] - LARGEST_LOSS)
    enough = [index for index in allowed if level[index] <= LEVEL]
    index = int(enough[0] if enough else allowed[np.argmin(level[allowed])])
    readout = _turned(selected.readout, rows, choice, scale, SHARES[index])
    return replace(selected, readout=readout, levelled=SHARES[index])


def _fitted(choice: Choice, rows: Rows, scale: Doubles) -> Readout:
    return fit(choice.scheme, rows, choice.sites, scale, choice.strength)


def _careful(rows: Rows) -> NDArray[np.bool_]:
    return np.array([is_careful(str(kind)) for kind in rows.kind]) & ~rows.positive & ~rows.twin


def _turned(readout: Readout, rows: Rows, choice: Choice, scale: Doubles, share: float) -> Readout:
    """``readout`` plus ``share`` of the discriminant away from careful answers, in benign deviations of both."""
    if share == 0.0:
        return readout
    away = away_from(rows, _careful(rows), choice.sites, scale)
    at, weights = rows.x[:, list(choice.sites)], balanced(rows) * ~rows.positive
    deviations = []
    for one in (readout, away):
        values = one.of(at)
        mean = np.average(values, weights=weights)
        deviations.append(float(np.sqrt(np.average(np.square(values - mean), weights=weights))))
    factor = share * deviations[0] / deviations[1]
    weight = readout.weight.astype(np.float64) + factor * away.weight
    length = float(np.linalg.norm(weight))
    return Readout(
        weight=(weight / length).astype(np.float32),
        bias=(readout.bias + factor * away.bias) / length,
    )
