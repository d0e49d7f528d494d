"""A watcher without a database: traffic of real answers passes, and somebody is paged or not, with a verdict.

Every figure and decision is made by the functions that the watcher calls: `persona.simulated` for the features'
windows, detectors and rules, `drift.identity` and `drift.twin` for the tests, `vouching` for witnesses and verdicts, `alert` for
the rules. The first minutes are the copy's own answers and fill the windows; the detectors of drift begin behind
them, as everywhere in `persona.simulated`, the tests of identity with the first.

Legend: n = answers, m = minutes, p = prompts a minute, s = shares that are bet on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np

from benchmarks.identity.bets import wagered
from benchmarks.identity.pools import Pool
from benchmarks.identity.questions import Question
from benchmarks.identity.twins import Others, Pairs
from benchmarks.persona.minutes import START
from benchmarks.persona.pools import Readings
from benchmarks.persona.simulated import NO_EVIDENCE, Watch, World
from monitor.alert.identity import identity_condition
from monitor.alert.policy import conditions, transition
from monitor.alert.twin import twin_condition
from monitor.drift import cause, sequential
from monitor.drift.identity import Stream, taken_in
from monitor.drift.sequential import Evidence
from monitor.score.pack import Pack
from monitor.settings import IdentityRule, IdentitySettings, Settings, TwinSettings
from monitor.values.alerts import Alert, AlertState, Condition
from monitor.values.arrays import Counts, Doubles
from monitor.values.drift import Drift
from monitor.values.prompts import EVERYTHING
from monitor.values.scores import CanaryRun, Lineage
from monitor.values.surprise import IdentityBucket, IdentityState, Tally
from monitor.values.twin import TwinState
from monitor.values.witnesses import Cause, Verdict
from monitor.vouching import Heard, average_run_length, with_causes

PER_MINUTE: Final = 20
SERVED: Final = "served@1"
QUIET: Final = "quiet"
_State = TypeVar("_State", IdentityState, TwinState)
_LINEAGE: Final = Lineage(
    pack_id="p",
    model_id="copy",
    model_hash="",
    dtype="float32",
    attention="",
    device="cpu",
    engine="",
    rules="{}",
)


def settings_of(weighed: float, twins: float = 0.0) -> Settings:
    """The defaults; each family of detectors has its part of the false alarms (`vouching.average_run_length`)."""
    identity, twin = IdentitySettings(share=weighed), TwinSettings(share=twins)
    defaults = Settings(identity=identity, twin=twin)
    length = average_run_length(defaults)
    drift = defaults.drift.model_copy(update={"average_run_length": length})
    return defaults.model_copy(update={"drift": drift})


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All pools of temperature 1 behind each other."""

    read: Readings
    questions: Sequence[bytes]
    gains: Doubles
    """[n, s]"""
    sums: Doubles
    """Tokens, excess and variance [n, 3]."""
    members: Mapping[str, Counts]
    """Places by speaker; of the copy's also by topic (``topic: NAME``), and its answers to ``core`` questions. Those are
    the core questions that every speaker answered, as are all places of other speakers: who answers changes alone then."""
    others: Others
    """The copy's further answers to each question."""


def answers_of(pools: Mapping[str, Pool], every: Sequence[Question], pack: Pack) -> Answers:
    """``pools`` by speaker; a topic is listed where no question of it is a core question."""
    members: dict[str, Counts] = {}
    start = 0
    for name, pool in pools.items():
        members[name], start = start + np.arange(len(pool)), start + len(pool)
    places = np.concatenate([pool.question for pool in pools.values()])
    asked = [every[place] for place in places]
    copy = members["copy"]
    core = {place for place, one in enumerate(every) if one.core}
    shared = core.intersection(*(pool.question.tolist() for pool in pools.values()))
    with_them = np.isin(places, sorted(shared))
    members = {
        name: its if name == "copy" else its[with_them[its]] for name, its in members.items()
    }
    members["core"] = copy[with_them[copy]]
    with_core = {one.topic for one in every if one.core}
    for topic in sorted({one.topic for one in every} - with_core):
        members[f"topic: {topic}"] = copy[np.array([asked[i].topic == topic for i in copy])]
    return Answers(
        read=Readings(
            pack=pack,
            scores=np.concatenate([pool.scores for pool in pools.values()]),
            covariates=np.concatenate([pool.covariates for pool in pools.values()]),
        ),
        questions=[one.prompt.messages[-1].content.encode() for one in asked],
        gains=np.concatenate([wagered(pool, "1") for pool in pools.values()]),
        sums=np.concatenate(
            [
                np.stack([pool.tokens.astype(np.float64), pool.excess, pool.variance], axis=1)
                for pool in pools.values()
            ]
        ),
        members=members,
        others=Others.of(places, copy),
    )


def drawn(
    answers: Answers, shares: Mapping[str, float], minutes: int, generator: np.random.Generator
) -> Counts:
    """Places [m, p]: a group by its share, then one of it, with replacement."""
    weights = np.array(list(shares.values()))
    size = (minutes, PER_MINUTE)
    which = generator.choice(len(weights), size=size, p=weights / weights.sum())
    found = np.zeros(size, dtype=np.int64)
    for number, name in enumerate(shares):
        here, group = which == number, answers.members[name]
        found[here] = group[generator.integers(len(group), size=int(here.sum()))]
    return found


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one run came to."""

    paged: str
    """The cause in the first alert that fired, or `QUIET`."""
    by: str
    """What raised it: ``identity``, ``twin``, ``features``, ``instrument`` or nothing."""
    prompts: int | None
    """Prompts from the change until it fired."""
    history: str
    """The cause of the shortest window at the end."""
    accused: bool
    """An alert of identity or the twin fired, first or later."""

    @property
    def verdict(self) -> str:
        """What whoever asks is told: the alert, or the history where nobody was paged."""
        return self.history if self.paged == QUIET else self.paged


@dataclass(kw_only=True)
class Run:
    """Traffic [m, p] that changes after ``before`` minutes."""

    answers: Answers
    world: World
    settings: Settings
    places: Counts
    weighed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    """[m, p]"""
    before: int
    pairs: Pairs | None = None
    """Twins of the same traffic; None: they are switched off."""
    canary: float = 0.0
    """Largest deviation of a canary, from the change on."""

    def told(self) -> Told:
        end = len(self.places) - 1
        history = self._verdict(end, self._shortest)
        if not self._canaries(end).reproduced:
            # The `instrument` rule fires; alerts of drift are neither raised nor resolved.
            return Told(
                paged=history,
                by="instrument",
                prompts=PER_MINUTE,
                history=history,
                accused=False,
            )
        fired = {
            "identity": self._identity(),
            "twin": self._twin(),
            "features": self._features(),
        }
        at, by = min(
            ((minute, by) for by, minute in fired.items() if minute is not None),
            default=(None, "nothing"),
        )
        accused = fired["identity"] is not None or fired["twin"] is not None
        if at is None:
            return Told(paged=QUIET, by=by, prompts=None, history=history, accused=accused)
        paged = self._worst(at) if by == "features" else self._verdict(at, self._shortest)
        prompts = (at + 1 - self.before) * PER_MINUTE
        return Told(paged=paged, by=by, prompts=prompts, history=history, accused=accused)

    # --- who is paged ------------------------------------------------------------------------

    def _identity(self) -> int | None:
        """The minute in which the alert of identity fires."""

        def tests(minute: int) -> Sequence[IdentityState]:
            return [*self._tests[minute].values()]

        def condition(minute: int, states: Sequence[IdentityState]) -> Condition | None:
            return identity_condition("p", states[0], self._of_all(minute), IdentityRule())

        return self._fires(tests, condition)

    def _twin(self) -> int | None:
        """The minute in which the alert of the twin fires."""
        if self.pairs is None:
            return None
        pairs, names = self.pairs, [one.name for one in self.world.features]

        def tests(minute: int) -> Sequence[TwinState]:
            return [*pairs.tests(minute).values()]

        def condition(minute: int, states: Sequence[TwinState]) -> Condition | None:
            verdict = self._of_all(minute)
            return twin_condition("p", EVERYTHING, states, names, {}, verdict, IdentityRule())

        return self._fires(tests, condition)

    def _of_all(self, minute: int) -> Verdict:
        """Of no drift, over the shortest window."""
        return self._heard(minute, (self._shortest,)).verdict(EVERYTHING, self._shortest)

    def _fires(
        self,
        tests: Callable[[int], Sequence[_State]],
        condition_of: Callable[[int, Sequence[_State]], Condition | None],
    ) -> int | None:
        """The first minute in which the alert of ``condition_of`` fires, given the ``tests`` after each."""
        alert: Alert | None = None
        for minute in range(len(self.places)):
            states = tests(minute)
            if alert is None and not any(state.crossed for state in states):
                continue
            condition = condition_of(minute, states)
            assert condition is not None
            alert, _ = transition(alert, condition, self._now(minute), silenced=False)
            if alert is not None and alert.state is AlertState.FIRING:
                return minute
        return None

    def _features(self) -> int | None:
        """The minute in which the first alert of the drift rules fires."""
        found: int | None = None
        for index in self.world.paging:
            passed = self._watches[index].first_page(self.settings.drift.rules, found)
            found = passed if passed is not None else found
        return None if found is None else self.before + found

    def _worst(self, minute: int) -> str:
        """The cause in the alerts on features that hold in ``minute``; the rarer word where they differ."""
        # A rule on a changed process holds by the evidence alone, whatever the windows say.
        evidence = {index: self._watches[index].evidence_at(minute) for index in self.world.paging}
        drifts = [
            one
            for name in self.settings.drift.windows
            for one in self._drifts(minute, name, evidence)
        ]
        prompt_side = {one.name for one in self.world.features if one.of_prompt}
        told = list(with_causes(drifts, self._heard(minute), prompt_side))
        made = conditions(told, self.settings.drift.rules, self.world.features)
        causes = [str(one.details["cause"]) for one in made if one.active]
        return min(causes, key=causes.count)

    # --- what is heard -----------------------------------------------------------------------

    def _verdict(self, minute: int, window: str) -> str:
        """Of the drift of answers that is furthest off in this window."""
        drifts = self._drifts(minute, window)
        asked = {one.name for one in self.world.features if one.of_prompt}
        furthest = max(
            (one for one in drifts if one.feature not in asked),
            key=lambda one: max(one.shift.low, -one.shift.high),
        )
        found: Cause = (
            self._heard(minute, (window,))
            .verdict(
                EVERYTHING,
                window,
                prompts=min(minute + 1, self._length(window)) * PER_MINUTE,
                asked=[*cause.asked(drifts, asked)],
                drift=furthest,
            )
            .cause
        )
        return found.value

    def _heard(self, minute: int, windows: Sequence[str] | None = None) -> Heard:
        """``windows``: of which the twins' differences are needed; None: of all."""
        names = self.settings.drift.windows if windows is None else windows
        return Heard(
            canaries=cause.canaries([self._canaries(minute)]),
            labels=cause.labels([SERVED], [SERVED]),
            tests=self._tests[minute],
            tallies={
                name: {EVERYTHING: self._tally(minute, name)}
                for name in self.settings.drift.windows
            },
            twins=None if self.pairs is None else self.pairs.told(minute, names),
            settings=self.settings,
            end=self._now(minute),
        )

    def _canaries(self, minute: int) -> CanaryRun:
        off = self.canary if minute >= self.before else 0.0
        bound = self.settings.pack.canary_tolerance
        return CanaryRun(
            worker_id="w",
            ran_at=self._now(minute),
            lineage=_LINEAGE,
            largest_deviation=off,
            noise_floor=bound,
            reproduced=off <= bound,
        )

    def _drifts(
        self, minute: int, window: str, evidence: Mapping[int, Evidence] = MappingProxyType({})
    ) -> list[Drift]:
        """``evidence``: that of the detectors, by feature index; without one there is none."""
        return [
            watch.drift(window, minute, evidence.get(index, NO_EVIDENCE))
            for index, watch in enumerate(self._watches)
        ]

    def _tally(self, minute: int, window: str) -> Tally:
        begin = max(0, minute + 1 - self._length(window))
        n, tokens, excess, variance = self._summed[minute + 1] - self._summed[begin]
        return Tally(
            n=round(float(n)),
            tokens=round(float(tokens)),
            excess=float(excess),
            variance=float(variance),
        )

    @cached_property
    def _summed(self) -> Doubles:
        """Answers, tokens, excess and variance of what was weighed before each minute [m + 1, 4]."""
        each = np.where(self.weighed[..., None], self.answers.sums[self.places], 0.0).sum(axis=1)
        minutes = np.column_stack([self.weighed.sum(axis=1), each])
        found: Doubles = np.concatenate([np.zeros((1, 4)), minutes.cumsum(axis=0)])
        return found

    @cached_property
    def _tests(self) -> list[Mapping[Stream, IdentityState]]:
        """The states after each minute; a copy in doubt passes the buckets over."""
        drift = self.settings.drift
        alone = sequential.threshold(drift.average_run_length, 1, drift.bucket)
        gains = np.where(self.weighed[..., None], self.answers.gains[self.places], 0.0).sum(axis=1)
        states: Mapping[Stream, IdentityState] = {}
        found: list[Mapping[Stream, IdentityState]] = []
        for minute, gained in enumerate(gains):
            at = START + minute * drift.bucket
            bucket = IdentityBucket(
                bucket_start=at,
                segment=EVERYTHING,
                source="simulated/0",
                served=SERVED,
                tally=Tally(n=int(self.weighed[minute].sum())),
                wagers=gained,
            )
            held = states and not self._canaries(minute).reproduced
            states = taken_in(
                states, [] if held else [bucket], until=at, begin=at - drift.bucket, alone=alone
            )
            found.append(states)
        return found

    @cached_property
    def _watches(self) -> list[Watch]:
        return [
            Watch(world=self.world, index=index, texts=self.places, before=self.before)
            for index in range(len(self.world.features))
        ]

    @property
    def _shortest(self) -> str:
        windows = self.settings.drift.windows
        return min(windows, key=lambda name: windows[name])

    def _length(self, window: str) -> int:
        return int(self.settings.drift.windows[window] / self.settings.drift.bucket)

    def _now(self, minute: int) -> datetime:
        return START + (minute + 1) * self.settings.drift.bucket
