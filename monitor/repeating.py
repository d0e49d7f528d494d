"""Tails that grew by repeats: one exchange that comes a hundred times is one witness, not a hundred.

Bounds of tail rates take prompts for independent. A cached answer, a client that asks again or a canned
text breaks that, and where it lies in a tail it alone can be more of the traffic than that tail was. What the
baseline's own design effect knows of it is what the baseline showed. So where a tail surely grew, and a rule
would look at that, its prompts are looked up by content, a bounded number of them, and the bound counts contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from monitor.alert.rules import matches
from monitor.drift.tests import Reference, of_contents
from monitor.settings import DriftSettings
from monitor.store.packs import PackFeature
from monitor.values.drift import Drift

MOST_LOOKED_AT: Final = 2_000
"""Prompts beyond a threshold that are looked up, the newest; enough to see that two in a thousand are alike."""


class Exchanges(Protocol):
    """Where single prompts are; `Ledger` is such."""

    def contents_beyond(
        self, feature: PackFeature, shown: Drift, threshold: float, share: float, limit: int
    ) -> Sequence[tuple[bytes, float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What is asked of the exchanges of one pack when a tail grew."""

    exchanges: Exchanges
    settings: DriftSettings

    def taken_off(self, drift: Drift, feature: PackFeature, against: Reference) -> Drift:
        """``drift``, with what surely grew bounded by contents where a rule looks at tails of this stream.

        Unchanged where single prompts are no longer kept (`postgres.keep_scores`).
        """
        if not self._looked_at(drift, feature):
            return drift
        return of_contents(
            drift,
            against,
            partial(self._contents, drift, feature),
            tail_threshold=feature.tail_threshold,
            confidence=self.settings.confidence,
        )

    def _looked_at(self, drift: Drift, feature: PackFeature) -> bool:
        return any(
            matches(rule, feature, drift.segment)
            and any(one.tail_ratio or one.tail_growth for one in rule.severities.values())
            for rule in self.settings.rules
        )

    def _contents(
        self, drift: Drift, feature: PackFeature, threshold: float, count: int
    ) -> Sequence[tuple[bytes, float]]:
        """Of the last part of the window, where there would be more of them than are looked at."""
        share = min(1.0, MOST_LOOKED_AT / max(count, 1))
        return self.exchanges.contents_beyond(feature, drift, threshold, share, MOST_LOOKED_AT)
