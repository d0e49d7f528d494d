"""Scores given the prompt: a draft baseline learns what the prompt explains, a worker takes it off.

The worker adjusts by the baseline that was approved when it last looked, and never looks back: a prompt is
adjusted once, in the transaction that stores it, so its counts are as exact as the raw ones. What was
scored before an approval has no such score; the watcher compares those windows raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from sqlalchemy import Connection

from monitor.drift.adjusting import fit
from monitor.drift.baseline import intervals, with_adjustment
from monitor.drift.histogram import Counted, bucket_scores, windows_of
from monitor.settings import DriftSettings
from monitor.store.adjustments import adjustment_in_force, prompts_between
from monitor.store.packs import PackFeature
from monitor.values.adjustment import Adjustment, covariates_of
from monitor.values.drift import Baseline
from monitor.values.ridge import fold_of
from monitor.values.scores import Bucket, ScoredPrompt

MOST_PROMPTS: Final = 100_000
"""Of a longer baseline a share of the conversations is used, so that memory and time stay bounded."""


class GivenThePrompt:
    """What a worker does with the scores of one pack; it changes only in `look`."""

    def __init__(self, pack_id: str, features: Sequence[Counted], settings: DriftSettings) -> None:
        self._pack_id = pack_id
        self._features = features
        self._settings = settings
        self._adjustment: Adjustment | None = None

    @property
    def baseline_id(self) -> str | None:
        """The baseline that adjusts; None: none does."""
        return self._adjustment.baseline_id if self._adjustment else None

    def look(self, c: Connection) -> bool:
        """Adjust by the baseline that is approved now, from here on; whether that is another one."""
        before = self.baseline_id
        if self._settings.adjust:
            self._adjustment = adjustment_in_force(c, self._pack_id, self._adjustment)
        return self.baseline_id != before

    def adjusted(self, scored: Sequence[ScoredPrompt]) -> tuple[ScoredPrompt, ...]:
        """The prompts with their scores given the prompt, where a baseline adjusts."""
        if self._adjustment is None or not scored:
            return tuple(scored)
        scores = np.stack([one.scores for one in scored])
        covariates = covariates_of(scores, [one.covariates for one in scored], self._features)
        rows = self._adjustment.applied(scores, covariates)
        return tuple(replace(one, adjusted=row) for one, row in zip(scored, rows, strict=True))

    def buckets(self, scored: Sequence[ScoredPrompt]) -> tuple[Bucket, ...]:
        """The statistics of the adjusted scores."""
        rows = [replace(one, scores=one.adjusted) for one in scored if one.adjusted is not None]
        return bucket_scores(rows, self._features, bucket=self._settings.bucket)


def adjusted_baseline(
    c: Connection, draft: Baseline, features: Sequence[PackFeature], settings: DriftSettings
) -> Baseline:
    """The draft with expectations and adjusted streams, where the pack reads its prompts at all.

    Unchanged where it does not, where single prompts are no longer kept (`postgres.keep_scores`), or
    where the prompt explains nothing.
    """
    start, end = draft.window_start, draft.window_end
    prompts = prompts_between(c, draft.pack_id, start, end, MOST_PROMPTS)
    if not prompts:
        return draft
    scores = np.stack([one.scores for one in prompts])
    covariates = covariates_of(scores, [one.covariates for one in prompts], features)
    if not covariates.shape[1]:
        return draft
    folds = np.array([fold_of(one.conversation_hash or one.content_hash) for one in prompts])
    expectations, adjusted = fit(scores, covariates, folds, features)
    if not expectations:
        return draft
    first, after = intervals(start, end, settings.bucket)[0]
    rows = [replace(one, scores=row) for one, row in zip(prompts, adjusted, strict=True)]
    return with_adjustment(
        draft,
        expectations,
        windows_of(bucket_scores(rows, features, bucket=after - first)),
        features,
        confidence=settings.confidence,
        min_n=settings.min_baseline_n,
    )
