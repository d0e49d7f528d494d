"""The watcher loop: closed buckets → windows against the approved baseline → drift → alert + outbox row.

One evaluation (evaluation.py) is one transaction: drift history, detector states, alerts and what is
announced about them are stored together or not at all. A watcher killed anywhere has announced a
step once or not yet, and its successor goes on from the stored state.

Every replica may run a watcher; one leads, by a lease in the store, and the others stand by. A lease ends
by itself, and a watcher that lost it without noticing (it stood still, or the database was away) stores
nothing more: every job's transaction is held to the lease's token.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Final, get_args

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import Connection, Engine

from monitor.alert.judged import ALLOW, require_judged
from monitor.alert.selection import Blind, blind
from monitor.drift.baseline import levels_not_watched, tails_not_known, unwatched
from monitor.drift.bets import Bets
from monitor.errors import Discard, RefuseToStart, Retry, StopLoudly
from monitor.evaluation import Evaluation, evaluate
from monitor.heartbeat import Heartbeat
from monitor.leading import LEASE, Leader
from monitor.ledger import Ledger
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import Settings
from monitor.store.buckets import roll_up
from monitor.store.clock import DatabaseClock, machine_time
from monitor.store.partitions import (
    PARTITIONED,
    PartitionedTable,
    drop_partitions,
    ensure_partitions,
    mend_kept_from,
)
from monitor.values.alerts import Severity
from monitor.values.drift import Drift
from monitor.values.presence import live
from monitor.values.prompts import EVERYTHING
from monitor.vouching import Examined

log = get_logger(__name__)

HOUSEKEEPING: Final = timedelta(hours=1)
LONGEST_TAKE_OVER: Final = timedelta(seconds=5)
"""How often those who stand by try to lead."""


class Watcher:
    """Compares windows with the approved baseline. ``step`` is one evaluation, ``run`` the whole loop.

    ``clock`` is the database's unless given; ``machine_clock`` is compared with it, and decides nothing
    but whether this process may lead.
    """

    def __init__(
        self,
        database: Engine,
        settings: Settings,
        *,
        clock: Callable[[], datetime] | None = None,
        machine_clock: Callable[[], datetime] = machine_time,
        heartbeat: Heartbeat | None = None,
        lease: timedelta = LEASE,
    ) -> None:
        self._database = database
        self._settings = settings
        time = DatabaseClock(database, machine=machine_clock)
        self._clock = clock or time
        self._leader = Leader(
            database, time, tolerance=settings.drift.clock_tolerance, length=lease
        )
        self._heartbeat = heartbeat
        self._watching_since: datetime | None = None
        self._bets: dict[str, Bets] = {}
        self._shown: set[tuple[str, str, str]] = set()
        self._warned: set[Blind | tuple[str, str]] = set()
        self._failure: Exception | None = None
        self._in_hand: set[str] = set()

    @property
    def problem(self) -> str:
        """Why this process may not lead, in a sentence; empty when it may."""
        return self._leader.problem

    # --- the loop --------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Lead or stand by until ``stop``; the jobs in hand are finished.

        Raises what a job found that must stop the process (`StopLoudly`, `RefuseToStart`).
        """
        patience = min(self._settings.drift.evaluate_every, LONGEST_TAKE_OVER).total_seconds()
        while not stop.is_set() and self._failure is None:
            try:
                if self._leader.take():
                    self._lead(stop)
            except Retry as error:
                METRICS.retries.labels(dependency="database").inc()
                log.warning("watcher.waiting_for_database", error=str(error))
            except Discard as error:
                log.info("watcher.take_over_discarded", reason=str(error))
            METRICS.watcher_active.set(0)
            self._beat()
            if self._failure is None:
                stop.wait(patience)
        if self._heartbeat:
            self._heartbeat.retire("watcher")
        if self._failure is not None:
            raise self._failure

    def _lead(self, stop: threading.Event) -> None:
        """Run the jobs until ``stop``, a lost lease, or a failure that must stop the process."""
        METRICS.watcher_active.set(1)
        log.info("watcher.leads", holder=self._leader.holder)
        scheduler = self._schedule()
        try:
            # Before anything is evaluated: under a border in the future windows come out short.
            with self._leader.transaction() as c:
                mend_kept_from(c, self._settings.postgres, self._clock())
            scheduler.start()
            while not stop.wait(self._leader.renew_every) and self._failure is None:
                self._beat()
                if not self._leader.keep():
                    break
        finally:
            if scheduler.running:
                scheduler.shutdown(wait=True)
            METRICS.delay.clear()
            with suppress(Retry):
                self._leader.give_back()

    def _schedule(self) -> BackgroundScheduler:
        drift = self._settings.drift
        scheduler = BackgroundScheduler(
            timezone=UTC,
            # However late a job is, it runs, once: there is always something to catch up with.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for name, every, job in (
            ("keep_house", HOUSEKEEPING, self.keep_house),
            ("roll_up", drift.rollup_every, self.roll_up),
            ("evaluate", drift.evaluate_every, self.step),
        ):
            scheduler.add_job(
                self._guarded,
                IntervalTrigger(seconds=every.total_seconds(), timezone=UTC),
                args=(name, job),
                id=name,
                next_run_time=datetime.now(UTC),  # the scheduler's own clock: at once
            )
        return scheduler

    def _guarded(self, name: str, job: Callable[[], object]) -> None:
        """Run a job; what becomes of its failure is said by the branch of the error tree."""
        self._in_hand.add(name)
        try:
            job()
        except Discard as error:
            log.info("watcher.job_discarded", job=name, reason=str(error))
        except Retry as error:
            METRICS.retries.labels(dependency="database").inc()
            log.warning("watcher.job_put_off", job=name, error=str(error))
        except (StopLoudly, RefuseToStart) as error:
            METRICS.job_failures.labels(job=name).inc()
            self._failure = error
        except Exception:
            # A defect in one job must not end the others, nor the worker beside us.
            METRICS.job_failures.labels(job=name).inc()
            log.exception("watcher.job_failed", job=name)
        finally:
            self._in_hand.discard(name)

    def _beat(self) -> None:
        """Say that the loop lives; a job that hangs keeps it from being said."""
        if self._heartbeat and not self._in_hand:
            self._heartbeat.beat("watcher")

    # --- the jobs --------------------------------------------------------------------------------

    def step(self) -> Evaluation:
        """One evaluation of everything, in one transaction.

        Raises `DatabaseUnavailable` and, when another watcher leads or was faster, `StaleLease` or
        `StaleAlert`: nothing was stored then.
        """
        now = self._clock()
        self._watching_since = self._watching_since or now
        begun = perf_counter()
        with self._leader.transaction(worked=True) as c:
            done, self._bets = evaluate(
                Ledger(c), self._settings, now, self._watching_since, self._bets
            )
            allowed = self._require_judged(done)
        seconds = perf_counter() - begun
        METRICS.evaluation_seconds.observe(seconds)
        self._warn(done, allowed)
        self._tell(done, seconds)
        return done

    def roll_up(self) -> int:
        """Bring the hourly buckets up to date; the number of hours written."""
        written = 0
        while True:
            with self._leader.transaction() as c:
                some = roll_up(c, self._clock())
            if not some:
                return written
            written += some

    def keep_house(self) -> None:
        """Make the partitions that are needed soon, drop those that are too old."""
        now, postgres = self._clock(), self._settings.postgres
        made = self._each_table(
            lambda c, table: ensure_partitions(
                c, now.date(), postgres.partitions_ahead_days, only=table
            )
        )
        self.roll_up()
        with self._leader.transaction() as c:
            mend_kept_from(c, postgres, now)
        dropped = self._each_table(lambda c, table: drop_partitions(c, postgres, now, only=table))
        if made or dropped:
            log.info("watcher.partitions", made=made, dropped=dropped)

    def _each_table(
        self, change: Callable[[Connection, PartitionedTable], Sequence[str]]
    ) -> list[str]:
        """``change`` in a transaction for each table: it locks out all others, and one that cannot be had
        must not keep the rest waiting, nor wait for a writer who waits for it."""
        done: list[str] = []
        put_off: Retry | None = None
        for parent in PARTITIONED:
            try:
                with self._leader.transaction() as c:
                    done += change(c, parent.table)
            except Retry as error:
                put_off = error
                log.warning("watcher.table_is_in_use", table=parent.table, error=str(error))
        if put_off is not None:
            raise put_off
        return done

    # --- telling ---------------------------------------------------------------------------------

    def _require_judged(self, done: Evaluation) -> list[tuple[str, str]]:
        """The names of live packs with what is not shown of them and is allowed; see `require_judged`."""
        names = {pack.pack_id: pack.name for pack in live(done.presence)}
        found = []
        for pack in done.packs:
            if name := names.get(pack.subject.pack_id):
                features = pack.subject.features
                known = {one.name: one.verdict for one in features if one.verdict}
                told = require_judged(self._settings, name, features, known)
                found += [(name, sentence) for sentence in told]
        return found

    def _warn(self, done: Evaluation, allowed: Sequence[tuple[str, str]]) -> None:
        """Once for each rule that can select nothing or pages on what is not shown, as soon as it is known."""
        for name, sentence in allowed:
            if (name, sentence) not in self._warned:
                self._warned.add((name, sentence))
                log.warning("pack.not_judged", pack=name, effect=sentence, allowed_by=ALLOW)
        features = [feature for pack in done.packs for feature in pack.subject.features]
        for one in blind(self._settings, features or None):
            if one not in self._warned:
                self._warned.add(one)
                log.warning("rule.selects_nothing", where=one.where, why=one.why, mend=one.mend)

    def _tell(self, done: Evaluation, seconds: float) -> None:
        """Metrics, one log event per announcement, and one canonical one per window."""
        self._tell_delay(done)
        firing = Counter(alert.severity for alert in done.firing)
        for severity in get_args(Severity):
            METRICS.alerts_open.labels(severity=severity).set(firing[severity])
        for event in done.events:
            METRICS.alert_events.labels(type=event.type).inc()
            log.info(
                "alert.announced",
                type=event.type,
                event_id=event.event_id,
                alert_id=event.alert_id,
                severity=event.alert.severity,
                summary=event.alert.summary,
            )
        METRICS.packs_live.set(len(live(done.presence)))
        self._show_drift(done.drifts)
        for pack in done.packs:
            for name in self._settings.drift.windows:
                self._tell_window(name, pack, done, seconds)

    def _tell_delay(self, done: Evaluation) -> None:
        METRICS.delay.clear()
        for one in done.ingest.health.progress:
            delay = one.delay(done.at)
            if delay is not None:
                labels = {"topic": one.topic, "partition": str(one.partition)}
                METRICS.delay.labels(**labels).set(delay)
        METRICS.evaluation_behind.set(done.reach.behind.total_seconds())

    def _show_drift(self, drifts: Sequence[Drift]) -> None:
        """The latest figures of segment ``all``; what is no longer compared is no longer shown."""
        shown = set()
        for drift in drifts:
            if drift.segment == EVERYTHING:
                labels = drift.pack_id, drift.feature, drift.window
                METRICS.drift_shift.labels(*labels).set(drift.shift.value)
                METRICS.drift_adjusted.labels(*labels).set(drift.adjusted)
                METRICS.drift_tail_ratio.labels(*labels).set(drift.tail_ratio.value)
                shown.add(labels)
        for labels in self._shown - shown:
            METRICS.drift_shift.remove(*labels)
            METRICS.drift_adjusted.remove(*labels)
            METRICS.drift_tail_ratio.remove(*labels)
        self._shown = shown

    def _tell_window(self, name: str, pack: Examined, done: Evaluation, seconds: float) -> None:
        drifts = [drift for drift in pack.drifts if drift.window == name]
        furthest = max(drifts, key=lambda drift: abs(drift.shift.value), default=None)
        baseline, features = pack.subject.baseline, pack.subject.features
        thin = unwatched(baseline, len(features)) if baseline else ()
        tailless = tails_not_known(baseline) if baseline else ()
        log.info(
            "window.evaluated",
            window=name,
            pack_id=pack.subject.pack_id,
            baseline_id=baseline.baseline_id if baseline else None,
            streams=len(drifts),
            prompts=max((drift.n for drift in drifts), default=0),
            cause=pack.cause.value,
            furthest=furthest.feature if furthest else None,
            furthest_segment=furthest.segment if furthest else None,
            shift=round(furthest.shift.value, 4) if furthest else None,
            unwatched=[features[index].name for index in thin],
            tails_not_known=[features[index].name for index in tailless],
            levels_not_watched={
                f"{share:g}": [features[index].name for index in few]
                for share, few in (levels_not_watched(baseline) if baseline else {}).items()
            },
            active=sum(condition.active for condition in done.conditions),
            announced=len(done.events),
            until=done.reach.until.isoformat(),
            late=done.reach.sentence or None,
            seconds=round(seconds, 3),
        )
