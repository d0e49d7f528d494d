"""The worker loop: Kafka → prompt → replay → scores → Postgres, then Kafka's own commit.

Three chunks are in flight: one is fetched, parsed and tokenised while the one before it runs through
the model and the one before that is stored. Only the store decides what is done: a chunk whose
offsets are not the next ones there raises `StaleChunk`, and everything in flight is dropped and read
again from the offsets that the store holds. So a crash anywhere loses nothing and repeats nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Protocol

import numpy as np
from sqlalchemy import Connection, Engine

from monitor.adjusting import GivenThePrompt
from monitor.canaries import Replay, canary_run
from monitor.drift.histogram import bucket_scores
from monitor.errors import (
    DatabaseUnavailable,
    MonitorError,
    RegistryUnavailable,
    ReplayUnavailable,
    Retry,
    StaleChunk,
    StopLoudly,
)
from monitor.fetching import Fetching, Prepared, Source
from monitor.heartbeat import Heartbeat
from monitor.ingest.letters import records_of, with_bytes
from monitor.logs import get_logger
from monitor.lookback import Lookback
from monitor.metrics import METRICS
from monitor.outcomes import count_outcomes, letter_of, nothing_to_read, scored_prompt
from monitor.patience import Patience
from monitor.progress import ProgressReport
from monitor.score.pack import Pack
from monitor.score.scorer import Scorer
from monitor.segments import Segments
from monitor.settings import Settings
from monitor.store.chunks import store_chunk
from monitor.store.clock import DatabaseClock
from monitor.store.database import transaction
from monitor.store.ingest import outcomes_between
from monitor.store.workers import heartbeat, record_canary_run
from monitor.twinning import Twinning
from monitor.unanswered import Unanswered
from monitor.values.arrays import Floats
from monitor.values.losses import SCORED, outcome_of
from monitor.values.prompts import DeadLetter, DeadReason, Skip
from monitor.values.questions import pool
from monitor.values.scores import ChunkResult, Replayed, ScoredPrompt, Unreplayable
from monitor.values.surprise import outcome_of_weighing
from monitor.values.twin import outcome_of_twin
from monitor.weighing import Weighing

log = get_logger(__name__)

_DEPENDENCIES = (
    (DatabaseUnavailable, "database"),
    (RegistryUnavailable, "registry"),
    (ReplayUnavailable, "replay"),
)
REMEMBERED = timedelta(hours=1)
PRESENCE_EVERY = timedelta(seconds=15)


class DeadLetterSink(Protocol):
    """Where dead letters are announced beside the table, which is the record of truth. Never raises."""

    def send(self, letters: Sequence[DeadLetter]) -> None: ...


class Worker:
    """Moves chunks from the source to the store; one per process.

    ``step`` handles one chunk from end to end; ``run`` overlaps the stages until ``stop`` is set, then
    finishes the chunk in the model, stores it, and returns. Raises `StopLoudly` when nearly all
    records are unreadable or give nothing to score, before the chunk that shows it is stored.
    """

    def __init__(
        self,
        *,
        source: Source,
        replay: Replay,
        pack: Pack,
        database: Engine,
        settings: Settings,
        hash_key: bytes,
        worker_id: str,
        dead_letters: DeadLetterSink | None = None,
        remarks: Callable[[], Sequence[str]] = tuple,
        heartbeat: Heartbeat | None = None,
        clock: Callable[[], datetime] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._source = source
        self._replay = replay
        self._pack = pack
        self._database = database
        self._settings = settings
        self._hash_key = hash_key
        self._worker_id = worker_id
        self._dead_letters = dead_letters
        self._remarks = remarks
        self._heartbeat = heartbeat or Heartbeat()
        self._clock = clock or DatabaseClock(database)
        self._jitter = jitter or random.Random()
        self._unanswered = Unanswered(settings.replay, pack.features)
        self._weighing = Weighing(settings)
        self._twinning = Twinning(settings, pack)
        self._fetching = Fetching(
            source,
            replay,
            settings.ingest,
            self._unanswered,
            self._weighing,
            self._twinning,
            beat=lambda: self._heartbeat.beat("worker"),
            patiently=self._patiently,
            clock=self._clock,
            own=frozenset(question.text for question in pool() if settings.server_canaries.on),
        )
        self._scorer = Scorer(pack)
        self._given = GivenThePrompt(pack.pack_id, pack.features, settings.drift)
        self._lineage = replay.lineage(pack.pack_id)
        self._segments = Segments(database, settings.kafka.group_id, settings.ingest)
        self._lookback = Lookback(settings.ingest)
        self._canaries_due = datetime.min.replace(tzinfo=UTC)
        self._presence_due = datetime.min.replace(tzinfo=UTC)
        self._stop = threading.Event()
        self._told_to_stop_at: float | None = None

    def step(self) -> bool:
        """Handle one chunk from poll to commit; False when there was nothing to do."""
        self._keep_watch()
        prepared = self._fetching.fetch()
        if prepared is None:
            return False
        try:
            self._store(self._measure(prepared))
        except StaleChunk as stale:
            self._start_over(stale)
        return True

    def run(self, stop: threading.Event) -> None:
        """Overlap fetching, replaying and storing until ``stop`` is set."""
        self._stop = stop
        with (
            ThreadPoolExecutor(1, "fetch") as fetching,
            ThreadPoolExecutor(1, "store") as storing,
            ProgressReport(
                self._source.log_ends,
                self._database,
                group_id=self._settings.kafka.group_id,
                worker_id=self._worker_id,
                clock=self._clock,
            ),
        ):
            try:
                self._patiently(self._remember)
                stored = self._flow(stop, fetching, storing)
                if stored:
                    stored.result()
                self._show_presence("stopped")
            except (StaleChunk, Retry) as error:
                # `_patiently` gives up only once it is told to stop: nothing is lost by leaving.
                log.warning("worker.last_chunk_not_stored", error=str(error), effect="read again")
            except StopLoudly:
                # Else it counts as alive for minutes, and what mends it is refused meanwhile.
                with suppress(MonitorError):
                    self._show_presence("stopped")
                raise

    def _flow(
        self, stop: threading.Event, fetching: ThreadPoolExecutor, storing: ThreadPoolExecutor
    ) -> Future[None] | None:
        """Move chunks until ``stop``; the last one may still be on its way to the store."""
        upcoming = fetching.submit(self._fetching.fetch)
        stored: Future[None] | None = None
        while not stop.is_set():
            prepared = upcoming.result()
            self._keep_watch()
            upcoming = fetching.submit(self._fetching.fetch)
            result = self._measure(prepared) if prepared else None
            try:
                if stored:
                    stored.result()
                stored = storing.submit(self._store, result) if result else None
            except StaleChunk as stale:
                stored = None
                upcoming.result()  # fetched from offsets that are no longer ours to trust
                self._start_over(stale)
                upcoming = fetching.submit(self._fetching.fetch)
        return stored

    # --- stages --------------------------------------------------------------------------------

    def _measure(self, prepared: Prepared) -> ChunkResult:
        started = time.monotonic()
        outcomes = [self._unanswered.read(one) for one in self._replayed(prepared)]
        self._heartbeat.beat("worker")
        replayed = [outcome for outcome in outcomes if isinstance(outcome, Replayed)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Unreplayable)]
        empty = [outcome for outcome in failed if outcome.reason is DeadReason.NO_TOKENS]
        skipped = (*prepared.skipped, *(nothing_to_read(outcome) for outcome in empty))
        dead = (*prepared.dead, *(letter_of(one) for one in failed if one not in empty))
        lost = chain[DeadLetter | Skip](skipped, dead)
        self._lookback.take([SCORED] * len(replayed) + [outcome_of(one) for one in lost])
        scored = self._weighing.read(replayed, self._given.adjusted(self._scored(replayed)))
        scored = self._twinning.read(replayed, scored)
        METRICS.chunk_seconds.labels(stage="replay").observe(time.monotonic() - started)
        return ChunkResult(
            group_id=self._settings.kafka.group_id,
            worker_id=self._worker_id,
            spans=prepared.chunk.spans,
            lineage=self._lineage,
            scored=scored,
            buckets=bucket_scores(scored, self._pack.features, bucket=self._settings.drift.bucket),
            adjusted_by=self._given.baseline_id,
            adjusted_buckets=self._given.buckets(scored),
            dead_letters=with_bytes(dead, records_of(prepared.chunk), self._settings.ingest),
            counts=count_outcomes(scored, dead, skipped, self._settings.drift.bucket),
            watermarks=prepared.watermarks,
            waiting=prepared.waiting,
            settled=prepared.settled,
            identity=self._weighing.buckets(scored),
            likenesses=self._weighing.likenesses(scored),
            laws=self._weighing.law_buckets(scored),
            twins=self._twinning.buckets(scored),
        )

    def _replayed(self, prepared: Prepared) -> Sequence[Replayed | Unreplayable]:
        """What the engine reads, waited for where it runs elsewhere and is away."""
        found: list[Replayed | Unreplayable] = []
        self._patiently(lambda: found.extend(self._replay.run(prepared.tokenised)))
        return found

    def _scored(self, replayed: Sequence[Replayed]) -> tuple[ScoredPrompt, ...]:
        if not replayed:
            return ()
        readings: Floats = np.array([outcome.readings for outcome in replayed])
        tokens = np.array([outcome.pooled_tokens for outcome in replayed])
        scores = self._scorer.score(readings, tokens)
        read = [outcome.prompt for outcome in replayed]
        self._patiently(lambda: self._segments.admit(read, self._clock()))
        return tuple(
            scored_prompt(
                outcome,
                row,
                self._segments.of(outcome.prompt),
                self._hash_key,
                self._settings.replay,
            )
            for outcome, row in zip(replayed, scores, strict=True)
        )

    def _store(self, result: ChunkResult) -> None:
        started = time.monotonic()
        if result.dead_letters and self._dead_letters:
            self._dead_letters.send(result.dead_letters)
        self._patiently(lambda: self._keep(result))
        self._source.commit(result.spans)
        seconds = time.monotonic() - started
        METRICS.chunk_seconds.labels(stage="store").observe(seconds)
        METRICS.prompts_scored.inc(len(result.scored))
        for prompt in result.scored:
            if prompt.fidelity is not None:
                METRICS.replays_compared.labels(verdict=prompt.fidelity.verdict).inc()
            if prompt.weighed is not None:
                METRICS.answers_weighed.labels(outcome=outcome_of_weighing(prompt.weighed)).inc()
            if prompt.twin is not None:
                METRICS.twins.labels(outcome=outcome_of_twin(prompt.twin)).inc()
            for field in prompt.left_out:
                METRICS.fields_left_out.labels(field=field).inc()
        for letter in result.dead_letters:
            METRICS.dead_letters.labels(reason=letter.reason.value).inc()
        for count in result.counts:
            METRICS.records.labels(outcome=count.outcome.partition(":")[0]).inc(count.n)
        log.info(
            "chunk.stored",
            spans=[f"{s.topic}/{s.partition}:{s.start}-{s.end}" for s in result.spans],
            scored=len(result.scored),
            dead=len(result.dead_letters),
            store_seconds=round(seconds, 4),
        )

    def _keep(self, result: ChunkResult) -> None:
        with transaction(self._database) as connection:
            store_chunk(connection, result)

    # --- what can go wrong ---------------------------------------------------------------------

    def _patiently(self, action: Callable[[], None]) -> None:
        """Repeat ``action`` while its cause is outside and passes; once told to stop, not for long.

        Raises `Retry` half the grace period after the stop.
        """
        Patience().until_done(
            action,
            passing=Retry,
            told=self._waiting,
            rest=self._rest,
            give_up=self._out_of_grace,
            chance=self._jitter,
        )

    def _waiting(self, error: Exception, seconds: float) -> None:
        kind = next((name for of, name in _DEPENDENCIES if isinstance(error, of)), "broker")
        METRICS.retries.labels(dependency=kind).inc()
        log.warning("worker.waiting", dependency=kind, error=str(error), seconds=seconds)

    def _rest(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            time.sleep(0.5)
        self._heartbeat.beat("worker")

    def _out_of_grace(self) -> bool:
        if not self._stop.is_set():
            return False
        self._told_to_stop_at = self._told_to_stop_at or time.monotonic()
        grace = self._settings.shutdown_grace.total_seconds()
        return time.monotonic() - self._told_to_stop_at > grace / 2

    def _start_over(self, stale: StaleChunk) -> None:
        METRICS.stale_chunks.inc()
        log.warning("chunk.discarded", reason=str(stale), effect="read again from stored offsets")
        self._fetching.start_over()

    # --- presence and canaries -----------------------------------------------------------------

    def _keep_watch(self) -> None:
        """Replay the canaries and show presence in the store when they are due."""
        now = self._clock()
        if now >= self._canaries_due and self._pack.canaries:
            self._canaries_due = now + self._settings.pack.canary_interval
            self._patiently(self._check_canaries)
        if now >= self._presence_due:
            self._presence_due = now + PRESENCE_EVERY
            self._patiently(self._show_presence)

    def _check_canaries(self) -> None:
        run = canary_run(
            self._pack,
            self._replay,
            worker_id=self._worker_id,
            tolerance=self._settings.pack.canary_tolerance,
            now=self._clock(),
        )
        METRICS.canary_deviation.set(run.largest_deviation)
        METRICS.canary_reproduced.set(float(run.reproduced))
        level = log.info if run.reproduced else log.error
        level(
            "canaries.replayed", reproduced=run.reproduced, largest_deviation=run.largest_deviation
        )
        with transaction(self._database) as connection:
            record_canary_run(connection, run)

    def _remember(self) -> None:
        """Begin with what became of the last hour's records, for a restart must not forget a bad deploy, and with
        the baseline in force: the first chunk is prepared before presence is shown."""
        now = self._clock()
        with transaction(self._database) as connection:
            outcomes = outcomes_between(
                connection, now - REMEMBERED, now, group_id=self._settings.kafka.group_id
            )
            self._look(connection)
        self._lookback.remember(outcomes)

    def _show_presence(self, state: str = "running") -> None:
        with transaction(self._database) as connection:
            heartbeat(
                connection,
                worker_id=self._worker_id,
                group_id=self._settings.kafka.group_id,
                pack_id=self._pack.pack_id,
                state=state,
                at=self._clock(),
                remarks=self._remarks() if state == "running" else (),
            )
            self._look(connection)

    def _look(self, connection: Connection) -> None:
        """Adjust and weigh by the baseline that is approved now, from here on."""
        if self._weighing.look(connection, self._pack.pack_id):
            log.info("answers.weighed_by_baseline", told=self._weighing.told)
        if self._given.look(connection):
            log.info("scores.adjusted", baseline_id=self._given.baseline_id)
