"""Records that are sent all the while, whatever happens to the brokers, and what became of them on the topic."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

Record = tuple[int, int, str | None]
"""Partition, offset, and the prompt's id; None for one that cannot be read."""
UNREADABLE: Final = 7
"""Every so many records one is no JSON."""
READ_SECONDS: Final = 120.0


class Load:
    """A thread that sends to every partition that its producer knows; a context manager."""

    def __init__(self, bootstrap: str, topic: str, *, per_second: float) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._pause = 1.0 / per_second
        self._stop = threading.Event()
        self._go = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lock = threading.Lock()
        self.acknowledged: set[Record] = set()
        self.sent = self.refused = 0

    def __enter__(self) -> Self:
        self._go.set()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._go.set()
        self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is sent, and everything that was sent is acknowledged or refused."""
        self._idle.clear()
        self._go.clear()
        assert self._idle.wait(READ_SECONDS), "what was sent is neither acknowledged nor refused"
        yield
        self._go.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            # A new one after each pause, too: partitions and topic may be others.
            with suppress(KafkaError):
                self._send(self._producer())
            if not self._go.is_set():
                self._idle.set()
                self._go.wait()

    def _producer(self) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self._bootstrap,
            acks="all",
            metadata_max_age_ms=2_000,
            request_timeout_ms=5_000,
            delivery_timeout_ms=60_000,
        )

    def _send(self, producer: KafkaProducer) -> None:
        try:
            while self._go.is_set() and not self._stop.wait(self._pause):
                partitions = sorted(producer.partitions_for(self._topic))
                self.sent += 1
                readable = self.sent % UNREADABLE != 0
                name = f"p{self.sent}" if readable else None
                given = {"id": name, "prompt": f"text {self.sent}", "response": "yes"}
                value = json.dumps(given).encode() if readable else b"{broken"
                future = producer.send(
                    self._topic, value, partition=partitions[self.sent % len(partitions)]
                )
                future.add_callback(self._took, name)
                future.add_errback(self._refused)
        finally:
            with suppress(KafkaError):
                producer.flush(READ_SECONDS / 2)
            producer.close(5)

    def _took(self, name: str | None, at: Any) -> None:
        with self._lock:
            self.acknowledged.add((at.partition, at.offset, name))

    def _refused(self, _: BaseException) -> None:
        with self._lock:
            self.refused += 1


def on_topic(bootstrap: str, topic: str) -> Counter[Record]:
    """Every record that the topic holds, as a client that is not ours reads it."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed")
    partitions = [TopicPartition(topic, one) for one in consumer.partitions_for_topic(topic)]
    ends = consumer.end_offsets(partitions)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    found: Counter[Record] = Counter()
    deadline = time.monotonic() + READ_SECONDS
    while any(consumer.position(one) < ends[one] for one in partitions):
        assert time.monotonic() < deadline, f"{topic} is not read to its end"
        for batch in consumer.poll(timeout_ms=500).values():
            for record in batch:
                name = None if record.value == b"{broken" else json.loads(record.value)["id"]
                found[record.partition, record.offset, name] += 1
    consumer.close()
    return found
