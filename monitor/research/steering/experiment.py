"""The steering experiment: what a direction does at rising doses, beside random ones of equal length.

The dose that a verdict rests on is the largest that leaves the answers coherent. It is chosen by
coherence alone, never by the effect. Of r random directions and one that is no better, the one is
largest with probability 1/(r + 1).

Legend: q = questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from monitor.errors import BadInput
from monitor.replay.model import LoadedModel
from monitor.research.progress import Progress, quiet
from monitor.research.statistics import mean_bound
from monitor.research.steering.measure import Look, Measure, Observation
from monitor.research.steering.steer import Turn, edits
from monitor.values.arrays import Doubles
from monitor.values.drift import Bound

STRENGTHS: Final = (0.1, 0.2, 0.4)
"""Doses, as shares of the length of a token's residual."""
RANDOM_DIRECTIONS: Final = 19
"""One that is no better than they are exceeds all of them one time in twenty."""
INCOHERENCE: Final = 0.10
"""How much larger than without steering the share of incoherent answers may be (arXiv 2506.19823)."""
AT_ONCE: Final = 20
"""Turns that are tried in the same passes: the random directions beside one dose are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """``effect``: mean change over the questions against no steering, turned by the experimenter's sign."""

    strength: float
    effect: Bound
    incoherent: float
    coherent: bool


def looks(
    loaded: LoadedModel,
    measure: Measure,
    turns: Sequence[Turn | None],
    lengths: Mapping[int, float],
    *,
    coherence: bool,
    what: str,
    progress: Progress = quiet,
) -> list[Look]:
    """The model under each of ``turns`` (None: as it is), `AT_ONCE` at a time. Blocks."""
    look = measure.on(loaded)
    found: list[Look] = []
    for start in range(0, len(turns), AT_ONCE):
        piece = turns[start : start + AT_ONCE]
        progress(f"steering {what}: {start + len(piece)} of {len(turns)}")
        branches = [edits(loaded, [] if turn is None else [turn], lengths) for turn in piece]
        found += look(branches, coherence)
    return found


def dosed(
    strength: float,
    plain: Observation,
    seen: Observation,
    generator: np.random.Generator,
    *,
    sign: float = 1.0,
    limit: float = INCOHERENCE,
) -> Dose:
    """What ``strength`` did; coherent when incoherence grew by at most ``limit``."""
    return Dose(
        strength=strength,
        effect=mean_bound(effects(plain, seen, sign), generator),
        incoherent=seen.incoherent,
        coherent=seen.incoherent <= plain.incoherent + limit + 1e-9,
    )


def effects(plain: Observation, seen: Observation, sign: float = 1.0) -> Doubles:
    """Effect [q] on each question whose answers were both rated. Raises `BadInput` when most were not."""
    found: Doubles = sign * (seen.values - plain.values)
    rated = found[np.isfinite(found)]
    if 2 * rated.size < found.size:
        raise BadInput(f"only {rated.size} of {found.size} answers could be rated")
    return rated


def strongest(doses: Sequence[Dose]) -> Dose | None:
    """The largest dose that is coherent."""
    return max((dose for dose in doses if dose.coherent), key=lambda d: d.strength, default=None)
