"""What each rule could see on this traffic: persona prompts mixed into stored history, through the watcher's code.

For every feature that a rule watches in all traffic, held-out history (the baseline's own interval is left out)
is drawn anew in blocks (`resampling`), a persona is mixed in at a known moment, and the watcher's own functions
say when the rule's alert fires: ``take_in`` and ``compare_all`` of `monitor.evaluation`, ``conditions`` and
``transition`` of `monitor.alert.policy`. Sizes are tried on a ladder, each in so many runs with the same draws;
"seen" is a size at which at least `SEEN` of the runs fire in time. Runs without a persona count false alarms.

What it cannot tell: changes that the history does not hold (a new customer, another language); false alarms rarer
than the history is long; segments other than ``all``; and whether a real persona scores as it is taken to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Literal

import numpy as np
from scipy.special import chdtri

from monitor.alert.policy import conditions, transition
from monitor.alert.rules import FeatureInfo, matches
from monitor.proof.watched import Resampled, Watched
from monitor.settings import DriftRule
from monitor.values.alerts import Alert, AlertState
from monitor.values.drift import Drift
from monitor.values.prompts import EVERYTHING

Kind = Literal["shift", "share"]
PersonaBy = Literal["pack", "given", "default"]
"""Who says how far a persona's prompts score from benign ones."""
LADDERS: Final[Mapping[Kind, tuple[float, ...]]] = {
    "shift": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    "share": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}
"""Mean shifts in baseline deviations, and shares of persona prompts."""
HORIZONS: Final[Mapping[str, timedelta]] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(days=7),
}
NEEDED: Final[Mapping[str, timedelta]] = {
    "hour": timedelta(days=1),
    "day": timedelta(days=3),
    "week": timedelta(days=7),
}
"""Held-out history that it takes to speak of a horizon: what varies more slowly than it is long is not in it."""
SEEN: Final = 0.8
RUNS: Final = 10
PERSONA: Final = 4.0
"""How far a persona's prompts score from benign ones, in deviations, where the pack's report does not say."""
_LOOKS: Final = ((timedelta(hours=1), 1), (timedelta(days=1), 10), (timedelta(days=7), 60))
"""Until when after the change is looked every so many buckets."""
_NULL_LOOK: Final = 10
"""Buckets between two looks of runs without a persona."""

Fires = Callable[[Sequence[Drift], datetime], bool]
"""Asked at every look, in order: does an alert begin to fire now?"""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """The smallest size that is seen within one horizon."""

    size: float | None
    """None: not one of the ladder is, or nothing can be said."""
    verdict: Literal["seen", "not seen", "fires anyway", "undecided"]
    median_seconds: float | None = None
    """Until it is seen, at that size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What one rule sees of one feature."""

    rule: str
    feature: str
    segment: str
    persona: float
    """Deviations that a persona's prompts are taken to score away, for the shares."""
    persona_by: PersonaBy
    history: timedelta
    """Held out."""
    by_hour: bool
    """Blocks were drawn by their hour of the day."""
    least: Mapping[Kind, Mapping[str, Least]]
    """By kind and horizon."""
    false_alarms: float | None
    """In 30 days; None: undecided."""
    false_alarms_at_most: float | None
    """Upper 95 % bound, from as many days as the history has."""
    needed: timedelta | None
    """History that would decide what is undecided; None: nothing is."""


class Ruled:
    """The alert of one rule on its way through its life."""

    def __init__(self, rule: DriftRule, features: Sequence[FeatureInfo]) -> None:
        self._rule = rule
        self._features = features
        self._alert: Alert | None = None

    def __call__(self, drifts: Sequence[Drift], now: datetime) -> bool:
        before = self._alert
        for condition in conditions(drifts, [self._rule], self._features):
            self._alert, _ = transition(before, condition, now, silenced=False)
        after = self._alert
        if after is None or after.state is not AlertState.FIRING:
            return False
        fired_before = before is not None and before.alert_id == after.alert_id
        return not (fired_before and before is not None and before.state is AlertState.FIRING)

    @property
    def holds(self) -> timedelta | None:
        """How long what is seen must hold before it fires; None: nothing is seen."""
        pending = self._alert is not None and self._alert.state is AlertState.PENDING
        return self._rule.hold_for if pending else None


TRIVIAL: Final[Mapping[str, Callable[[], Fires]]] = {
    "always fires": lambda: lambda drifts, now: True,
    "never fires": lambda: lambda drifts, now: False,
}


def power(
    watched: Watched,
    *,
    persona: float,
    persona_by: PersonaBy,
    runs: int = RUNS,
    seed: int = 0,
    progress: Progress = lambda what: None,
) -> list[Power]:
    """What each rule that watches the feature sees of it, and the two trivial detectors beside them."""
    study = _Study(watched, persona, runs, seed, progress)
    rules = [r for r in watched.settings.rules if matches(r, watched.feature, EVERYTHING)]
    makers: dict[str, Callable[[], Fires]] = {
        rule.name: partial(Ruled, rule, watched.subject.features) for rule in rules
    }
    makers |= TRIVIAL
    study.detectors = makers
    span = watched.blocks.span
    horizons = [name for name, needed in NEEDED.items() if span >= needed]
    alarms = study.false_alarms(horizons)
    undecided = [name for name in HORIZONS if name not in horizons]
    found = []
    for name in makers:
        least = {
            kind: {
                horizon: study.least(name, kind, horizon)
                if horizon in horizons
                else Least(size=None, verdict="undecided")
                for horizon in HORIZONS
            }
            for kind in LADDERS
        }
        estimate, at_most = alarms.get(name, (None, None))
        found.append(
            Power(
                rule=name,
                feature=watched.feature.name,
                segment=EVERYTHING,
                persona=persona,
                persona_by=persona_by,
                history=span,
                by_hour=bool(watched.blocks.by_hour),
                least=least,
                false_alarms=estimate,
                false_alarms_at_most=at_most,
                needed=max(NEEDED[one] for one in undecided) if undecided else None,
            )
        )
    return found


class _Study:
    """Runs of one feature, each kept: several rules and horizons ask for the same ones."""

    def __init__(
        self, watched: Watched, persona: float, runs: int, seed: int, progress: Progress
    ) -> None:
        self._watched = watched
        self._persona = persona
        self._runs = runs
        self._seed = seed
        self._progress = progress
        self._longest = timedelta(0)
        self._taken: dict[tuple[Kind, float], dict[str, list[timedelta | None]]] = {}
        self.detectors: Mapping[str, Callable[[], Fires]] = {}

    def false_alarms(self, horizons: Sequence[str]) -> dict[str, tuple[float, float]]:
        """In 30 days, and at most, by detector; nothing where no horizon can be spoken of."""
        if not horizons:
            return {}
        self._longest = max(HORIZONS[one] for one in horizons)
        length = max(self._longest, HORIZONS["day"])
        counts = dict.fromkeys(self.detectors, 0)
        for number in range(self._runs):
            self._progress(f"{self._watched.feature.name}: without a persona, run {number + 1}")
            ledger = self._watched.run(self._draw(number, null=True), length, 0.0, 0.0)
            self._watched.warm(ledger)
            fires = {name: make() for name, make in self.detectors.items()}
            step = _NULL_LOOK * self._watched.settings.bucket
            for look in range(1, length // step + 1):
                at = self._watched.change + look * step
                drifts = self._watched.drifts(ledger, at)
                for name, fire in fires.items():
                    counts[name] += fire(drifts, at)
        days = self._runs * length / timedelta(days=1)
        held = min(days, self._watched.blocks.span / timedelta(days=1))
        return {
            name: (
                30 * count / days,
                # Draws of one history know no more than it: the bound counts its own days.
                30 * float(chdtri(2 * (count * held / days + 1), 0.05)) / 2 / held,
            )
            for name, count in counts.items()
        }

    def least(self, name: str, kind: Kind, horizon: str) -> Least:
        """By bisection on the ladder: runs of all sizes have the same draws, so more is seen no later."""
        ladder = LADDERS[kind]
        if self._rate(name, kind, 0.0, horizon) >= 1 - SEEN:
            size = 0.0 if self._rate(name, kind, 0.0, horizon) >= SEEN else None
            return Least(size=size, verdict="fires anyway")
        low, high = -1, len(ladder)
        while high - low > 1:
            middle = (low + high) // 2
            if self._rate(name, kind, ladder[middle], horizon) >= SEEN:
                high = middle
            else:
                low = middle
        if high == len(ladder):
            return Least(size=None, verdict="not seen")
        times = sorted(
            taken.total_seconds()
            for taken in self._times(name, kind, ladder[high])
            if taken is not None
        )
        return Least(size=ladder[high], verdict="seen", median_seconds=float(np.median(times)))

    def _rate(self, name: str, kind: Kind, size: float, horizon: str) -> float:
        times = self._times(name, kind, size)
        return sum(one is not None and one <= HORIZONS[horizon] for one in times) / len(times)

    def _times(self, name: str, kind: Kind, size: float) -> Sequence[timedelta | None]:
        key: tuple[Kind, float] = ("shift", 0.0) if size == 0.0 else (kind, size)
        if key not in self._taken:
            self._taken[key] = self._run_all(*key)
        return self._taken[key][name]

    def _run_all(self, kind: Kind, size: float) -> dict[str, list[timedelta | None]]:
        found: dict[str, list[timedelta | None]] = {name: [] for name in self.detectors}
        share, shift = (1.0, size) if kind == "shift" else (size, self._persona)
        for number in range(self._runs):
            self._progress(f"{self._watched.feature.name}: {kind} {size:g}, run {number + 1}")
            ledger = self._watched.run(self._draw(number), self._longest, shift, share)
            self._watched.warm(ledger)
            for name, taken in self._first(ledger).items():
                found[name].append(taken)
        return found

    def _first(self, ledger: Resampled) -> dict[str, timedelta | None]:
        """When each detector fires after the change."""
        found: dict[str, timedelta | None] = dict.fromkeys(self.detectors)
        left = {name: make() for name, make in self.detectors.items()}
        looks = list(_looks(self._longest, self._watched.settings.bucket))
        again: list[timedelta] = []
        while left.keys() - {"never fires"} and (looks or again):
            # What is seen must hold a while: it is looked at again then, however rare looks are by now.
            passed = min([*looks[:1], *again])
            looks, again = [one for one in looks if one > passed], []
            at = self._watched.change + passed
            drifts = self._watched.drifts(ledger, at)
            for name in [name for name, fire in left.items() if fire(drifts, at)]:
                found[name] = passed
                del left[name]
            for fire in left.values():
                if isinstance(fire, Ruled) and fire.holds is not None:
                    again.append(passed + self._whole(fire.holds))
        return found

    def _whole(self, hold: timedelta) -> timedelta:
        """In whole buckets, at least one."""
        bucket = self._watched.settings.bucket
        return max(-(-hold // bucket), 1) * bucket

    def _draw(self, number: int, *, null: bool = False) -> np.random.Generator:
        return np.random.default_rng([self._seed, self._watched.index, number, int(null)])


def _looks(longest: timedelta, bucket: timedelta) -> Iterator[timedelta]:
    """When is looked after a change."""
    passed = timedelta(0)
    for until, every in _LOOKS:
        while passed < min(until, longest):
            passed += every * bucket
            yield passed
