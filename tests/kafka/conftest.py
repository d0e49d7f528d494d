"""Apache Kafka itself, where ``MONITOR_TEST_KAFKA_HOME`` names it: without it nothing here is collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.kafka.apache import Cluster, kafka_home

HOME = kafka_home()
collect_ignore_glob = [] if HOME else ["test_*.py"]

Folder = Callable[[str], AbstractContextManager[Path]]


@pytest.fixture(scope="session")
def kafka(server_folder: Folder) -> Iterator[Cluster]:
    """One broker with every listener, for tests that end nothing of it."""
    assert HOME
    with server_folder("kafka") as folder, Cluster(folder, HOME) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three_brokers(server_folder: Folder) -> Iterator[Cluster]:
    """Three brokers, each to be killed, stopped, paused and started; a test leaves them running."""
    assert HOME
    with server_folder("kafka") as folder, Cluster(folder, HOME, nodes=3) as cluster:
        yield cluster
