"""Reaching PostgreSQL: engine, transactions, schema version, locks. Driver errors end here.

Needs PostgreSQL 14 or later, reached directly or through a pooler in *session* mode: the advisory
locks belong to a session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, exc, make_url, text

import monitor
from monitor.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    MonitorError,
    SchemaError,
    StopLoudly,
)
from monitor.settings import PostgresSettings, secret
from monitor.store.partitions import ensure_partitions
from monitor.store.tables import DATA_SCHEMA

MIGRATIONS: Final = Path(monitor.__file__).parent.parent / "migrations"
"""Beside the package, in a checkout as in an installed wheel."""
LOCK_TIMEOUT_SECONDS: Final = 10
"""Longest wait of a migration for a table lock: a waiting ALTER TABLE stops everyone behind it."""
MIGRATION_LOCK: Final = "monitor.migrate"


def connect(settings: PostgresSettings) -> Engine:
    """An engine; no connection is made yet. `ConfigurationError` when the URL is none."""
    given = secret(settings.url, settings.url_file, "postgres.url") or ""
    try:
        url = make_url(given)
    except exc.ArgumentError:
        raise ConfigurationError(
            "postgres.url is not a URL",
            hint="Like postgresql+psycopg://user:password@host/monitor.",
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername != "postgresql+psycopg":
        raise ConfigurationError(
            f"postgres.url names the driver {url.drivername!r}",
            hint="Write postgresql+psycopg://…",
        )
    milliseconds = round(settings.statement_timeout.total_seconds() * 1_000)
    seconds = max(2, round(settings.connect_timeout.total_seconds()))
    return create_engine(
        url,
        pool_size=settings.pool_size,
        pool_pre_ping=True,
        pool_timeout=settings.connect_timeout.total_seconds(),
        connect_args={
            "connect_timeout": seconds,
            # A server that vanished is noticed in seconds, not in the kernel's two hours.
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 1_000 * max(30, seconds),
            "application_name": url.query.get("application_name", "monitor"),
            "options": f"-c statement_timeout={milliseconds} -c timezone=UTC"
            " -c idle_in_transaction_session_timeout=600000",
        },
    )


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end of the block, rolled back when it raises.

    `DatabaseUnavailable`: nothing was stored, or the server went away while it committed; do the
    whole block again (`store_chunk` tells by its offsets whether it had been stored).
    """
    with translated(), engine.begin() as connection:
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Driver errors as the monitor's own."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnavailable(f"no free database connection: {error}") from error
    except exc.DBAPIError as error:
        cause = error.orig if isinstance(error.orig, psycopg.Error) else None
        raise _translation(cause, error.connection_invalidated) from error
    except psycopg.Error as error:
        raise _translation(error, False) from error


def _translation(error: psycopg.Error | None, invalidated: bool) -> MonitorError:
    """What the caller does about it. Messages name the server's message, never a row's values."""
    said = (error.diag.message_primary if error else None) or type(error).__name__
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return SchemaError(f"the database has no such table: {said}", hint="Run `monitor migrate`.")
    if isinstance(error, psycopg.errors.UndefinedColumn | psycopg.errors.UndefinedFunction):
        return SchemaError(f"the schema does not fit: {said}", hint="Run `monitor migrate`.")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return ConfigurationError(
            f"the database user may not do this: {said}", hint="See docs/storage.md, Privileges."
        )
    if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None:
        # A row was routed to DEFAULT while its partition was being attached.
        return DatabaseUnavailable(f"a partition was made meanwhile: {said}")
    if (
        error is None
        or invalidated
        or isinstance(
            error,
            psycopg.OperationalError
            | psycopg.InterfaceError
            | psycopg.errors.ReadOnlySqlTransaction
            | psycopg.errors.InFailedSqlTransaction,
        )
    ):
        first = str(error).strip().splitlines()[0] if str(error or "").strip() else said
        return DatabaseUnavailable(f"PostgreSQL: {first}", hint=_mend(first))
    return StopLoudly(
        f"PostgreSQL refused a statement ({type(error).__name__}): {said}",
        hint="This is a defect of the monitor, or a database altered by hand.",
    )


_MENDS: Final = (
    # The server's words at log-in: no code comes with them. In another language: the last line.
    ("password", "Mend the user or the password in postgres.url (or the file postgres.url_file)."),
    ("pg_hba.conf", "Let this host and user in in pg_hba.conf, or mend sslmode in postgres.url."),
    ('role "', "Mend the user in postgres.url, or create that role."),
    ('database "', "Create the database, or mend its name in postgres.url."),
    (
        "",
        "Mend host, port, user, password and database in postgres.url, start PostgreSQL, or let this "
        "host reach it: DNS, firewall, the network policy's ports.",
    ),
)


_NAME: Final = re.compile(r"""(["'])[^"']*\1""")


def _mend(said: str) -> str:
    # Hosts, users and databases are told in quotes: their own words are not the server's.
    told = _NAME.sub('""', said)
    return next(mend for words, mend in _MENDS if words in told)


@dataclass(frozen=True, slots=True)
class Lock:
    """An attempt at a cluster-wide lock; true when it was got."""

    held: bool
    _connection: Connection

    def __bool__(self) -> bool:
        return self.held

    def alive(self) -> bool:
        """Whether the lock is held still: it goes with its session, for example when the server restarts."""
        if not self.held or self._connection.invalidated:
            return False
        try:
            self._connection.execute(text("SELECT 1"))
        except exc.DBAPIError:
            self._connection.invalidate()
            return False
        return True


@contextmanager
def advisory_lock(engine: Engine, name: str) -> Iterator[Lock]:
    """Try for the cluster-wide lock ``name``; if it was got, it is held until the block ends.

    Never waits. The lock goes with its connection: after a restart of the server another process may
    have it while the block still runs (`Lock.alive` tells), so what is written under it must bear a
    second writer.
    """
    with translated():
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection:
        key = {"name": name}
        with translated():
            held = bool(
                connection.scalar(
                    text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"), key
                )
            )
        try:
            yield Lock(held, connection)
        finally:
            if held and not connection.invalidated:
                _unlock(connection, key)


def _unlock(connection: Connection, key: dict[str, str]) -> None:
    try:
        connection.execute(text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))"), key)
    except exc.DBAPIError:
        connection.invalidate()  # the session is gone, and the lock with it


def current_revision(engine: Engine) -> str | None:
    """The schema's revision; None when the database was never migrated."""
    with translated(), engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table_schema": DATA_SCHEMA})
    return context.get_current_revision()


def require_schema(engine: Engine) -> None:
    """`SchemaError` unless the schema is this version's, or a newer one.

    Newer is well: migrations only expand, so that the previous release runs on the new schema while
    a new one is being rolled out.
    """
    script = ScriptDirectory(str(MIGRATIONS))
    current, head = current_revision(engine), script.get_current_head()
    if current is None:
        raise SchemaError("the database has no schema yet", hint="Run `monitor migrate`.")
    known = {revision.revision for revision in script.walk_revisions()}
    if current != head and current in known:
        raise SchemaError(
            f"the schema is at revision {current}, this version needs {head}",
            hint="Run `monitor migrate`.",
        )


def migrate(settings: PostgresSettings, revision: str = "head") -> None:
    """Bring the schema to ``revision``: ``head``, ``base``, ``-1``, ``+1`` or a revision's id.

    All in one transaction. Migrators that start together wait for one another. A lock that cannot be
    had in `LOCK_TIMEOUT_SECONDS` raises `DatabaseUnavailable` and nothing is changed.
    """
    engine = connect(settings)
    try:
        with (
            transaction(engine) as connection,
            migration(connection, settings, revision) as step,
        ):
            step.take()
            if _revision(connection) is not None:
                ensure_partitions(
                    connection, datetime.now(UTC).date(), settings.partitions_ahead_days
                )
    finally:
        engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A migration that may be taken on its connection."""

    current: str | None
    goes_down: bool
    take: Callable[[], None]


@contextmanager
def migration(connection: Connection, settings: PostgresSettings, revision: str) -> Iterator[Step]:
    """The step from the schema's revision to ``revision``, under the migration lock.

    Raises `SchemaError` when the revision, or the one that the database is at, is not known here.
    """
    _prepare(connection)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes.update(connection=connection, reader_role=settings.reader_role)
    current = _revision(connection)
    try:
        down = _goes_down(ScriptDirectory.from_config(config), current, revision)
        move = command.downgrade if down else command.upgrade
        yield Step(current=current, goes_down=down, take=lambda: move(config, revision))
    except CommandError as error:
        raise SchemaError(
            f"cannot migrate to {revision!r}: {error}",
            hint="A newer release knows this schema; downgrade with that release.",
        ) from error


def _prepare(connection: Connection) -> None:
    """Take the lock, then bound every later wait; make the schemas that are missing."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": MIGRATION_LOCK}
    )
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    if version < 140_000:
        raise SchemaError(f"PostgreSQL 14 or later is needed, this one is {version // 10_000}")
    for schema in ("monitor_data", "monitor_partitions", "monitor"):
        # CREATE SCHEMA IF NOT EXISTS asks for the privilege even when there is nothing to do.
        there = connection.scalar(
            text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": schema}
        )
        if not there:
            connection.execute(text(f"CREATE SCHEMA {schema}"))


def _goes_down(script: ScriptDirectory, current: str | None, revision: str) -> bool:
    if revision.startswith("-") or revision == "base":
        return True
    if revision.startswith("+") or revision in ("head", "heads") or current is None:
        return False
    below: list[Any] = [step.revision for step in script.iterate_revisions(current, "base")]
    return revision != current and revision in below
