"""Does a pack fit a model, and does the model reproduce the pack's canaries?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from monitor.replay.engine import ReplayEngine
from monitor.replay.model import fingerprint_of, load_model
from monitor.score.pack import Pack, fit_problems
from monitor.score.scorer import Scorer
from monitor.settings import PackSettings, ReplaySettings
from monitor.values.scores import Replayed

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """``problems`` are sentences. ``canary_deviation`` is the largest |reading - recorded| over
    canaries and features, in calibration deviations; None when the model's shape does not allow a
    replay, or the pack has no canaries."""

    pack_id: str
    problems: tuple[str, ...]
    canaries: int
    canary_deviation: float | None
    tolerance: float

    @property
    def reproduced(self) -> bool | None:
        """Whether the canaries read as recorded; None when they could not be read."""
        return None if self.canary_deviation is None else self.canary_deviation <= self.tolerance

    @property
    def ok(self) -> bool:
        return not self.problems and self.reproduced is not False


def verify_pack(pack: Pack, settings: ReplaySettings) -> VerifyReport:
    """Compare ``pack`` with the model of ``settings``: sizes, hashes, and canaries replayed.

    Tolerated is the default of ``pack.canary_tolerance``. Blocks while the model loads and runs. Raises `ModelError` when the model cannot be loaded.
    """
    fingerprint = fingerprint_of(settings)
    fits_in_shape = all(
        fingerprint[name] == getattr(pack.model, name) for name in ("hidden_size", "layers")
    )
    deviation = _canary_deviation(pack, settings) if fits_in_shape and pack.canaries else None
    return VerifyReport(
        pack_id=pack.pack_id,
        problems=tuple(fit_problems(pack, fingerprint)),
        canaries=len(pack.canaries),
        canary_deviation=deviation,
        tolerance=PackSettings().canary_tolerance,
    )


def _canary_deviation(pack: Pack, settings: ReplaySettings) -> float:
    engine = ReplayEngine(load_model(settings, pack.deepest_site), pack.features, settings)
    replayed = engine.replay(
        [canary.prompt(index, _EPOCH) for index, canary in enumerate(pack.canaries)]
    )
    found = [one for one in replayed if isinstance(one, Replayed)]
    if len(found) != len(replayed):
        return float("inf")
    return Scorer(pack).canary_deviation(
        np.stack([one.readings for one in found]), np.stack([one.pooled_tokens for one in found])
    )
