"""Which logged answers the whole copy weighs, and what is kept of them. Pure, but for `Weighing.look`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import numpy as np
from sqlalchemy import Connection

from monitor.drift.alternatives import likeness_of
from monitor.drift.histogram import floor_time
from monitor.drift.identity import SHARES, wagers
from monitor.ingest.sampling import OTHER, weighing_wanted
from monitor.laws import Laws
from monitor.settings import Settings
from monitor.store.laws import law_in_force, numerics_in_force
from monitor.values.likelihood import (
    INTERVAL,
    DrawnBy,
    EstimatedLaw,
    LawBucket,
    Likelihood,
    Likelihoods,
    Untold,
)
from monitor.values.likeness import Likeness, LikenessBucket
from monitor.values.numerics import tolerance_in_force
from monitor.values.prompts import EVERYTHING, Prompt, Sampling, question
from monitor.values.scores import Replayed, ScoredPrompt
from monitor.values.surprise import IdentityBucket, NotWeighed, Surprise, Tally, Weighed, tally_of

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
        self.estimated: EstimatedLaw | None = None
        """The law of the approved baseline, for answers of which nobody says theirs."""
        self.tolerance = self._settings.tolerance
        """Nats a token that are allowed for: `identity.tolerance`, or more where the approved baseline measured it."""

    def look(self, c: Connection, pack_id: str) -> bool:
        """Weigh by what the approved baseline tells, from here on; whether that is something else than before."""
        before = self.estimated, self.tolerance
        if self._settings.share > 0.0:
            self.estimated = law_in_force(c, pack_id)
            measured = numerics_in_force(c, pack_id)
            self.tolerance = tolerance_in_force(measured, self._settings.tolerance)
        return (self.estimated, self.tolerance) != before

    @property
    def told(self) -> str:
        """A sentence: what the approved baseline tells."""
        law = f"where nobody says it, {self.estimated}" if self.estimated else "as records say"
        return f"laws {law}; {self.tolerance:.3g} nats a token allowed for"

    def laws(self, prompts: Sequence[Prompt]) -> dict[int, DrawnBy]:
        """By index, what is known of how each chosen answer was drawn that can be held against a law."""
        found: dict[int, DrawnBy] = {}
        if self._settings.share == 0.0:
            return found
        for index, prompt in enumerate(prompts):
            if not self._chosen(prompt):
                continue
            reason = self._laws.why_not(prompt)
            if reason is None:
                found[index] = self._laws.of(prompt)
            elif self._untold(prompt, reason):
                found[index] = Untold(said=prompt.sampling or Sampling(), law=self.estimated)
        return found

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
        found: dict[_Key, list[Weighed]] = defaultdict(list)
        for row in scored:
            if row.weighed is None:
                continue
            for key in self._keys(row):
                found[key].append(row.weighed)
        return tuple(_summed(key, found[key], self.tolerance) for key in sorted(found))

    def likenesses(self, scored: Iterable[ScoredPrompt]) -> tuple[LikenessBucket, ...]:
        """What their answers say for each alternative, by the same and its name."""
        found: dict[tuple[_Key, str], Likeness] = defaultdict(Likeness)
        for row in scored:
            if not isinstance(row.weighed, Surprise):
                continue
            each = {
                name: likeness_of(one, self.tolerance, unchecked=row.weighed.unchecked)
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

    def law_buckets(self, scored: Iterable[ScoredPrompt]) -> tuple[LawBucket, ...]:
        """How likely the answers are of which nobody says how they were drawn, by partition and served model."""
        found: dict[tuple[datetime, str, str], Likelihoods] = defaultdict(Likelihoods)
        for row in scored:
            one = row.weighed.likelihood if isinstance(row.weighed, Surprise) else row.weighed
            if isinstance(one, Likelihood) and EVERYTHING in row.counted_in(of_prompt=False):
                start = floor_time(row.recorded_at, INTERVAL)
                source = f"{row.key.topic}/{row.key.partition}"
                found[start, source, self._served_by(row)] += one
        return tuple(
            LawBucket(bucket_start=start, source=source, served=served, sums=sums)
            for (start, source, served), sums in sorted(found.items(), key=lambda one: one[0])
        )

    def _chosen(self, prompt: Prompt) -> bool:
        return weighing_wanted(prompt, self._settings.share)

    def _weighed(
        self, outcome: Replayed, row: ScoredPrompt, seen: Collection[tuple[str, ...]]
    ) -> Weighed:
        reason = self._laws.why_not(outcome.prompt)
        if reason is not None and not self._untold(outcome.prompt, reason):
            return reason
        if outcome.generated or outcome.weighed is None:
            return NotWeighed.NO_ANSWER
        compared = row.fidelity
        if compared is not None and (compared.prompt_difference or compared.answer_difference):
            return NotWeighed.OTHER_TOKENS
        if question(outcome.prompt) in seen:
            return NotWeighed.REPEATED
        if not isinstance(outcome.weighed, Surprise):
            return outcome.weighed
        counted = compared is not None and compared.answer_difference is not None
        sharp = reason is not None or self._laws.of(outcome.prompt).sharp
        assumed = self._laws.assumed(outcome.prompt)
        return replace(
            outcome.weighed,
            said_by="settings" if assumed else outcome.weighed.said_by,
            # An estimated law counts as sharp.
            sharp=sharp,
            counted=counted,
        )

    def _untold(self, prompt: Prompt, reason: NotWeighed) -> bool:
        """The answer is one of those whose law a baseline estimates."""
        return reason is NotWeighed.SAMPLING_UNKNOWN and self._laws.untold(prompt)

    def _served_by(self, row: ScoredPrompt) -> str:
        served = f"{row.model or ''}@{row.model_revision or ''}"
        if served not in self._served:
            if len(self._served) >= MOST_SERVED:
                return OTHER
            self._served.add(served)
        return served


def _summed(key: _Key, answers: Sequence[Weighed], tolerance: float) -> IdentityBucket:
    start, segment, source, served = key
    tally, gains = Tally(), np.zeros(len(SHARES))
    for answer in answers:
        if isinstance(answer, Surprise):
            tally += tally_of(answer)
            gains = gains + wagers(answer, tolerance)
        else:
            tally += Tally(left_out=1)
    return IdentityBucket(
        bucket_start=start,
        segment=segment,
        source=source,
        served=served,
        tally=tally,
        wagers=gains,
    )
