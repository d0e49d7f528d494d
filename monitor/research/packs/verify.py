"""Does a pack fit a model, and does the model reproduce the pack's canaries?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from monitor.canaries import largest_deviation
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of, load_model
from monitor.score.fit import fit_problems
from monitor.score.pack import Pack
from monitor.settings import PackSettings, ReplaySettings

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

    Tolerated is the default of ``pack.canary_tolerance``. Blocks while the model loads and runs.
    Raises `ModelError` when the model cannot be loaded.
    """
    model = identity_of(settings)
    shape = (model.hidden_size, model.layers)
    deviation = None
    if pack.canaries and shape == (pack.model.hidden_size, pack.model.layers):
        engine = ReplayEngine(load_model(settings, pack.deepest_site), pack.features, settings)
        deviation = largest_deviation(pack, engine, _EPOCH)
    return VerifyReport(
        pack_id=pack.pack_id,
        problems=tuple(fit_problems(pack, model)),
        canaries=len(pack.canaries),
        canary_deviation=deviation,
        tolerance=PackSettings().canary_tolerance,
    )
