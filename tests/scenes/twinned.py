"""Traffic of which a part has twins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monitor.drift.histogram import bucket_scores
from tests.traffic import MINUTE, Traffic


class Twinned(Traffic):
    """A fifth of each minute's prompts have a twin. Users' ``asks`` moves both answers, ``model`` the served."""

    asks = (0.0, 0.0)
    served = (0.0, 0.0)
    reason = None

    def scores(self, per_minute, shift, rare):
        return super().scores(per_minute, np.add(self.asks, self.served), rare)

    def twinned(self, prompts):
        done = [
            replace(row, twin=self._apart(row)) if place % 5 == 0 else row
            for place, row in enumerate(prompts)
        ]
        paired = [replace(row, scores=row.twin) for row in done if isinstance(row.twin, np.ndarray)]
        return done, bucket_scores(paired, self.features, bucket=MINUTE)

    def _apart(self, row):
        if self.reason is not None:
            return self.reason
        twin = self.random.normal(size=2) + self.asks
        return (row.scores - twin).astype(np.float32)
