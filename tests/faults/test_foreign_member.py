"""A foreign member that leads the group and means ill: what it assigns to us ends nothing of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from monitor.ingest.kafka import KafkaSource
from tests.scenes.kafka_source import (
    Offsets,
    assert_contiguous,
    drain,
    holding,
    ingest,
    produce,
    settings,
    wait_for,
)


class Bytes:
    """An assignment that is none."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def encode(self) -> bytes:
        return self._content


def selfish(others: bytes | None) -> type[RoundRobinPartitionAssignor]:
    """Assigns everything to itself, and ``others`` to all others; None: leaves them out."""

    class Selfish(RoundRobinPartitionAssignor):
        me = ""

        @classmethod
        def assign(cls, cluster: Any, members: Any) -> dict[str, Any]:
            mine = [member for member in members if member.member_id == cls.me] or members[:1]
            assigned = dict(super().assign(cluster, mine))
            if others is not None:
                left = [one.member_id for one in members if one.member_id not in assigned]
                assigned |= {member_id: Bytes(others) for member_id in left}
            return assigned

    return Selfish


@contextmanager
def leading(
    bootstrap: str, topic: str, others: bytes | None
) -> Iterator[tuple[threading.Event, Callable[[], None]]]:
    """A stranger that came first and therefore leads; set once it has seen another join, and how it leaves."""
    saw, stop = threading.Event(), threading.Event()
    assignor = selfish(others)
    assigning = assignor.assign

    def watched(cluster: Any, members: Any) -> dict[str, Any]:
        if len(members) > 1:
            saw.set()
        return assigning(cluster, members)

    assignor.assign = staticmethod(watched)  # type: ignore[method-assign, assignment]
    stranger = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"group-{topic}",
        partition_assignment_strategy=[assignor],
        heartbeat_interval_ms=200,
        session_timeout_ms=6_000,
        max_poll_interval_ms=10_000,
        enable_auto_commit=False,
    )

    def poll() -> None:
        while not stop.is_set():
            stranger.poll(timeout_ms=100)
        stranger.close()

    deadline = time.monotonic() + 30
    while not stranger.assignment():
        stranger.poll(timeout_ms=100)
        assert time.monotonic() < deadline
        assignor.me = stranger._coordinator._generation.member_id
    assignor.me = stranger._coordinator._generation.member_id
    thread = threading.Thread(target=poll, daemon=True)
    thread.start()

    def leave() -> None:
        stop.set()
        thread.join(30)

    try:
        yield saw, leave
    finally:
        leave()


@pytest.mark.parametrize(
    "others",
    [None, b"", b"\x00", b"\x00\x00\xff\xff\xff\xff", b"\x00\x00\x7f\xff\xff\xff"],
    ids=["nothing", "no byte", "one byte", "no list", "a list without end"],
)
def test_what_a_foreign_leader_assigns_ends_nothing(
    kafka_bootstrap: str, make_topic: Callable[..., str], others: bytes | None
) -> None:
    topic = make_topic(partitions=3)
    produce(kafka_bootstrap, topic, range(300), partitions=3)
    with (
        leading(kafka_bootstrap, topic, others) as (saw, leave),
        KafkaSource(settings(kafka_bootstrap, topic), ingest(), Offsets()) as source,
    ):
        assert saw.wait(30)
        time.sleep(1.0)
        assert source.poll(0.1) is None, "nothing was assigned to us"
        leave()
        chunks = drain(source, holding(300))
        wait_for(lambda: len(source.assigned()) == 3, "every partition is ours again")
    assert_contiguous(chunks)
