"""The consumer: a thread of its own reads ahead into a bounded queue of chunks.

The thread connects, lets `Member` read for as long as that lasts, and connects again; what refuses us for
good ends it. It goes on polling whatever the worker does, so a chunk may take longer than the poll interval
without costing the membership.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from monitor.errors import BrokerUnavailable, ConfigurationError, MonitorError
from monitor.ingest.kafka import connection
from monitor.ingest.kafka.group import JOIN_POLL_SECONDS
from monitor.ingest.kafka.holdings import Holdings
from monitor.ingest.kafka.member import COMMIT_SECONDS, Member, Stalled
from monitor.ingest.kafka.options import consumer_options, refusal
from monitor.ingest.kafka.placing import ReadingPoints
from monitor.logs import Once, get_logger
from monitor.settings import IngestSettings, KafkaSettings
from monitor.values.progress import LogEnd
from monitor.values.prompts import Chunk, OffsetSpan
from monitor.values.reading import Partition

log = get_logger(__name__)

RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 5.0
"""Rest before connecting again, twice as long after each failure: brokers log every attempt, too."""
REFUSALS: Final = 3
"""Refusals that end a source which has worked before: the first may be a secret being rotated."""
SETTLED_SECONDS: Final = 60.0
"""A connection that lasted this long makes earlier refusals forgotten."""
SAY_SECONDS: Final = 60.0
"""How often a problem that lasts is logged."""
NOT_YET: Final = "not connected yet"
LEAVE_SECONDS: Final = JOIN_POLL_SECONDS + COMMIT_SECONDS + connection.LEAVE_MS / 1_000
"""Enough to end a poll, commit and leave the group where the broker answers; then the line is cut. Cut sooner, a
member is left in the group, and its partitions wait for the session's timeout."""
CLOSE_SECONDS: Final = 5.0


class KafkaSource:
    """A member of the consumer group; a context manager.

    ``points`` is asked where to read from, and told where topics and partitions begin that the store does
    not know (see `reading_points`), before anything is read of them. It is called from the source's own
    thread and may raise `Retry`, which is waited out. Records that hold halves which still wait are read
    again (`Chunk.recalled`).

    Chunks come with contiguous spans per partition. All methods may be called from any thread.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        ingest: IngestSettings,
        points: ReadingPoints,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        consumer_options(settings)  # refuses what is wrong before anything is started
        self._settings = settings
        self._holdings = Holdings(ingest)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-source", daemon=True)
        # Written by the thread alone, read by all.
        self._failure: BaseException | None = None
        self._problem = NOT_YET
        self._once = Once(SAY_SECONDS)
        self._connected = False
        self._line = connection.Line()
        self._member = Member(settings, points, self._holdings, self._stop, self._say, clock)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- what the worker calls -----------------------------------------------------------------

    def poll(self, timeout_seconds: float) -> Chunk | None:
        """The next chunk, or None when none came in time.

        A chunk may hold spans without records. A broker that is away is waited out (see
        `problem`). Raises `ConfigurationError` when the cluster refuses us or a topic is unknown,
        `StopLoudly` when the log no longer reaches up to the stored offset; after that the source
        is dead.
        """
        chunk = self._holdings.take_chunk(timeout_seconds, lambda: self._failure is not None)
        if chunk is None and self._failure:
            raise self._failure
        return chunk

    def commit(self, spans: Collection[OffsetSpan]) -> None:
        """Tell Kafka, later and at best effort, that the store holds these spans."""
        self._holdings.store_holds(spans)

    def rewind(self) -> None:
        """Drop all that is buffered and read every partition again from where the store wants it.

        Returns at once; spans handed out before are revoked.
        """
        self._holdings.rewind()

    def is_revoked(self, span: OffsetSpan) -> bool:
        """Whether the span's partition was taken away, or is read again, since it was handed out."""
        return self._holdings.is_revoked(span)

    def assigned(self) -> frozenset[Partition]:
        """The (topic, partition) pairs that this member owns now."""
        return self._holdings.assigned()

    def lag(self) -> dict[Partition, int]:
        """Records between what is committed (else where reading began) and the log's end.

        As last told by the broker, which is asked on a schedule (see `ends`), whatever is paused.
        """
        return self._holdings.lag()

    def log_ends(self) -> tuple[LogEnd, ...]:
        """What the broker answered when it was last asked for the ends of the logs that are read."""
        return self._holdings.log_ends()

    @property
    def gaps(self) -> dict[Partition, int]:
        """Offsets per partition that retention removed before they were read."""
        return self._holdings.gaps()

    @property
    def problem(self) -> str:
        """What keeps the source from connecting or from beginning to read; empty when nothing does.

        A broker that goes away later is waited for by the client library, which logs it.
        """
        return self._problem

    def remarks(self) -> tuple[str, ...]:
        """Sentences about what is wrong with what is read, for the page."""
        problem = self._problem
        said = (f"Kafka: {problem}",) if problem not in ("", NOT_YET) else ()
        return (*said, *self._member.remarks())

    def close(self) -> None:
        """Commit what was told, leave the group, end the thread: within a second or two where the broker answers.

        A line that does not answer is cut after `LEAVE_SECONDS`. A thread that the store does not answer is left behind after `CLOSE_SECONDS`.
        """
        self._stop.set()
        self._holdings.wake()
        if self._thread.ident is None:
            return
        if self._connected:
            self._thread.join(LEAVE_SECONDS)
        self._line.cut_until_ended(self._thread, CLOSE_SECONDS)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        refusals, connected_at, rest = 0, None, RETRY_SECONDS
        while not self._stop.is_set():
            consumer: KafkaConsumer | None = None
            try:
                consumer = connection.connect(self._settings, self._line)
                connected_at, rest = time.monotonic(), RETRY_SECONDS
                self._connected = True
                self._say("")
                self._member.read(consumer)
            except (BrokerUnavailable, KafkaError, ConfigurationError) as error:
                refused = refusal(error, self._settings)
                if connected_at and consumer and time.monotonic() - connected_at > SETTLED_SECONDS:
                    refusals = 0
                refusals += refused is not None
                if refused and (connected_at is None or refusals >= REFUSALS):
                    return self._fail(refused)
                self._say(str(error))
            except Stalled as error:
                log.warning("kafka.new_consumer", reason=str(error))
            except struct.error as error:
                # A foreign member that leads the group may assign nothing, or bytes of its own, to us.
                self._say(f"what the group's leader assigned cannot be read: {error}")
            except BaseException as error:
                return self._fail(error)
            finally:
                if consumer is not None:
                    connection.close(consumer)
                self._connected = False
                self._holdings.lose_all()
            self._stop.wait(rest)
            rest = min(2 * rest, LONGEST_RETRY_SECONDS)

    # --- reports -------------------------------------------------------------------------------

    def _say(self, problem: str) -> None:
        self._problem = problem
        if problem and self._once.may_say(problem, time.monotonic()):
            log.warning("kafka.waiting", problem=problem)

    def _fail(self, error: BaseException) -> None:
        self._failure, self._problem = error, str(error)
        self._holdings.wake()
        if not isinstance(error, MonitorError):
            log.error("kafka.thread_failed", exc_info=error)
