"""A source that is told to stop ends soon, whatever it is waiting for, and leaves no thread."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from monitor.demo.services import Broker
from monitor.ingest.kafka import KafkaSource
from tests.kafka.apache import Cluster
from tests.scenes.kafka_source import (
    Offsets,
    drain,
    holding,
    ingest,
    produce,
    settings,
    wait_for,
)

SOON = 4.0
"""Well below what is waited for in each of these: a bootstrap of 15 s, requests of 10 s and more."""


@contextmanager
def ends_soon(source: KafkaSource) -> Iterator[None]:
    before = set(threading.enumerate())
    with source:
        yield
        started = time.monotonic()
    assert time.monotonic() - started < SOON
    left = [thread.name for thread in set(threading.enumerate()) - before if "kafka" in thread.name]
    assert not left


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def full() -> Iterator[str]:
    """The address of a listener whose queue is full: it lets nobody in and refuses nobody."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("listener", ["silent", "full"])
def test_before_the_first_connection(listener: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(listener)
    source = KafkaSource(settings(address, "prompts"), ingest(), Offsets())
    with ends_soon(source):
        time.sleep(1.0)
        assert source.problem


def test_while_a_topic_is_looked_for(kafka_bootstrap: str) -> None:
    with ends_soon(KafkaSource(settings(kafka_bootstrap, "no-such-topic"), ingest(), Offsets())):
        time.sleep(1.5)


@pytest.mark.slow
def test_while_a_broker_that_was_read_from_is_frozen(restartable_broker: Broker | Cluster) -> None:
    bootstrap, topic = restartable_broker.bootstrap, "stream"
    restartable_broker.create_topic(topic)
    produce(bootstrap, topic, range(10))
    source = KafkaSource(settings(bootstrap, topic), ingest(), Offsets())
    (broker,) = getattr(restartable_broker, "nodes", (restartable_broker,))
    try:
        with ends_soon(source):
            chunks = drain(source, holding(10))
            broker._server.send(signal.SIGSTOP)
            source.commit(chunks[-1].spans)
            source.rewind()
            wait_for(lambda: bool(source._holdings.unplaced()[0]), "it is to be placed again")
            time.sleep(1.0)
    finally:
        broker._server.send(signal.SIGCONT)
