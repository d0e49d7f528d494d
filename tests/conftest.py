"""Real services for every test: PostgreSQL and a Kafka-protocol broker, from wheels or from outside.

``MONITOR_TEST_POSTGRES_URL`` (a superuser's URL), ``MONITOR_TEST_KAFKA_BOOTSTRAP`` and
``MONITOR_TEST_CHAT_MODEL`` (a folder) name servers and a model that are already there.
``MONITOR_TEST_KAFKA_HOME`` (see `tests.kafka.apache`) makes Apache Kafka the broker, and tests/kafka runs.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: the suite runs a process for every core, and several pools of threads on
# the same cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests' packs are judged by nobody. What is refused without it: tests/cli/test_unjudged.py.
os.environ["MONITOR_PACK__ALLOW_UNJUDGED"] = "true"

import psutil
import psycopg
import pytest
from hypothesis import settings
from sqlalchemy import URL, Engine, make_url

from monitor.demo.chat_model import chat_model
from monitor.demo.services import POSTGRES_OPTIONS, Broker, Postgres, create_topic
from monitor.redaction import know_only
from monitor.settings import PostgresSettings
from tests.kafka.apache import Cluster, kafka_home

if TYPE_CHECKING:
    from tests.traffic import Traffic

settings.register_profile("quick", max_examples=20)

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: the last file to be handed out should be a short one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _secrets_of_other_files_are_forgotten() -> None:
    """What one file's tests know as a secret would be hidden in the messages of the next."""
    know_only(())


def pytest_collection_finish() -> None:
    """What is imported by now stays: no garbage collection need walk it again.

    The code under test collects garbage to part with a model (`monitor.research.reading.opened`), and the
    million objects of torch and of the suite itself made that half a second each time.
    """
    gc.collect()
    gc.freeze()


MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 * 2**30
"""What is free in memory before servers' data goes there; a suite on two processes writes less than 1 GB."""
POSTGRES = {
    **POSTGRES_OPTIONS,
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "128MB",
}
"""A new database for every test is a copy of files: nobody replicates it, so its pages need no log."""


def _memory() -> Path | None:
    """Where a server's data costs no disk, if this machine has such a place with room.

    A database for every test is some three hundred new files, and making them on a disk takes most of the
    time that such a test takes.
    """
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free >= ROOM_BYTES and os.access(MEMORY, os.W_OK):
            return MEMORY
    return None


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder for a server's data, outside pytest's own temporary root.

    Every new pytest session closes that root to other users, and PostgreSQL, started by root, runs as
    another user: a session beside this one would take its data away. What a killed session left is
    removed, for it may lie in memory.
    """
    parent = _memory() or Path(tempfile.gettempdir())
    for left in parent.glob("monitor-tests-*-*-*"):
        with suppress(ValueError):
            if not psutil.pid_exists(int(left.name.split("-")[3])):
                shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"monitor-tests-{name}-{os.getpid()}-", dir=parent))
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
    with _folder("postgres") as folder, Postgres(folder, options=POSTGRES) as server:
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


@pytest.fixture(scope="session")
def copy_of(postgres_server: URL) -> Callable[[str], AbstractContextManager[str]]:
    """``with copy_of(template) as url``: a new database that holds what ``template`` holds."""
    return lambda template: _database(postgres_server, template=template)


@pytest.fixture(scope="session")
def hour(
    copy_of: Callable[[str], AbstractContextManager[str]], migrated_template: str
) -> Iterator[Traffic]:
    """An hour of quiet traffic, where most stories of a watcher begin: `Traffic.resumed` goes on."""
    from tests.traffic import Traffic

    with copy_of(migrated_template) as url, _engine(url) as database:
        traffic = Traffic(database)
        traffic.minutes(60)
        database.dispose()  # what is connected to cannot be copied
        yield traffic


@pytest.fixture
def template(migrated_template: str) -> str:
    """Name of the database that the test's own is a copy of; a module may begin with more in it."""
    return migrated_template


@pytest.fixture
def migrated_url(
    copy_of: Callable[[str], AbstractContextManager[str]], template: str
) -> Iterator[str]:
    """URL of a new database with the current schema."""
    with copy_of(template) as url:
        yield url


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    from monitor.store.database import connect

    engine = connect(PostgresSettings(url=url))
    yield engine
    engine.dispose()


@pytest.fixture
def database(migrated_url: str) -> Iterator[Engine]:
    """An engine on a new database with the current schema."""
    with _engine(migrated_url) as engine:
        yield engine


@pytest.fixture(scope="session")
def new_cluster() -> Iterator[Path]:
    """The data of a PostgreSQL that was started once: making it takes longer than to copy it."""
    with _folder("cluster") as folder:
        with Postgres(folder):
            pass
        yield folder / "data"


@pytest.fixture
def restartable_postgres(new_cluster: Path) -> Iterator[Postgres]:
    """A PostgreSQL of this test's own, to be stopped, killed and started again."""
    with _folder("postgres") as folder:
        # With its owner, who is not us where we are root.
        subprocess.run(["cp", "-a", str(new_cluster), str(folder / "data")], check=True)
        with Postgres(folder) as server:
            yield server


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """Address of the broker that all tests share."""
    outside = os.environ.get("MONITOR_TEST_KAFKA_BOOTSTRAP")
    if outside:
        yield outside
        return
    with _folder("broker") as folder, _broker(folder) as server:
        yield server.bootstrap


@pytest.fixture
def restartable_broker() -> Iterator[Broker | Cluster]:
    """A broker of this test's own, to be stopped, killed and started again."""
    with _folder("broker") as folder, _broker(folder) as server:
        yield server


def _broker(folder: Path) -> Broker | Cluster:
    """The wheel's broker, or one of Apache Kafka where `kafka_home` names it."""
    home = kafka_home()
    return Cluster(folder, home) if home else Broker(folder)


@pytest.fixture(scope="session")
def server_folder() -> Callable[[str], AbstractContextManager[Path]]:
    """``with server_folder("kafka") as folder``: where a server's data costs no disk, if there is room."""
    return _folder


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
        self._execute(f"CREATE DATABASE {self._name} TEMPLATE {self._template} STRATEGY FILE_COPY")
        return self._url

    def __exit__(self, *_: object) -> None:
        self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement)
