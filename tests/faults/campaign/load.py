"""What is sent to the topic, and where each record came to lie."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError

from tests.faults.campaign.actors import SHIFTED

PARTITIONS: Final = 4
PHASE_SECONDS: Final = 8.0
"""Quiet traffic for so long, then shifted traffic, and so on: alerts begin and end."""
ROUTES: Final = ("chat", "code", "help")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    record_id: str
    valid: bool


class Load:
    """Sends from a thread until the end of ``with``; every seventh record cannot be read.

    ``sent`` knows each record by its partition and offset, as the broker acknowledged it.
    """

    def __init__(self, bootstrap: str, topic: str, *, per_second: float) -> None:
        self.sent: dict[tuple[int, int], Sent] = {}
        self.unknown: list[str] = []
        """What was never acknowledged: nobody knows whether it is on the topic."""
        self._topic = topic
        self._pause = 1.0 / per_second
        self._stop, self._goes, self._shifts = (threading.Event() for _ in range(3))
        self._resting = threading.Event()
        self._goes.set()
        self._number = 0
        self._next: Counter[int] = Counter()
        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0)
        self._thread = threading.Thread(target=self._send_all, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._goes.set()
        self._thread.join(30)
        self._producer.close(timeout=5)

    def shift(self) -> None:
        """From now on every other phase is shifted."""
        self._shifts.set()

    def rest(self) -> None:
        """Send nothing until `go_on`; returns when all that was sent is acknowledged."""
        self._resting.clear()
        self._goes.clear()
        if not self._resting.wait(30):
            raise TimeoutError("the load does not come to rest")

    def go_on(self) -> None:
        self._goes.set()

    def ends(self) -> dict[int, int]:
        """By partition, the offset after the last record that is known."""
        return dict(self._next)

    def _send_all(self) -> None:
        while not self._stop.is_set():
            if not self._goes.is_set():
                self._resting.set()
                self._goes.wait()
            started = time.monotonic()
            self._send()
            self._stop.wait(max(0.0, self._pause - (time.monotonic() - started)))

    def _send(self) -> None:
        self._number += 1
        valid = self._number % 7 != 0
        record_id = f"r{self._number}"
        value = self._record(record_id).encode() if valid else f"{{{record_id}".encode()
        try:
            where = self._producer.send(
                self._topic, value, partition=self._number % PARTITIONS
            ).get(timeout=20)
        except KafkaError:
            self.unknown.append(record_id)
            return
        self.sent[where.partition, where.offset] = Sent(record_id=record_id, valid=valid)
        self._next[where.partition] = max(self._next[where.partition], where.offset + 1)

    def _record(self, record_id: str) -> str:
        shifted = self._shifts.is_set() and int(time.monotonic() / PHASE_SECONDS) % 2
        document = {
            "id": record_id,
            "prompt": f"{SHIFTED if shifted else 'plain'} {record_id}",
            "response": "yes",
            "segments": {"route": ROUTES[self._number % len(ROUTES)]},
        }
        return json.dumps(document)
