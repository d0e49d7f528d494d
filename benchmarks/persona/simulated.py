"""The watcher on simulated traffic: production's baseline, scores given the prompt, bets and rules, no database.

Every figure and decision is made by the functions that the watcher calls (`drift.baseline`, `drift.adjusting`,
`drift.bets`, `drift.tests`, `alert.policy`). What is done here alone is to sum minutes to windows (`minutes`), and to
pass over windows that cannot cross a line: a lower bound is never above its estimate, so a window is compared only where
the estimate itself has reached a limit of a rule that watches the feature.

Before the traffic that is watched lies a stretch of ordinary traffic, which fills the windows; the detectors
begin with what is watched.

Legend: n = texts, k = features, m = minutes, p = prompts a minute, b = score bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.persona.minutes import START, Binned, Minutes
from benchmarks.persona.pools import Readings
from monitor.alert.policy import conditions, transition
from monitor.alert.rules import matches
from monitor.drift import sequential
from monitor.drift.adjusting import fit
from monitor.drift.baseline import capture, intervals, with_adjustment
from monitor.drift.bets import Bets, bets_on
from monitor.drift.histogram import EDGES
from monitor.drift.sequential import Evidence
from monitor.drift.tails import beyond
from monitor.drift.tests import (
    Reference,
    compare,
    mean,
    of_contents,
    tail_rate,
    variance,
    with_raw,
)
from monitor.settings import DriftRule, DriftSettings
from monitor.values.adjustment import Adjustment
from monitor.values.alerts import Alert, AlertState
from monitor.values.arrays import Counts, Doubles, Floats
from monitor.values.drift import Baseline, Drift, Window
from monitor.values.features import Feature
from monitor.values.identity import BaselineFingerprint
from monitor.values.prompts import EVERYTHING
from monitor.values.ridge import fold_of
from monitor.values.scores import SCORE_BINS
from monitor.values.verdicts import followed, verdicts

BASELINE_ID = "b"
NO_EVIDENCE = Evidence(whole=0.0, toward=0.0)
_Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class World:
    """One pack on one baseline."""

    features: Sequence[Feature]
    settings: DriftSettings
    bets: Bets
    watched: Binned
    """What is watched of each text: its score given the prompt where the baseline has that."""
    raw: Binned
    adjusted: frozenset[int]
    """Features whose scores are given the prompt."""

    @property
    def paging(self) -> list[int]:
        """Features that some rule watches in all traffic."""
        return [
            index
            for index, feature in enumerate(self.features)
            if any(matches(rule, feature, EVERYTHING) for rule in self.settings.rules)
        ]

    def reference(self, feature: int) -> Reference:
        key = (feature, EVERYTHING)
        return self.bets.adjusted.get(key) or self.bets.references[key]


def world(
    read: Readings,
    questions: Sequence[bytes],
    baseline: Counts,
    settings: DriftSettings,
    raw: Binned | None = None,
) -> World:
    """The approved baseline of texts ``baseline`` [m, p] as `baseline capture` takes it.

    Texts of the baseline have cross-fitted scores given the prompt, as the baseline itself has: a prompt to
    come was in no fit either. All texts of a question are in one fold. ``raw`` are the binned scores of
    ``read``, for who makes many worlds of them.
    """
    features = followed(read.pack.features, verdicts(read.pack.report))
    raw = raw or Binned(read.scores, features)
    draft = capture(
        _windows(raw, baseline, features, settings),
        features,
        confidence=settings.confidence,
        baseline_id=BASELINE_ID,
        pack_id=read.pack.pack_id,
        name="simulated",
        start=START,
        end=START + len(baseline) * settings.bucket,
        created_at=START,
        fingerprint=BaselineFingerprint(facts={}),
        min_n=settings.min_baseline_n,
    )
    approved, watched = draft, raw
    if settings.adjust and read.covariates.shape[1]:
        approved, given = _given_the_prompt(read, questions, baseline, draft, settings)
        own = [(i, EVERYTHING) in approved.adjusted for i in range(len(features))]
        watched = Binned(np.where(own, given, read.scores), features)
    bets = bets_on(approved, features, settings)
    return World(
        features=features,
        settings=settings,
        bets=bets,
        watched=watched,
        raw=raw,
        adjusted=frozenset(feature for feature, _ in bets.adjusted),
    )


def _given_the_prompt(
    read: Readings,
    questions: Sequence[bytes],
    baseline: Counts,
    draft: Baseline,
    settings: DriftSettings,
) -> tuple[Baseline, Floats]:
    """The draft with its adjustment, and every text's scores given the prompt [n, k]."""
    features, rows = read.pack.features, baseline.ravel()
    folds = np.array([fold_of(question) for question in questions])
    expectations, own = fit(read.scores[rows], read.covariates[rows], folds[rows], features)
    adjustment = Adjustment(baseline_id=BASELINE_ID, expectations=expectations)
    given = adjustment.applied(read.scores, read.covariates)
    given[rows] = own
    approved = with_adjustment(
        draft,
        expectations,
        _windows(Binned(given, features), baseline, features, settings),
        features,
        confidence=settings.confidence,
        min_n=settings.min_baseline_n,
    )
    return approved, given


def _windows(
    scores: Binned, baseline: Counts, features: Sequence[Feature], settings: DriftSettings
) -> Iterator[Window]:
    """The windows of the baseline's consecutive intervals, of every feature that has scores."""
    end = START + len(baseline) * settings.bucket
    present = np.asarray(~np.isnan(scores.scores[baseline.ravel()]).any(axis=0), dtype=np.bool_)
    for index in np.flatnonzero(present[: len(features)]).tolist():
        minutes = Minutes.of(scores, baseline, index, settings)
        for first, after in intervals(START, end, settings.bucket):
            yield minutes.window(*(int((at - START) / settings.bucket) for at in (first, after)))


@dataclass(kw_only=True)
class Watch:
    """One feature of a world while traffic passes; ``before`` minutes of it only fill the windows."""

    world: World
    index: int
    texts: Counts
    before: int = 0
    minutes: Minutes = field(init=False)
    _evidence: list[Evidence] = field(init=False, default_factory=list)
    _drifts: dict[tuple[str, int], Drift] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        world = self.world
        self.minutes = Minutes.of(world.watched, self.texts, self.index, world.settings)
        at = START + (self.before - 1) * world.settings.bucket
        self._state = sequential.start(BASELINE_ID, self.index, EVERYTHING, at)

    def first_page(self, rules: Sequence[DriftRule], until: int | None = None) -> int | None:
        """Watched minutes that passed before an alert of these rules fires, the firing one not counted;
        None: none does before ``until``."""
        own = [rule for rule in rules if matches(rule, self.world.features[self.index], EVERYTHING)]
        if not own:
            return None
        alert: Alert | None = None
        could = {name: self._could_cross(name, own) for name in self.world.settings.windows}
        bets = any(t.process_change for rule in own for t in rule.severities.values())
        for minute in range(self.before, len(self.texts)):
            passed = minute - self.before
            if until is not None and passed >= until:
                return None
            evidence = self.evidence_at(minute) if bets else NO_EVIDENCE
            changed = bets and evidence.whole >= self.world.bets.limit
            names = [name for name, crosses in could.items() if changed or crosses[minute]]
            alert = self._next(alert, names, minute, evidence, own) if names else None
            if alert is not None and alert.state is AlertState.FIRING:
                return passed
        return None

    def _next(
        self,
        alert: Alert | None,
        names: Sequence[str],
        minute: int,
        evidence: Evidence,
        rules: Sequence[DriftRule],
    ) -> Alert | None:
        now = START + (minute + 1) * self.world.settings.bucket
        drifts = [self.drift(name, minute, evidence) for name in names]
        for condition in conditions(drifts, rules, self.world.features):
            return transition(alert, condition, now, silenced=False)[0]
        return None

    def drift(self, window_name: str, minute: int, evidence: Evidence) -> Drift:
        """What the watcher concludes at the end of ``minute``."""
        key = window_name, minute
        if key not in self._drifts:
            self._drifts[key] = self._compared(window_name, minute)
        return replace(self._drifts[key], evidence=evidence.whole, evidence_toward=evidence.toward)

    def _compared(self, window_name: str, minute: int) -> Drift:
        settings = self.world.settings
        against = self.world.reference(self.index)
        found = compare(
            self.minutes.window(*self._span(window_name, minute)),
            against,
            confidence=settings.confidence,
            feature=self.world.features[self.index].name,
            pack_id="p",
            baseline_id=BASELINE_ID,
            pooled=False,
            window_name=window_name,
            evidence=0.0,
            evidence_limit=self.world.bets.limit,
            now=START + (minute + 1) * settings.bucket,
        )
        feature = self.world.features[self.index]
        found = of_contents(
            found,
            against,
            partial(self._contents, self._span(window_name, minute)),
            tail_threshold=feature.tail_threshold,
            confidence=settings.confidence,
        )
        if self.index not in self.world.adjusted:
            return found
        raw = self._raw.window(*self._span(window_name, minute))
        of_raw = self.world.bets.references[self.index, EVERYTHING]
        return with_raw(found, raw, of_raw, confidence=settings.confidence)

    def _contents(
        self, span: tuple[int, int], threshold: float, _count: int
    ) -> list[tuple[bytes, float]]:
        """Which texts lie beyond the threshold in these minutes, each as often as it was drawn."""
        texts = self.texts[slice(*span)].ravel()
        feature = self.world.features[self.index]
        scores = feature.toward(self.world.watched.scores[:, self.index])[texts]
        far = scores >= threshold
        return [
            (str(text).encode(), float(score))
            for text, score in zip(texts[far], scores[far], strict=True)
        ]

    @cached_property
    def _raw(self) -> Minutes:
        """The raw scores of a feature that is watched given the prompt."""
        return Minutes.of(self.world.raw, self.texts, self.index, self.world.settings)

    def _span(self, window_name: str, minute: int) -> tuple[int, int]:
        return max(0, minute + 1 - self._length(window_name)), minute + 1

    def _length(self, window_name: str) -> int:
        settings = self.world.settings
        return int(settings.windows[window_name] / settings.bucket)

    def evidence_at(self, minute: int) -> Evidence:
        """Of a changed process, after ``minute``, which is a watched one."""
        bets = self.world.bets.detectors[self.index, EVERYTHING]
        while len(self._evidence) <= minute - self.before:
            bucket = self.minutes.bucket(self.before + len(self._evidence))
            self._state = sequential.update(self._state, bucket, bets)
            sign = self.world.features[self.index].sign
            self._evidence.append(sequential.standing(self._state, bets, sign))
        return self._evidence[minute - self.before]

    def _could_cross(self, window_name: str, rules: Sequence[DriftRule]) -> _Bools:
        """In which minutes [m] an estimate has reached a limit of ``rules``; no bound has in others."""
        end = np.arange(1, len(self.texts) + 1)
        begin = np.maximum(0, end - self._length(window_name))
        n = (end - begin) * self.minutes.n
        could = np.zeros(len(n), dtype=np.bool_)
        watching = [rule for rule in rules if not rule.windows or window_name in rule.windows]
        for rule in watching:
            enough = n >= rule.min_n
            for limits in rule.severities.values():
                if limits.psi is not None or limits.ks is not None:
                    could |= enough
                if limits.shift is not None:
                    moved = self._moved(begin, end, n)
                    moved = np.abs(moved) if rule.direction == "either" else moved
                    could |= enough & (moved >= limits.shift * _ALMOST)
                if limits.tail_ratio is not None:
                    could |= enough & (self._tail(begin, end, n) >= limits.tail_ratio * _ALMOST)
                if limits.tail_growth is not None:
                    could |= enough & (self._growth(begin, end, n) >= limits.tail_growth * _ALMOST)
        return could

    def _moved(self, begin: Counts, end: Counts, n: Counts) -> Doubles:
        """The mean's shift towards the persona."""
        baseline = self.world.reference(self.index).stream.window
        means = (self.minutes.moments[end, 0] - self.minutes.moments[begin, 0]) / n
        scale = variance(baseline) ** 0.5 or 1.0
        found: Doubles = self.world.features[self.index].toward((means - mean(baseline)) / scale)
        return found

    def _tail(self, begin: Counts, end: Counts, n: Counts) -> Doubles:
        rates = (self.minutes.moments[end, 2] - self.minutes.moments[begin, 2]) / n
        return _ratio(rates, tail_rate(self.world.reference(self.index).stream.window))

    def _growth(self, begin: Counts, end: Counts, n: Counts) -> Doubles:
        """The largest ratio over the levels."""
        against = self.world.reference(self.index)
        found = np.zeros(len(n))
        for level in against.tails:
            edge = int(np.searchsorted(EDGES, level.threshold))
            bins = np.eye(SCORE_BINS, dtype=np.int64)
            far = np.array([beyond(one, against.sign)[edge] for one in bins])
            counts = self.minutes.histograms @ far
            rates = (counts[end] - counts[begin]) / n
            found = np.maximum(found, _ratio(rates, level.count / against.stream.window.n))
        return found


_ALMOST = 1 - 1e-9
"""Estimates are computed in another order here than there."""


def _ratio(rates: Doubles, baseline: float) -> Doubles:
    if baseline > 0:
        return rates / baseline
    return np.where(rates > 0, np.inf, 0.0)


def first_page(
    world: World, texts: Counts, before: int = 0, rules: Sequence[DriftRule] | None = None
) -> tuple[int, str] | None:
    """Watched minutes that passed before the first page of any feature, and the feature."""
    found: tuple[int, str] | None = None
    for index in world.paging:
        watch = Watch(world=world, index=index, texts=texts, before=before)
        rules = world.settings.rules if rules is None else rules
        taken = watch.first_page(rules, found[0] if found else None)
        if taken is not None:
            found = taken, world.features[index].name
    return found
