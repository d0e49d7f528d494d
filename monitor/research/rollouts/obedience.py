"""Which rollouts did as they were told: the others would blur the direction.

Legend: n = rollouts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.errors import BadInput
from monitor.research.rollouts.draw import SIDES, Ratings, Rollout, RolloutSettings, SideName
from monitor.research.traits import SPLITS, Split


class Rolled:
    """Rollouts with what the judge made of them, and where each question's answers stand."""

    def __init__(
        self, rollouts: Sequence[Rollout], ratings: Ratings | None, settings: RolloutSettings
    ) -> None:
        self.rollouts = rollouts
        self.kept = obedient(rollouts, ratings, settings)
        self.spoken = obedient(rollouts, None, settings)
        self.counts = counted(rollouts, ratings, self.kept, settings)

    def where(self, trait: str, split: Split, side: SideName) -> NDArray[np.bool_]:
        """Which rollouts [n] belong there, kept or not."""
        wanted = (trait, split, side)
        return np.array([(one.trait, one.split, one.side) == wanted for one in self.rollouts])

    def by_question(self, trait: str, split: Split) -> list[tuple[list[int], list[int]]]:
        """Of each question that kept answers of both sides: the positive ones, the negative ones."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for place, side in enumerate(SIDES):
            for index in np.flatnonzero(self.kept & self.where(trait, split, side)).tolist():
                question = self.rollouts[index].question
                found.setdefault(question, ([], []))[place].append(index)
        return [both for _, both in sorted(found.items()) if all(both)]

    def require(self, trait: str, least: int) -> None:
        """Raises `BadInput` with the counts when too few questions kept answers of both sides."""
        for split in SPLITS:
            left = len(self.by_question(trait, split))
            if left >= least:
                continue
            counts = "; ".join(
                f"{where}: {c['kept']} kept of {c['rolled_out']} ({c['disobedient']} disobedient, "
                f"{c['incoherent']} incoherent, {c['unrated']} unrated)"
                for where, c in self.counts[trait].items()
            )
            raise BadInput(
                f"{trait}: {left} {split} questions kept answers of both sides, {least} are needed. "
                + counts,
                hint="roll out more often, ask more questions, lower --threshold, or leave the trait "
                "out: this model may not follow these instructions",
            )


def obedient(
    rollouts: Sequence[Rollout], ratings: Ratings | None, settings: RolloutSettings
) -> NDArray[np.bool_]:
    """Which rollouts [n] are kept; without ``ratings`` all that say anything."""
    spoken = np.array([bool(one.answer.strip()) for one in rollouts])
    if ratings is None:
        return spoken
    positive = np.array([one.side == "positive" for one in rollouts])
    shows = np.where(
        positive,
        ratings.persona >= settings.threshold,
        ratings.persona < settings.threshold,
    )
    kept: NDArray[np.bool_] = spoken & shows & (ratings.coherent >= settings.least_coherence)
    return kept


def counted(
    rollouts: Sequence[Rollout],
    ratings: Ratings | None,
    kept: NDArray[np.bool_],
    settings: RolloutSettings,
) -> dict[str, dict[str, dict[str, int]]]:
    """By trait and "split side": how many were rolled out, kept, and dropped for which reason.

    A rollout counts under the first of: unrated, incoherent, disobedient.
    """
    found: dict[str, dict[str, Counter[str]]] = {}
    for index, one in enumerate(rollouts):
        counts = found.setdefault(one.trait, {}).setdefault(
            f"{one.split} {one.side}",
            Counter(rolled_out=0, kept=0, unrated=0, incoherent=0, disobedient=0),
        )
        counts["rolled_out"] += 1
        coherent = np.nan if ratings is None else ratings.coherent[index]
        if kept[index]:
            counts["kept"] += 1
        elif not one.answer.strip() or coherent < settings.least_coherence:
            counts["incoherent"] += 1
        else:
            counts["unrated" if np.isnan(coherent) else "disobedient"] += 1
    return {trait: {k: dict(c) for k, c in sides.items()} for trait, sides in found.items()}
