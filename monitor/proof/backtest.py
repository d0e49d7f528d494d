"""Which alerts would have fired: stored history through the watcher's own evaluation, with other rules.

Every step is `monitor.evaluation`'s ``look`` and ``conclude``, on a `Replayed` ledger, at the times at which the
watcher evaluated (by the drift that it kept), and every ``drift.evaluate_every`` where it did not. With the
settings in force it raises what the watcher raised. What may differ, because nothing keeps it:

* Records that came late were missing from the windows of then; here they are counted.
* Detectors and alerts begin with the warm-up, or with the baseline where that was approved later.
* A worker counts as alive from the first to the last time it was seen; acknowledgements change nothing.
* Served models are told by the scores, which are kept for ``postgres.keep_scores``: before that, causes lack the
  witness `labels`. Whether an alert fires does not rest on it.
* `NOT_REPLAYED`: silence rules about what no row tells any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection

from monitor.drift.bets import Bets
from monitor.errors import BadInput
from monitor.evaluation import conclude, look
from monitor.proof.replayed import Fired, Past, Replayed
from monitor.settings import Settings
from monitor.store import past
from monitor.store.baselines import load_baseline
from monitor.values.alerts import Alert
from monitor.values.drift import Baseline

NOT_REPLAYED: Final = ("lag", "delay", "starvation", "not_evaluated", "replay_mismatch")
"""Silence rules about how far partitions were read, who evaluated, and single prompts' token counts."""
FIXED: Final[Mapping[str, Sequence[str]]] = {
    "drift": ("bucket", "settle", "wait_for_late", "evaluate_every"),
    "identity": ("share", "temperature", "top_p", "tolerance", "alternatives"),
    "twin": ("share", "tokens"),
}
"""By section: what was stored, and when it was evaluated, follows from these."""
WARM_UP: Final = timedelta(days=1)

Progress = Callable[[int, int], None]
"""Told how many evaluations are done, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What is replayed: from ``warm_from`` on, told from ``start`` to ``end``."""

    warm_from: datetime
    start: datetime
    end: datetime
    notes: tuple[str, ...]
    """Sentences: how it differs from what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """One alert that fired, or would have."""

    alert_id: str
    dedupe_key: str
    kind: str
    rule: str
    severity: str
    """The highest that it reached."""
    feature: str | None
    segment: str | None
    fired_at: datetime
    ended_at: datetime | None
    """None: it still fired at the end."""
    state: str
    announced: int
    """Events put into the outbox; none while it was silenced."""
    cause: str | None
    """As of its firing."""
    summary: str

    def lasted(self, until: datetime) -> timedelta:
        """Within the span that ends at ``until``."""
        return min(self.ended_at or until, until) - self.fired_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one set of rules raised."""

    name: str
    alerts: tuple[Raised, ...]

    def figures(self, span: Span) -> dict[str, Any]:
        """In few numbers; ``firing_seconds`` counts alerts that overlap twice."""
        begun = [one for one in self.alerts if one.fired_at >= span.start]
        lasting = (
            min(one.ended_at or span.end, span.end) - max(one.fired_at, span.start)
            for one in self.alerts
        )
        return {
            "fired": len(begun),
            "open_at_the_start": len(self.alerts) - len(begun),
            "open_at_the_end": sum(one.ended_at is None for one in self.alerts),
            "announced": sum(one.announced for one in self.alerts),
            "firing_seconds": sum((one for one in lasting), timedelta(0)).total_seconds(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """What came of it."""

    span: Span
    evaluations: int
    """In the span, without the warm-up."""
    in_force: Told
    candidate: Told | None
    """With the other rules or baseline; None where none were given."""
    recorded: Told
    """What the watcher really raised, by the store."""
    not_replayed: tuple[str, ...]
    """Silence rules of the settings that are left out on all three sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Settings to be tried, and a baseline in place of the one that was in force."""

    settings: Settings
    baseline: Baseline | None = None


def trial(
    c: Connection, in_force: Settings, others: Settings | None, baseline_id: str | None
) -> Trial | None:
    """What is to be tried beside the settings in force; None: nothing else.

    Raises `BadInput` for a baseline that is not there, and for a setting that stored history cannot follow.
    """
    if others is None and baseline_id is None:
        return None
    settings = others or in_force
    for section, names in FIXED.items():
        for name in names:
            if getattr(getattr(settings, section), name) != getattr(
                getattr(in_force, section), name
            ):
                raise BadInput(
                    f"{section}.{name}: stored history was made with the value in force",
                    hint=f"Leave {section}.{name} out of the rules that are tried.",
                )
    baseline = load_baseline(c, baseline_id) if baseline_id else None
    if baseline_id and baseline is None:
        raise BadInput(
            f"--baseline: there is no baseline {baseline_id!r}; `monitor baseline list` shows them"
        )
    return Trial(settings=settings, baseline=baseline)


def span_of(
    c: Connection,
    settings: Sequence[Settings],
    start: datetime,
    end: datetime,
    now: datetime,
    warm_up: timedelta = WARM_UP,
) -> Span:
    """The span that can be replayed of [start, end), with words about what cannot.

    Raises `BadInput` where nothing of it can: it is empty, holds no fine buckets, or they were dropped.
    """
    if start >= end:
        raise BadInput(f"--from: {_told(start)} must lie before --to, {_told(end)}")
    bounds = past.fine_bounds(c)
    if bounds is None or start >= now or bounds[0] >= end:
        raise BadInput(
            f"nothing is stored between {_told(start)} and {_told(end)}",
            hint=f"Fine buckets begin at {_told(bounds[0])}."
            if bounds
            else "No worker has scored yet.",
        )
    notes = []
    if end > now:
        end = now
        notes.append(f"the span ends now, at {_told(now)}")
    longest = max(max(one.drift.windows.values()) for one in settings)
    kept = past.fine_kept_from(c)
    warm_from = start - max(warm_up, longest)
    if kept is not None and warm_from - longest < kept:
        whole = kept + longest
        if whole >= end:
            raise BadInput(
                f"fine buckets before {_told(kept)} were dropped (postgres.keep_fine_buckets), and the longest "
                f"window takes {_length(longest)}: nothing before {_told(whole)} can be replayed",
                hint=f"Begin with --from {whole:%Y-%m-%dT%H:%M} or later.",
            )
        if start < whole:
            notes.append(
                f"the span begins at {_told(whole)}: fine buckets before {_told(kept)} were dropped "
                f"(postgres.keep_fine_buckets), and the longest window takes {_length(longest)}"
            )
            start = whole
        warm_from = max(warm_from, whole)
        notes.append(
            f"detectors and alerts warm up from {_told(warm_from)} on, {_length(start - warm_from)} "
            "before what is told: fine buckets before that were dropped"
        )
    elif bounds[0] > start:
        notes.append(f"the first fine bucket is of {_told(bounds[0])}")
    # Before it there is nothing to see.
    warm_from = max(warm_from, bounds[0])
    return Span(warm_from=warm_from, start=start, end=end, notes=tuple(notes))


def moments(
    evaluated: Iterable[datetime],
    begin: datetime,
    end: datetime,
    every: timedelta,
    pause: timedelta,
) -> list[datetime]:
    """When to evaluate in [begin, end): as it was done, and each ``every`` in gaps longer than ``pause``."""
    times = sorted(evaluated)
    found: list[datetime] = []
    for before, after in pairwise([begin - every, *times, end]):
        if after - before > pause:
            count = (after - before) // every
            filled = (before + every * step for step in range(1, count + 1))
            found += [moment for moment in filled if begin <= moment < after]
        if after < end:
            found.append(after)
    return found


def replay(
    c: Connection,
    in_force: Settings,
    tried: Trial | None,
    span: Span,
    *,
    progress: Progress = lambda done, of: None,
) -> Backtest:
    """Evaluate the span with the settings in force, and beside them with those that are tried."""
    every = in_force.drift.evaluate_every
    until = past.evaluations_between(c, span.warm_from, span.end)
    # While windows waited for a late partition nothing was kept, and nothing was to be seen.
    pause = in_force.drift.wait_for_late + 2 * every
    times = moments(until, span.warm_from, span.end, every, pause)
    trials = [Trial(settings=in_force), *([tried] if tried else [])]
    longest = max(max(one.settings.drift.windows.values()) for one in trials)
    held = Past(c, in_force.drift.bucket, longest, until)
    runs = [_Run(one, held, span.warm_from) for one in trials]
    # Rules change nothing of what is seen: one look serves both.
    shared = len(runs) > 1 and runs[0].measures == runs[1].measures
    for done, now in enumerate(times):
        seen = runs[0].look(now)
        runs[0].conclude(seen)
        for run in runs[1:]:
            run.conclude(seen if shared else run.look(now))
        progress(done + 1, len(times))
    rules = {rule.name for one in trials for rule in one.settings.drift.silence_rules}
    told = [
        Told(name=name, alerts=_raised(run.ledger.raised.values(), run.ledger.fired, span))
        for name, run in zip(("in force", "tried"), runs, strict=False)
    ]
    return Backtest(
        span=span,
        evaluations=sum(moment >= span.start for moment in times),
        in_force=told[0],
        candidate=told[1] if tried else None,
        recorded=Told(
            name="recorded", alerts=_raised(past.fired_between(c, span.start, span.end), {}, span)
        ),
        not_replayed=tuple(name for name in NOT_REPLAYED if name in rules),
    )


class _Run:
    """One set of settings on its way through the span."""

    def __init__(self, tried: Trial, held: Past, since: datetime) -> None:
        self.ledger = Replayed(held, tried.baseline)
        drift = tried.settings.drift
        kept = tuple(rule for rule in drift.silence_rules if rule.name not in NOT_REPLAYED)
        self._settings = tried.settings.model_copy(
            update={"drift": drift.model_copy(update={"silence_rules": kept})}
        )
        self._since = since
        self._bets: Mapping[str, Bets] = {}
        self.measures = (
            drift.model_copy(update={"rules": (), "silence_rules": ()}),
            tried.settings.identity.model_copy(update={"rule": None}),
            tried.settings.twin.model_copy(update={"rule": None}),
            tried.baseline.baseline_id if tried.baseline else None,
        )
        """All that decides what is seen, before any rule is asked."""

    def look(self, now: datetime) -> Any:
        seen, self._bets = look(self.ledger, self._settings, now, self._bets)
        return seen

    def conclude(self, seen: Any) -> None:
        conclude(self.ledger, self._settings, seen, self._since)


def _raised(alerts: Iterable[Alert], fired: Mapping[str, Fired], span: Span) -> tuple[Raised, ...]:
    """Those that fired within the span or before it and had not ended then, in the order of their firing."""
    found = []
    for one in alerts:
        if one.fired_at is None or one.fired_at >= span.end or one.rule in NOT_REPLAYED:
            continue
        ended = one.ended_at if one.ended_at is None or one.ended_at < span.end else None
        if ended is not None and ended < span.start:
            continue
        first = fired.get(one.alert_id)
        when_fired = one.details.get("when_fired", {})
        found.append(
            Raised(
                alert_id=one.alert_id,
                dedupe_key=one.dedupe_key,
                kind=one.labels.get("kind", one.kind),
                rule=one.rule,
                severity=one.severity,
                feature=one.labels.get("feature"),
                segment=one.labels.get("segment"),
                fired_at=one.fired_at,
                ended_at=ended,
                state=one.state.value if ended == one.ended_at else "firing",
                announced=one.sequence,
                cause=first.cause if first else one.details.get("cause"),
                summary=first.summary if first else str(when_fired.get("summary", one.summary)),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.fired_at, one.dedupe_key)))


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _length(length: timedelta) -> str:
    hours = length.total_seconds() / 3_600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} h"
