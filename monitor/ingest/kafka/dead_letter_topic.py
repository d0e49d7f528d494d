"""The dead-letter topic as the worker sees it: told at once while it is there, later when it is not.

The table holds every dead letter, so a topic that is away, refuses us or is slow costs the worker its
patience once. From then on a thread tries again, and what came meanwhile waits in memory, within bounds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice
from types import TracebackType
from typing import Final, Self

from monitor.errors import MonitorError
from monitor.ingest.kafka.connection import Line
from monitor.ingest.kafka.dead_letters import MAX_CONTENT_BYTES, DeadLetterProducer
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import KafkaSettings
from monitor.values.prompts import DeadLetter

log = get_logger(__name__)

PATIENCE_SECONDS: Final = 15.0
"""How long a chunk waits for the topic before it counts as away: a broker restarts in less."""
FIRST_REST_SECONDS: Final = 1.0
LONGEST_REST_SECONDS: Final = 60.0
MOST_LETTERS: Final = 10_000
MOST_BYTES: Final = 32 * 1024 * 1024
"""What waits for a topic that is away; beyond it the oldest are in the table alone."""
TOLD_TOGETHER: Final = 500
CLOSE_SECONDS: Final = 3.0


class DeadLetterTopic:
    """Announces dead letters, at least once while the topic is there; a context manager with a thread."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._line = Line()
        self._producer = DeadLetterProducer(settings, self._line)
        self._topic = settings.dead_letter_topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-dead-letters", daemon=True)
        self._changed = threading.Condition()
        # Guarded by _changed from here on.
        self._waiting: deque[DeadLetter] = deque()
        self._bytes = 0
        self._taken = 0
        """Letters that were ever given to us …"""
        self._done = 0
        """… and those of them, the oldest, that were told or given up."""
        self._problem = ""

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

    @property
    def problem(self) -> str:
        """Why the topic is not told now, and what mends it; empty while it is."""
        with self._changed:
            return self._problem

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Tell the topic, and wait until it has them; never raises.

        Waits for `PATIENCE_SECONDS` at most, and not at all while the topic is away.
        """
        if not letters:
            return
        with self._changed:
            for letter in letters:
                self._keep(letter)
            goal = self._taken
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._done >= goal or self._problem or self._stop.is_set(), PATIENCE_SECONDS
            )
            if self._done < goal and not self._problem and not self._stop.is_set():
                self._away(f"it did not take records within {PATIENCE_SECONDS:.0f} s")

    def close(self) -> None:
        """End the thread within a few seconds; what still waits stays in the table alone."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._line.cut_until_ended(self._thread, CLOSE_SECONDS)
        with self._changed:
            if self._waiting:
                log.warning("dead_letters.not_announced", n=len(self._waiting), kept="in the table")
                self._give_up(len(self._waiting))

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        rest = FIRST_REST_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                if self._stop.is_set():
                    return self._producer.close()
                batch = list(islice(self._waiting, TOLD_TOGETHER))
                first = self._done
            try:
                self._producer.send(batch)
            except MonitorError as error:
                mend = f" {error.hint}" if error.hint else ""
                with self._changed:
                    self._away(f"{error}.{mend}")
            except Exception as error:
                # A defect here must not end the scoring: the table has the letters.
                log.exception("dead_letters.failed")
                with self._changed:
                    self._away(f"{type(error).__name__}: {error}")
            else:
                rest = FIRST_REST_SECONDS
                self._told(first + len(batch))
                continue
            self._stop.wait(rest)
            rest = min(2 * rest, LONGEST_REST_SECONDS)

    def _told(self, up_to: int) -> None:
        """The letters up to that number have arrived; some of them may have been given up meanwhile."""
        with self._changed:
            for _ in range(max(0, up_to - self._done)):
                self._drop_oldest()
            METRICS.dead_letters_waiting.set(len(self._waiting))
            if self._problem and not self._waiting:
                self._problem = ""
                log.info("dead_letters.topic_is_back", topic=self._topic)
            self._changed.notify_all()

    # --- under the lock ------------------------------------------------------------------------

    def _keep(self, letter: DeadLetter) -> None:
        self._waiting.append(letter)
        self._taken += 1
        self._bytes += _size(letter)
        while len(self._waiting) > MOST_LETTERS or self._bytes > MOST_BYTES:
            self._give_up(1)
        METRICS.dead_letters_waiting.set(len(self._waiting))

    def _give_up(self, count: int) -> None:
        for _ in range(count):
            self._drop_oldest()
        METRICS.dead_letters_untold.inc(count)

    def _drop_oldest(self) -> None:
        self._bytes -= _size(self._waiting.popleft())
        self._done += 1

    def _away(self, why: str) -> None:
        said, self._problem = (
            self._problem,
            f"The dead-letter topic {self._topic} is not told, the table has all dead letters: {why}",
        )
        if said != self._problem:
            log.error("dead_letters.topic_is_away", problem=self._problem)
        self._changed.notify_all()


def _size(letter: DeadLetter) -> int:
    content = letter.content
    return len(content) if content is not None and len(content) <= MAX_CONTENT_BYTES else 0
