"""Do a pack's thresholds, and a baseline made with it, carry over to another precision of the same model?

The same exchanges are read as they were and as they are to be, and compared pair by pair as a gate does (`equivalence`), but
in both directions: a score that falls makes a baseline as wrong as one that rises. Per feature, in deviations of its calibration:

- its mean moves by less than ``shift`` either way: a baseline's means carry over;
- fewer than ``tail`` of the exchanges come into its tail, net of those that leave it, and the reverse: its threshold carries over.

``pass``: surely all of it; ``stale``: surely one of it not; else ``inconclusive``. The error rates are those of a gate.

Legend: n = exchanges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import numpy as np

from monitor.canaries import largest_deviation
from monitor.errors import BadInput
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import identity_of
from monitor.research.gate.equivalence import (
    Errors,
    Verdict,
    compared_means,
    sampled,
    together,
)
from monitor.research.gate.reading import PIECE, clusters_of, require_comparable
from monitor.research.gate.shifts import tails_of
from monitor.research.progress import Progress, quiet
from monitor.research.reading import Reader, opened
from monitor.score.fit import require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.arrays import Counts, Floats
from monitor.values.features import Feature
from monitor.values.prompts import Prompt

Outcome = Literal["pass", "stale", "inconclusive"]
OUTCOMES: Final[dict[Verdict, Outcome]] = {
    "pass": "pass",
    "fail": "stale",
    "inconclusive": "inconclusive",
}
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """``shift`` in deviations, ``tail`` in exchanges over all; see `equivalence` for ``alpha`` and ``least``."""

    shift: float = 0.1
    tail: float = 0.005
    alpha: float = 0.05
    least: int = 50

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise BadInput(f"--shift {self.shift:g} must be above 0")
        if not 0.0 < self.tail < 1.0:
            raise BadInput(f"--tail {self.tail:g} must lie between 0 and 1")
        if not 0.0 < self.alpha < 0.5:
            raise BadInput(f"--alpha {self.alpha:g} must lie between 0 and 0.5")
        if self.least < 2:
            raise BadInput(f"--min-n {self.least} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """One feature. ``shift`` is toward the persona; ``spread`` the standard deviation of the differences."""

    feature: str
    n: int
    shift: float
    low: float
    high: float
    spread: float
    newly: int
    no_longer: int
    verdict: Verdict
    needed: int | None
    """Exchanges that would probably decide; None if decided or out of reach."""

    @property
    def outcome(self) -> Outcome:
        return OUTCOMES[self.verdict]


@dataclass(frozen=True, kw_only=True)
class Requalification:
    """``canary_deviation`` is the largest of the pack's canaries as they are to be read; None without any."""

    pack_id: str
    before: str
    after: str
    exchanges: int
    features: tuple[Carried, ...]
    canary_deviation: float | None

    @property
    def verdict(self) -> Verdict:
        """Of all features, as a gate says it."""
        return together([one.verdict for one in self.features])

    @property
    def outcome(self) -> Outcome:
        return OUTCOMES[self.verdict]


def requalify(
    pack: Pack,
    before: ReplaySettings,
    after: ReplaySettings,
    exchanges: Sequence[Prompt],
    asked: Asked,
    progress: Progress = quiet,
) -> Requalification:
    """Read ``exchanges`` by both settings, one copy after the other, and compare. Blocks.

    Raises `PackError` where the pack was not made for the model of ``before``, `ModelError` where ``after`` has
    another shape, tokenizer or template, `BadInput` for an exchange that cannot be replayed.
    """
    ours, theirs = identity_of(before), identity_of(after)
    require_fit(pack, ours, f"the model in {before.model}")
    require_comparable(ours, theirs)
    told, scores, deviation = [], [], None
    for settings in (before, after):
        progress(f"loading {settings.model}")
        with opened(settings, pack.deepest_site) as loaded:
            told.append(loaded.precision)
            what = f"exchanges in {loaded.precision}"
            reader = Reader(loaded, pack.features, settings, progress, piece=PIECE)
            scores.append(reader.scores(what, exchanges))
            if settings is after and pack.canaries:
                engine = ReplayEngine(loaded, pack.features, settings)
                deviation = largest_deviation(pack, engine, _EPOCH)
                del engine
            # One model at a time: there may be no room for two.
            del loaded, reader
    clusters = clusters_of(exchanges)
    errors = Errors.of(asked.alpha, 4 * len(pack.features))
    return Requalification(
        pack_id=pack.pack_id,
        before=told[0],
        after=told[1],
        exchanges=len(exchanges),
        features=tuple(
            carried(feature, scores[0][:, i], scores[1][:, i], clusters, asked, errors)
            for i, feature in enumerate(pack.features)
        ),
        canary_deviation=deviation,
    )


def carried(
    feature: Feature,
    before: Floats,
    after: Floats,
    clusters: Counts,
    asked: Asked,
    errors: Errors,
) -> Carried:
    """One feature's scores [n] before and after, NaN where an exchange has no token for it."""
    both = np.isfinite(before) & np.isfinite(after)
    old, new, members = (
        before[both].astype(np.float64),
        after[both].astype(np.float64),
        clusters[both],
    )
    differences = feature.toward(new - old)
    was, is_now = feature.in_tail(old), feature.in_tail(new)
    up, down = (
        compared_means(sampled(one, members), asked.shift, errors, asked.least)
        for one in (differences, -differences)
    )
    into, out_of = (
        tails_of(*sides, members, asked.tail, errors, asked.least)
        for sides in ((was, is_now), (is_now, was))
    )
    parts = [one for one in (up, down, into.compared, out_of.compared) if one is not None]
    needs = [part.needed for part in parts if part.verdict == "inconclusive"]
    known = [need for need in needs if need is not None]
    return Carried(
        feature=feature.name,
        n=len(old),
        shift=up.bound.value,
        low=up.bound.low,
        high=up.bound.high,
        spread=float(differences.std(ddof=1)) if len(old) > 1 else 0.0,
        newly=into.newly,
        no_longer=into.no_longer,
        verdict=together([part.verdict for part in parts]),
        needed=max(known) if known and len(known) == len(needs) else None,
    )
