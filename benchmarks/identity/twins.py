"""The copy's own answers beside those that pass: twins for a simulated watcher, out of the copy's pool.

The twin of an answer is another one that the copy gave to the same question, at the same law: what the worker's own decoding
would draw. The questions are what the speakers share, so every answer has some.

Legend: n = answers, m = minutes, p = prompts a minute, k = features, b = score bins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TypeVar

import numpy as np

from benchmarks.persona.minutes import START
from monitor.drift import sequential
from monitor.drift.histogram import EDGES
from monitor.drift.twin import Stream, taken_in
from monitor.pairing import Twins
from monitor.settings import Settings
from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Window
from monitor.values.features import Feature
from monitor.values.prompts import EVERYTHING
from monitor.values.scores import SCORE_BINS, Bucket
from monitor.values.twin import TwinState

_Sums = TypeVar("_Sums", Counts, Doubles)


@dataclass(frozen=True, kw_only=True)
class Others:
    """Which answers of the copy go to the question of each answer."""

    places: Counts
    """Of the copy's answers, in the order of their questions."""
    first: Counts
    """[n] Where those to the question of an answer begin in ``places``."""
    many: Counts
    """[n] How many there are."""
    rank: Counts
    """[n] Which of them an answer is itself; -1: it is another speaker's."""

    @classmethod
    def of(cls, asked: Counts, copys: Counts) -> Others:
        """``asked`` [n] are questions, ``copys`` places of the copy's answers."""
        order = copys[np.argsort(asked[copys], kind="stable")]
        own = asked[order]
        first, after = (np.searchsorted(own, asked, side=side) for side in ("left", "right"))
        rank = np.full(len(asked), -1)
        rank[order] = np.arange(len(order)) - first[order]
        return cls(places=order, first=first, many=after - first, rank=rank)

    def drawn(self, answers: Counts, generator: np.random.Generator) -> Counts:
        """A twin of each of the ``answers``, never itself; -1 where the copy gave no other."""
        own, many = self.rank[answers] >= 0, self.many[answers]
        left = many - own
        step = (generator.random(answers.shape) * np.maximum(left, 1)).astype(np.int64)
        behind = np.where(own, (self.rank[answers] + 1 + step) % np.maximum(many, 1), step)
        found = self.places[np.minimum(self.first[answers] + behind, len(self.places) - 1)]
        return np.where(left > 0, found, -1)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Differences of what passed to its twins, as the worker's buckets hold them."""

    features: tuple[Feature, ...]
    settings: Settings
    scores: Doubles
    """[n, k]"""
    places: Counts
    """Answers [m, p]."""
    twins: Counts
    """Of those [m, p]; -1: it has none."""
    steps: list[Mapping[Stream, TwinState]] = field(default_factory=list)
    """The tests after each minute so far."""

    @property
    def _read(self) -> list[int]:
        return [place for place, one in enumerate(self.features) if not one.of_prompt]

    @cached_property
    def _sums(self) -> Mapping[int, tuple[Counts, Doubles, Counts]]:
        """By feature, what was before each minute: pairs [m + 1], sums and squares [m + 1, 2], bins [m + 1, b]."""
        paired, minutes = self.twins >= 0, len(self.places)
        found: dict[int, tuple[Counts, Doubles, Counts]] = {}
        for feature in self._read:
            own = self.scores[:, feature]
            apart: Doubles = np.where(paired, own[self.places] - own[self.twins], 0.0)
            bins = (
                np.searchsorted(EDGES, apart, side="right")
                + SCORE_BINS * np.arange(minutes)[:, None]
            )
            counted = np.bincount(bins[paired], minlength=SCORE_BINS * minutes)
            moments: Doubles = np.stack([apart.sum(axis=1), (apart**2).sum(axis=1)], axis=1)
            found[feature] = (
                _before(paired.sum(axis=1)),
                _before(moments),
                _before(counted.reshape(minutes, SCORE_BINS)),
            )
        return found

    def tests(self, minute: int) -> Mapping[Stream, TwinState]:
        """After ``minute``."""
        drift = self.settings.drift
        alone = sequential.threshold(drift.average_run_length, 1, drift.bucket)
        while len(self.steps) <= minute:
            at = len(self.steps)
            self.steps.append(
                taken_in(
                    self.steps[-1] if self.steps else {},
                    self._buckets(at),
                    until=self._start(at),
                    begin=START - drift.bucket,
                    alone=alone,
                    tolerance=self.settings.twin.tolerance,
                )
            )
        return self.steps[minute]

    def told(self, minute: int, windows: Collection[str]) -> Twins:
        """What they say at the end of ``minute``, with the differences of ``windows`` by name."""
        drift = self.settings.drift
        return Twins(
            features=tuple(one.name for one in self.features),
            tests={EVERYTHING: list(self.tests(minute).values())},
            windows={
                (name, EVERYTHING): {
                    feature: self._window(feature, minute, int(length / drift.bucket))
                    for feature in self._read
                }
                for name, length in drift.windows.items()
                if name in windows
            },
            confidence=drift.confidence,
        )

    def _buckets(self, minute: int) -> list[Bucket]:
        found = []
        for feature, (n, moments, bins) in self._sums.items():
            total, squares = moments[minute + 1] - moments[minute]
            found.append(
                Bucket(
                    bucket_start=self._start(minute),
                    bucket_seconds=int(self.settings.drift.bucket.total_seconds()),
                    feature=feature,
                    segment=EVERYTHING,
                    source="simulated/0",
                    n=int(n[minute + 1] - n[minute]),
                    total=float(total),
                    total_squares=float(squares),
                    histogram=bins[minute + 1] - bins[minute],
                    tail_count=None,
                )
            )
        return found

    def _window(self, feature: int, minute: int, length: int) -> Window:
        n, moments, bins = self._sums[feature]
        begin, end = max(0, minute + 1 - length), minute + 1
        total, squares = moments[end] - moments[begin]
        return Window(
            feature=feature,
            segment=EVERYTHING,
            start=self._start(begin),
            end=self._start(end),
            n=int(n[end] - n[begin]),
            total=float(total),
            total_squares=float(squares),
            histogram=bins[end] - bins[begin],
            tail_count=None,
        )

    def _start(self, minute: int) -> datetime:
        return START + minute * self.settings.drift.bucket


def _before(each: _Sums) -> _Sums:
    """Sums before each minute [m + 1, …] of what each one has [m, …]."""
    nothing = np.zeros((1, *each.shape[1:]), each.dtype)
    found: _Sums = np.concatenate([nothing, each.cumsum(axis=0)])
    return found
