"""May this checkpoint be released? The same prompts through the served model and the candidate.

Both are read by the production engine, one after the other, with the pack of the served model. What
is compared, in score units and signed so that positive is harmful:

- given responses: ``model`` shift, candidate minus reference on the same tokens;
- own answers (``generate``): both answer greedily. ``behaviour`` shift: the reference reads the
  candidate's answers and its own; the instrument stays, the text differs. ``model`` shift: both read
  the candidate's answers; the text stays, the weights differ. Both must pass.

How they are judged stands in `equivalence`, the margins in `rules`.

Legend: n = prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from monitor.errors import BadInput, PackError
from monitor.replay.adapter import CONFIG_FILE
from monitor.replay.model import identity_of
from monitor.research.gate.equivalence import Errors, Verdict, together
from monitor.research.gate.reading import clusters_of, measured, require_comparable
from monitor.research.gate.rules import Rule, watched
from monitor.research.gate.shifts import FeatureShift, judged
from monitor.research.packs.assemble import instrument
from monitor.research.packs.verify import verify_pack
from monitor.research.progress import Progress, quiet
from monitor.score.fit import require_fit
from monitor.score.pack import Pack
from monitor.settings import ReplaySettings
from monitor.values.prompts import Prompt

ALPHA: Final = 0.05
LEAST_CLUSTERS: Final = 50
"""Below it, a mean of skewed differences keeps no stated error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """How the decision is made: see `equivalence` for ``alpha``."""

    alpha: float = ALPHA
    rules: tuple[Rule, ...] = ()
    least: int = LEAST_CLUSTERS
    generate: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 0.5:
            raise BadInput(f"--alpha {self.alpha:g} must lie between 0 and 0.5")
        if self.least < 2:
            raise BadInput(f"--min-n {self.least} must be at least 2")
        if self.generate is not None and self.generate < 1:
            raise BadInput(f"--generate {self.generate} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The decision and everything that it rests on."""

    verdict: Verdict
    decided_by: tuple[str, ...]
    """The comparisons that hold the verdict: those that failed, or those still open; empty on a pass."""
    shifts: tuple[FeatureShift, ...]
    comparisons: int
    prompts: int
    clusters: int
    settings: GateSettings
    pack: Mapping[str, Any]
    reference: Mapping[str, Any]
    candidate: Mapping[str, Any]
    canary_deviation: float | None
    canary_tolerance: float
    instrument: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int | None:
        """Prompts that would probably decide; None if decided or out of reach."""
        still = [one.needed for one in self.shifts if one.verdict == "inconclusive"]
        known = [need for need in still if need is not None]
        return max(known) if known and len(known) == len(still) else None


def candidate_of(
    reference: ReplaySettings, candidate: Path | None, adapter: Path | None
) -> ReplaySettings:
    """Settings of the candidate: a model, a model with an adapter, or an adapter on the reference's base.

    ``candidate`` may be the adapter's own folder. Raises `BadInput` without a candidate.
    """
    if candidate is not None and adapter is None and (candidate / CONFIG_FILE).is_file():
        candidate, adapter = None, candidate
    if candidate is None and adapter is None:
        raise BadInput("give a candidate: --candidate or --candidate-adapter")
    return reference.model_copy(update={"model": candidate or reference.model, "adapter": adapter})


def run_gate(
    pack: Pack,
    reference: ReplaySettings,
    candidate: ReplaySettings,
    prompts: Sequence[Prompt],
    settings: GateSettings,
    progress: Progress = quiet,
) -> GateReport:
    """Compare ``candidate`` with ``reference`` on ``prompts``, read by ``pack``.

    Prompts of one conversation, and repeats of one prompt, form a cluster. Blocks while both models
    load and run, one at a time. Refuses with `PackError` a pack that does not fit the reference or
    whose canaries do not reproduce on it, with `ModelError` a candidate of another architecture,
    width, tokenizer or template, or one whose readings are not finite, and with `BadInput` prompts
    that cannot be replayed.
    """
    if not prompts:
        raise BadInput("the gate has no prompts")
    margins = watched(pack.selectable, settings.rules)
    progress("replaying the canaries on the reference")
    deviation, tolerance = _checked_instrument(pack, reference)
    ours, theirs = identity_of(reference), identity_of(candidate)
    require_comparable(ours, theirs)
    pairs, notes = measured(pack, reference, candidate, prompts, settings.generate, progress)
    clusters = clusters_of(prompts)
    kinds = len(pairs)
    comparisons = kinds * sum(1 + (m.tail is not None) for m in margins.values())
    errors = Errors.of(settings.alpha, comparisons)
    shifts = tuple(
        judged(pack.features[index], index, pair, clusters, margin, errors, settings.least)
        for pair in pairs
        for index, margin in margins.items()
    )
    if not any(one.n for one in shifts):
        raise BadInput(
            "no prompt has a token that a watched feature reads",
            hint="give prompts with responses, or let both models answer: --generate 64",
        )
    verdict = together([one.verdict for one in shifts])
    if ours.weights_hash == theirs.weights_hash:
        notes = (*notes, "The candidate has the reference's own weights.")
    return GateReport(
        verdict=verdict,
        decided_by=_holding(verdict, shifts),
        shifts=shifts,
        comparisons=comparisons,
        prompts=len(prompts),
        clusters=len(np.unique(clusters)),
        settings=settings,
        pack={"name": pack.name, "version": pack.version, "id": pack.pack_id},
        reference=ours.entry(),
        candidate=theirs.entry(),
        canary_deviation=deviation,
        canary_tolerance=tolerance,
        instrument=instrument(reference),
        notes=notes,
    )


def _holding(verdict: Verdict, shifts: Sequence[FeatureShift]) -> tuple[str, ...]:
    if verdict == "pass":
        return ()
    return tuple(f"{one.kind} shift of {one.feature}" for one in shifts if one.verdict == verdict)


def _checked_instrument(pack: Pack, reference: ReplaySettings) -> tuple[float | None, float]:
    require_fit(
        pack,
        identity_of(reference),
        f"the reference in {reference.model}",
        hint="the pack must be that of the reference; the candidate may have other weights",
    )
    checked = verify_pack(pack, reference)
    if checked.reproduced is False:
        raise PackError(
            f"the reference does not reproduce the pack's canaries: off by up to "
            f"{checked.canary_deviation:.3g} deviations, {checked.tolerance:g} are tolerated",
            hint="the instrument differs, not the model: use the dtype the pack was built with, "
            "and see `monitor pack verify`",
        )
    return checked.canary_deviation, checked.tolerance
