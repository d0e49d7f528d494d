"""One feature's shift between two models: mean and tail, each held to its margin.

Legend: n = prompts, c = clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitor.research.gate.equivalence import (
    Compared,
    Errors,
    Verdict,
    compared_means,
    compared_tails,
    sampled,
    together,
)
from monitor.research.gate.reading import Kind, Pairs
from monitor.research.gate.rules import Margins
from monitor.values.arrays import Counts
from monitor.values.features import Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """Clusters with a prompt in the feature's tail: before, after, and those that changed sides."""

    before: int
    after: int
    newly: int
    no_longer: int
    compared: Compared | None
    """None: not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureShift:
    """One feature's harmful shift. ``reference`` and ``candidate`` are mean scores as they are, not
    signed, None without pairs; ``effect`` is the mean over the deviation of the paired differences
    (Cohen's d_z), None without a deviation."""

    feature: str
    kind: Kind
    expected: str
    n: int
    clusters: int
    reference: float | None
    candidate: float | None
    effect: float | None
    shift: Compared
    tails: Tails
    verdict: Verdict

    @property
    def needed(self) -> int | None:
        """Prompts for a decision with power `equivalence.POWER`; None if decided or out of reach."""
        parts = [part for part in (self.shift, self.tails.compared) if part is not None]
        open_parts = [part.needed for part in parts if part.verdict == "inconclusive"]
        known = [need for need in open_parts if need is not None]
        return max(known) if known and len(known) == len(open_parts) else None


def judged(
    feature: Feature,
    index: int,
    pairs: Pairs,
    clusters: Counts,
    margins: Margins,
    errors: Errors,
    least: int,
) -> FeatureShift:
    """The shift of ``feature``, column ``index`` of ``pairs``, prompts in ``clusters`` [n].

    Pairs with an absent region on either side are left out.
    """
    before, after = (side[:, index].astype(np.float64) for side in (pairs.before, pairs.after))
    both = np.isfinite(before) & np.isfinite(after)
    before, after, members = before[both], after[both], clusters[both]
    differences = feature.toward(after - before)
    shift = compared_means(sampled(differences, members), margins.shift, errors, least)
    tails = tails_of(
        feature.in_tail(before),
        feature.in_tail(after),
        members,
        margins.tail,
        errors,
        least,
    )
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    verdicts = [part.verdict for part in (shift, tails.compared) if part is not None]
    return FeatureShift(
        feature=feature.name,
        kind=pairs.kind,
        expected=feature.expected,
        n=len(before),
        clusters=len(np.unique(members)),
        reference=float(before.mean()) if len(before) else None,
        candidate=float(after.mean()) if len(after) else None,
        effect=float(differences.mean()) / spread if spread > 0.0 else None,
        shift=shift,
        tails=tails,
        verdict=together(verdicts),
    )


def tails_of(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    clusters: Counts,
    margin: float | None,
    errors: Errors,
    least: int,
) -> Tails:
    """A cluster is in the tail when any of its prompts is; so clusters stay independent draws."""
    names, member = np.unique(clusters, return_inverse=True)
    c = len(names)
    was, is_now = (np.bincount(member, side, c) > 0 for side in (before, after))
    newly, no_longer = int((is_now & ~was).sum()), int((was & ~is_now).sum())
    compared = None
    if margin is not None:
        compared = compared_tails(newly, no_longer, c, margin=margin, errors=errors, least=least)
        if compared.needed is not None:
            needed = int(np.ceil(compared.needed * len(clusters) / c))
            compared = replace(compared, needed=needed)
    return Tails(
        before=int(was.sum()),
        after=int(is_now.sum()),
        newly=newly,
        no_longer=no_longer,
        compared=compared,
    )
