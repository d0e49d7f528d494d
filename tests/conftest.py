"""Real services for every test: PostgreSQL and a Kafka-protocol broker, from wheels or from outside.

``MONITOR_TEST_POSTGRES_URL`` (a superuser's URL), ``MONITOR_TEST_KAFKA_BOOTSTRAP`` and
``MONITOR_TEST_CHAT_MODEL`` (a folder) name servers and a model that are already there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before torch is imported: the suite runs a process for every core, and several pools of threads on
# the same cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psycopg
import pytest
from sqlalchemy import URL, Engine, make_url

from monitor.demo.chat_model import chat_model
from monitor.demo.services import Broker, Postgres, create_topic
from monitor.settings import PostgresSettings

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: the last file to be handed out should be a short one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder for a server's data, outside pytest's own temporary root.

    Every new pytest session closes that root to other users, and PostgreSQL, started by root, runs as
    another user: a session beside this one would take its data away.
    """
    path = Path(tempfile.mkdtemp(prefix=f"monitor-tests-{name}-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """URL of the maintenance database of the server that all tests share."""
    outside = os.environ.get("MONITOR_TEST_POSTGRES_URL")
    if outside:
        yield make_url(outside).set(drivername="postgresql+psycopg")
        return
    with _folder("postgres") as folder, Postgres(folder) as server:
        yield make_url(server.url)
        if not server.running:
            end = (folder / "postgres.log").read_text(encoding="utf-8", errors="replace")[-3_000:]
            warnings.warn(f"the suite's PostgreSQL ended by itself:\n{end}", stacklevel=1)


@pytest.fixture
def postgres_url(postgres_server: URL) -> Iterator[str]:
    """URL of a new, empty database."""
    with _database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: URL) -> Iterator[str]:
    """Name of a database migrated once, to be cloned for every test."""
    from monitor.store.database import migrate

    with _database(postgres_server) as url:
        migrate(PostgresSettings(url=url))
        name = make_url(url).database
        assert name
        yield name


@pytest.fixture
def migrated_url(postgres_server: URL, migrated_template: str) -> Iterator[str]:
    """URL of a new database with the current schema."""
    with _database(postgres_server, template=migrated_template) as url:
        yield url


@pytest.fixture
def database(migrated_url: str) -> Iterator[Engine]:
    """An engine on a new database with the current schema."""
    from monitor.store.database import connect

    engine = connect(PostgresSettings(url=migrated_url))
    yield engine
    engine.dispose()


@pytest.fixture
def restartable_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test's own, to be stopped, killed and started again."""
    with _folder("postgres") as folder, Postgres(folder) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """Address of the broker that all tests share."""
    outside = os.environ.get("MONITOR_TEST_KAFKA_BOOTSTRAP")
    if outside:
        yield outside
        return
    with _folder("broker") as folder, Broker(folder) as server:
        yield server.bootstrap


@pytest.fixture
def restartable_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of this test's own, to be stopped, killed and started again."""
    with Broker(tmp_path / "broker") as server:
        yield server


@pytest.fixture
def make_topic(kafka_bootstrap: str) -> Callable[..., str]:
    """``make_topic(partitions=3)``: the name of a new topic of the shared broker."""

    def make(*, partitions: int = 1) -> str:
        name = f"test-{secrets.token_hex(6)}"
        create_topic(kafka_bootstrap, name, partitions=partitions)
        return name

    return make


@pytest.fixture
def topic(make_topic: Callable[..., str]) -> str:
    """A new topic with one partition."""
    return make_topic()


@pytest.fixture(scope="session")
def chat_model_path() -> Path:
    """Folder of the real small chat model; converted on first use."""
    outside = os.environ.get("MONITOR_TEST_CHAT_MODEL")
    return Path(outside) if outside else chat_model(REPOSITORY / ".cache", progress=print)


class _database:
    """A database with a random name, dropped at the end whoever is still connected."""

    def __init__(self, server: URL, *, template: str = "template0") -> None:
        self._server = server.set(drivername="postgresql").render_as_string(hide_password=False)
        self._template = template
        self._name = f"monitor_test_{secrets.token_hex(6)}"
        self._url = server.set(database=self._name).render_as_string(hide_password=False)

    def __enter__(self) -> str:
        self._execute(f"CREATE DATABASE {self._name} TEMPLATE {self._template}")
        return self._url

    def __exit__(self, *_: object) -> None:
        self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement)
