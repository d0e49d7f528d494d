"""The worker's first stage: a chunk is polled, parsed, joined, sampled and tokenised."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from monitor.canaries import Replay
from monitor.ingest.joining import Joined, Joins
from monitor.ingest.watermarks import newest_records
from monitor.metrics import METRICS
from monitor.outcomes import read, without_own
from monitor.settings import IngestSettings
from monitor.twinning import Twinning
from monitor.unanswered import Unanswered
from monitor.values.progress import LogEnd
from monitor.values.prompts import Chunk, DeadLetter, OffsetSpan, Prompt, RecordKey, Skip
from monitor.weighing import Weighing

POLL_SECONDS = 0.5


class Source(Protocol):
    """Where chunks come from; `monitor.ingest.kafka.KafkaSource` in production."""

    def poll(self, timeout_seconds: float) -> Chunk | None: ...
    def commit(self, spans: Sequence[OffsetSpan]) -> None: ...
    def rewind(self) -> None: ...
    def log_ends(self) -> Sequence[LogEnd]: ...
    def assigned(self) -> Collection[tuple[str, int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A chunk that is parsed, sampled and tokenised, and waits for the model."""

    chunk: Chunk
    watermarks: Mapping[tuple[str, int], datetime]
    tokenised: Any
    dead: tuple[DeadLetter, ...]
    skipped: tuple[Skip, ...]
    waiting: tuple[RecordKey, ...]
    settled: tuple[RecordKey, ...]


class Fetching:
    """Takes chunks from the source, one after the other; keeps the parts that wait for their rest."""

    def __init__(
        self,
        source: Source,
        replay: Replay,
        ingest: IngestSettings,
        unanswered: Unanswered,
        weighing: Weighing,
        twinning: Twinning,
        *,
        beat: Callable[[], None],
        patiently: Callable[[Callable[[], None]], None],
        clock: Callable[[], datetime],
        own: Collection[str] = frozenset(),
    ) -> None:
        """``own`` are the monitor's questions to the served endpoint, which a log may hold too."""
        self._source = source
        self._replay = replay
        self._ingest = ingest
        self._unanswered = unanswered
        self._weighing = weighing
        self._twinning = twinning
        self._beat = beat
        self._patiently = patiently
        self._clock = clock
        self._own = own
        self._joins = Joins(ingest)

    def fetch(self) -> Prepared | None:
        """The next chunk, ready for the model; None when none came within `POLL_SECONDS`.

        Waits while the schema registry is away. Without a chunk there may still be parts that have waited long enough: a chunk of no offsets.
        """
        started = time.monotonic()
        chunk = self._source.poll(POLL_SECONDS)
        self._beat()
        if chunk is None and not self._joins.waits:
            return None
        METRICS.chunk_seconds.labels(stage="fetch").observe(time.monotonic() - started)
        started = time.monotonic()
        joined = self._read(chunk or Chunk(records=(), spans=()))
        if chunk is None and not joined.outcomes:
            return None
        prepared = self._prepared(chunk or Chunk(records=(), spans=()), joined)
        METRICS.chunk_seconds.labels(stage="prepare").observe(time.monotonic() - started)
        return prepared

    def start_over(self) -> None:
        """Drop all that is buffered, here and at the source; what the store holds is read again."""
        self._joins.clear()
        self._source.rewind()

    def _read(self, chunk: Chunk) -> Joined:
        found: list[Joined] = []

        def read_once() -> None:
            joined = self._joins.read(
                chunk,
                now=self._clock(),
                ends=self._source.log_ends(),
                assigned=self._source.assigned(),
            )
            found.append(joined)

        self._patiently(read_once)
        METRICS.halves_waiting.set(self._joins.waits)
        return found[0]

    def _prepared(self, chunk: Chunk, joined: Joined) -> Prepared:
        outcomes = [
            without_own(read(parsed, self._ingest), self._own) for parsed in joined.outcomes
        ]
        wanted = self._unanswered.wanted([one for one in outcomes if isinstance(one, Prompt)])
        skipped = tuple(outcome for outcome in outcomes if isinstance(outcome, Skip))
        return Prepared(
            chunk=chunk,
            watermarks=newest_records(chunk.records, joined.read),
            tokenised=self._replay.prepare(
                wanted.prompts,
                wanted.own_answers,
                self._weighing.laws(wanted.prompts),
                self._twinning.asked(wanted.prompts),
            ),
            dead=tuple(outcome for outcome in outcomes if isinstance(outcome, DeadLetter)),
            skipped=(*skipped, *wanted.skipped),
            waiting=joined.waiting,
            settled=joined.settled,
        )
