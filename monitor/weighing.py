"""Which logged answers the whole copy weighs, and what is kept of them. Pure, as `outcomes` is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import numpy as np

from monitor.drift.alternatives import likeness_of
from monitor.drift.histogram import floor_time
from monitor.drift.identity import SHARES, wagers
from monitor.ingest.sampling import OTHER, weighing_wanted
from monitor.laws import Laws
from monitor.settings import Settings
from monitor.values.likeness import Likeness, LikenessBucket
from monitor.values.prompts import Prompt, Sampling, question
from monitor.values.scores import Replayed, ScoredPrompt
from monitor.values.surprise import IdentityBucket, NotWeighed, Surprise, Tally, tally_of

MOST_SERVED: Final = 50
"""Served models that are told apart; those that come later count as one."""
_Key = tuple[datetime, str, str, str]


class Weighing:
    """What becomes of the chosen answers under one configuration; ``identity.share`` 0 chooses none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.identity
        self._laws = Laws(settings)
        self._bucket = settings.drift.bucket
        self._served: set[str] = set()

    def laws(self, prompts: Sequence[Prompt]) -> dict[int, Sampling]:
        """By index, the law of each chosen answer that can be held against one."""
        return {
            index: self._laws.of(prompt)
            for index, prompt in enumerate(prompts)
            if self._chosen(prompt) and self._laws.why_not(prompt) is None
        }

    def read(
        self, replayed: Sequence[Replayed], scored: Sequence[ScoredPrompt]
    ) -> tuple[ScoredPrompt, ...]:
        """``scored`` with what was weighed of each chosen answer, or why it was not."""
        if self._settings.share == 0.0:
            return tuple(scored)
        seen: set[tuple[str, ...]] = set()
        done = []
        for outcome, row in zip(replayed, scored, strict=True):
            if not self._chosen(outcome.prompt):
                done.append(row)
                continue
            done.append(replace(row, weighed=self._weighed(outcome, row, seen)))
            seen.add(question(outcome.prompt))
        return tuple(done)

    def buckets(self, scored: Iterable[ScoredPrompt]) -> tuple[IdentityBucket, ...]:
        """What the chosen answers add, by interval, segment, partition and served model."""
        found: dict[_Key, list[Surprise | NotWeighed]] = defaultdict(list)
        for row in scored:
            if row.weighed is None:
                continue
            for key in self._keys(row):
                found[key].append(row.weighed)
        return tuple(_summed(key, found[key], self._settings.tolerance) for key in sorted(found))

    def likenesses(self, scored: Iterable[ScoredPrompt]) -> tuple[LikenessBucket, ...]:
        """What their answers say for each alternative, by the same and its name."""
        found: dict[tuple[_Key, str], Likeness] = defaultdict(Likeness)
        for row in scored:
            if not isinstance(row.weighed, Surprise):
                continue
            each = {
                name: likeness_of(one, self._settings.tolerance)
                for name, one in row.weighed.likened.items()
            }
            for key in self._keys(row) if each else ():
                for name, likeness in each.items():
                    found[key, name] += likeness
        return tuple(
            LikenessBucket(
                bucket_start=start,
                segment=segment,
                source=source,
                served=served,
                alternative=name,
                likeness=likeness,
            )
            for ((start, segment, source, served), name), likeness in sorted(
                found.items(), key=lambda item: item[0]
            )
        )

    def _keys(self, row: ScoredPrompt) -> list[_Key]:
        """Where an answer is counted."""
        start = floor_time(row.recorded_at, self._bucket)
        source = f"{row.key.topic}/{row.key.partition}"
        return [
            (start, segment, source, self._served_by(row))
            for segment in row.counted_in(of_prompt=False)
        ]

    def _chosen(self, prompt: Prompt) -> bool:
        return weighing_wanted(prompt, self._settings.share)

    def _weighed(
        self, outcome: Replayed, row: ScoredPrompt, seen: Collection[tuple[str, ...]]
    ) -> Surprise | NotWeighed:
        reason = self._laws.why_not(outcome.prompt)
        if reason is not None:
            return reason
        if outcome.generated or outcome.weighed is None:
            return NotWeighed.NO_ANSWER
        compared = row.fidelity
        if compared is not None and (compared.prompt_difference or compared.answer_difference):
            return NotWeighed.OTHER_TOKENS
        if question(outcome.prompt) in seen:
            return NotWeighed.REPEATED
        if isinstance(outcome.weighed, NotWeighed):
            return outcome.weighed
        return replace(outcome.weighed, assumed=self._laws.assumed(outcome.prompt))

    def _served_by(self, row: ScoredPrompt) -> str:
        served = f"{row.model or ''}@{row.model_revision or ''}"
        if served not in self._served:
            if len(self._served) >= MOST_SERVED:
                return OTHER
            self._served.add(served)
        return served


def _summed(
    key: _Key, answers: Sequence[Surprise | NotWeighed], tolerance: float
) -> IdentityBucket:
    start, segment, source, served = key
    tally, gains = Tally(), np.zeros(len(SHARES))
    for answer in answers:
        if isinstance(answer, NotWeighed):
            tally += Tally(left_out=1)
        else:
            tally += tally_of(answer)
            gains = gains + wagers(answer, tolerance)
    return IdentityBucket(
        bucket_start=start,
        segment=segment,
        source=source,
        served=served,
        tally=tally,
        wagers=gains,
    )
