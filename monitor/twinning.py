"""Which answered prompts the copy answers too, and what is kept of the two answers. Pure, as `weighing` is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from monitor.drift.histogram import bucket_scores
from monitor.ingest.sampling import twin_seed, twin_wanted
from monitor.laws import Laws
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.settings import Settings
from monitor.values.arrays import Floats
from monitor.values.prompts import Prompt, question
from monitor.values.scores import Bucket, Replayed, ScoredPrompt
from monitor.values.surprise import NotWeighed
from monitor.values.twin import NotPaired, Pair, TwinAsked, Unpaired


class Twinning:
    """What becomes of the chosen prompts under one configuration and pack; ``twin.share`` 0 chooses none.

    Which prompts have a twin never depends on what was answered: of equal prompts in one chunk it is the
    first, not the first of each answer.
    """

    def __init__(self, settings: Settings, pack: Pack) -> None:
        self._settings = settings.twin
        self._bucket = settings.drift.bucket
        self._laws = Laws(settings)
        self._features = pack.features
        self._of_prompt = np.array([feature.of_prompt for feature in pack.features])
        self._scorer = Scorer(pack)

    def asked(self, prompts: Sequence[Prompt]) -> dict[int, TwinAsked]:
        """By index, how the copy answers each chosen prompt that can be compared."""
        if self._settings.share == 0.0:
            return {}
        seen: set[tuple[str, ...]] = set()
        found = {}
        for index, prompt in enumerate(prompts):
            if not self._chosen(prompt) or self._why_not(prompt) is not None:
                continue
            if question(prompt) not in seen:
                seen.add(question(prompt))
                found[index] = TwinAsked(
                    law=self._laws.of(prompt), tokens=self._settings.tokens, seed=twin_seed(prompt)
                )
        return found

    def read(
        self, replayed: Sequence[Replayed], scored: Sequence[ScoredPrompt]
    ) -> tuple[ScoredPrompt, ...]:
        """``scored`` with the differences of each chosen prompt, or why there are none."""
        if self._settings.share == 0.0:
            return tuple(scored)
        return tuple(
            replace(row, twin=self._twin(outcome, row)) if self._chosen(outcome.prompt) else row
            for outcome, row in zip(replayed, scored, strict=True)
        )

    def buckets(self, scored: Iterable[ScoredPrompt]) -> tuple[Bucket, ...]:
        """The statistics of the differences, in the segments of their prompts."""
        rows = [replace(row, scores=row.twin) for row in scored if isinstance(row.twin, np.ndarray)]
        return bucket_scores(rows, self._features, bucket=self._bucket)

    def _chosen(self, prompt: Prompt) -> bool:
        return twin_wanted(prompt, self._settings.share) and not bool(self._of_prompt.all())

    def _why_not(self, prompt: Prompt) -> Unpaired | None:
        reason: Unpaired | None = self._laws.why_not(prompt)
        if reason is None and prompt.tools and not prompt.tools_forbidden:
            reason = NotPaired.TOOLS_OFFERED
        if reason is None and prompt.reasoning is not None:
            reason = NotPaired.REASONING_APART
        return reason

    def _twin(self, outcome: Replayed, row: ScoredPrompt) -> Floats | Unpaired:
        reason = self._why_not(outcome.prompt)
        if reason is not None:
            return reason
        compared = row.fidelity
        if compared is not None and compared.prompt_difference:
            return NotWeighed.OTHER_TOKENS
        if not isinstance(outcome.twin, Pair):
            return outcome.twin or NotWeighed.REPEATED
        served, twin = self._scorer.score(outcome.twin.readings, outcome.twin.pooled_tokens)
        apart: Floats = np.where(self._of_prompt, np.float32(np.nan), served - twin)
        return NotPaired.NOTHING_TO_READ if np.isnan(apart).all() else apart
