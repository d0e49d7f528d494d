"""Reaching PostgreSQL: engine, transactions, schema version, migrations. Driver errors end here.

Needs PostgreSQL 14 or later, reached directly or through a pooler in *session* mode: statements are
prepared for a session, and its settings are given at its start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, exc, make_url, text

import monitor
from monitor.errors import (
    BadInput,
    ConfigurationError,
    DatabaseUnavailable,
    MonitorError,
    SchemaError,
    StopLoudly,
)
from monitor.logs import get_logger
from monitor.settings import PostgresSettings, secret
from monitor.store.partitions import ensure_partitions
from monitor.store.tables import DATA_SCHEMA

log = get_logger(__name__)

MIGRATIONS: Final = Path(monitor.__file__).parent.parent / "migrations"
"""Beside the package, in a checkout as in an installed wheel."""
LOCK_TIMEOUT_SECONDS: Final = 10
"""Longest wait of a migration for a table lock: a waiting ALTER TABLE stops everyone behind it."""
TURN_SECONDS: Final = 120
"""Longest wait of a migration for another one to end."""


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
def snapshot(engine: Engine) -> Iterator[Connection]:
    """One transaction that sees the store as it is at its first statement, and can write nothing."""
    with (
        translated(),
        engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        ).connect() as connection,
        connection.begin(),
    ):
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
    except UnicodeEncodeError:
        # Not quoted: it may be a row's value.
        raise BadInput("a given text is none: it holds half a character") from None


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


def database_time(c: Connection) -> datetime:
    """What the database's clock says now."""
    moment: datetime = c.execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment.astimezone(UTC)


def current_revision(engine: Engine) -> str | None:
    """The schema's revision; None when the database was never migrated."""
    with translated(), engine.connect() as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    table = f"{DATA_SCHEMA}.alembic_version"
    if connection.scalar(text("SELECT to_regclass(:name)"), {"name": table}) is None:
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {table}"))
    return found


@cache
def _revisions() -> tuple[str, ...]:
    """Those that this release knows, the newest first. Every readiness probe asks."""
    return tuple(one.revision for one in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def require_schema(engine: Engine) -> None:
    """`SchemaError` unless the schema is this version's, or a newer one.

    Newer is well: migrations only expand, so that the previous release runs on the new schema while
    a new one is being rolled out.
    """
    current, (head, *older) = current_revision(engine), _revisions()
    if current is None:
        raise SchemaError("the database has no schema yet", hint="Run `monitor migrate`.")
    if current in older:
        raise SchemaError(
            f"the schema is at revision {current}, this version needs {head}",
            hint="Run `monitor migrate`.",
        )


def migrate(settings: PostgresSettings, revision: str = "head") -> None:
    """Bring the schema to ``revision``: ``head``, ``base``, ``-1``, ``+1`` or a revision's id.

    All in one transaction. Migrators that start together wait for one another, at most `TURN_SECONDS`. A
    lock that cannot be had in `LOCK_TIMEOUT_SECONDS` raises `DatabaseUnavailable`, which names who holds
    it, and nothing is changed.
    """
    engine = connect(settings)
    try:
        with (
            transaction(engine) as connection,
            migration(connection, settings, revision) as step,
        ):
            step.take()
            if _revision(connection) is not None:
                today = database_time(connection).date()
                ensure_partitions(connection, today, settings.partitions_ahead_days)
    except DatabaseUnavailable as error:
        if not _lock_not_had(error):
            raise
        raise DatabaseUnavailable(
            f"{error}; nothing was migrated",
            hint=f"Run it again when these have ended: {_who_holds_locks(engine)}.",
        ) from error
    finally:
        engine.dispose()


def _lock_not_had(error: DatabaseUnavailable) -> bool:
    cause = error.__cause__
    if isinstance(cause, exc.DBAPIError):
        cause = cause.orig
    return isinstance(cause, psycopg.errors.LockNotAvailable)


def _who_holds_locks(engine: Engine) -> str:
    """The sessions that hold locks in the monitor's schemas: pid, user, what they call themselves."""
    with translated(), engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT DISTINCT pid, usename, application_name, xact_start
                FROM pg_locks
                JOIN pg_class ON pg_class.oid = relation
                JOIN pg_namespace ON pg_namespace.oid = relnamespace
                JOIN pg_stat_activity USING (pid)
                WHERE granted AND pid <> pg_backend_pid() AND locktype = 'relation'
                    AND pg_locks.database = (
                        SELECT oid FROM pg_database WHERE datname = current_database())
                    AND nspname IN ('monitor', 'monitor_data', 'monitor_partitions')
                ORDER BY xact_start, pid
            """)
        ).all()
    told = [
        f"session {row.pid} of {row.usename} ({row.application_name or 'no name'})" for row in rows
    ]
    return ", ".join(told[:5]) or "nobody any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A migration that may be taken on its connection."""

    current: str | None
    goes_down: bool
    take: Callable[[], None]


@contextmanager
def migration(connection: Connection, settings: PostgresSettings, revision: str) -> Iterator[Step]:
    """The step from the schema's revision to ``revision``, while no other migration runs.

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
    """Make the schemas that are missing, and take turns with other migrations; every wait is bounded."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text(f"SET LOCAL lock_timeout = '{TURN_SECONDS}s'"))
    version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    if version < 140_000:
        raise SchemaError(f"PostgreSQL 14 or later is needed, this one is {version // 10_000}")
    for schema in ("monitor_data", "monitor_partitions", "monitor"):
        _make(
            connection,
            f"CREATE SCHEMA {schema}",
            unless="SELECT 1 FROM pg_namespace WHERE nspname = :name",
            name=schema,
        )
    # As Alembic makes it: whoever may migrate can lock it, and nobody else.
    _make(
        connection,
        f"""
        CREATE TABLE {DATA_SCHEMA}.alembic_version (
            version_num VARCHAR(32) NOT NULL,
            CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
        )
        """,
        unless="SELECT 1 FROM pg_class WHERE oid = to_regclass(:name)",
        name=f"{DATA_SCHEMA}.alembic_version",
    )
    _take_turns(connection)
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))


def _take_turns(connection: Connection) -> None:
    """Wait for another migration to end; those who only read the revision wait for nobody."""
    lock = text(f"LOCK TABLE {DATA_SCHEMA}.alembic_version IN EXCLUSIVE MODE")
    try:
        with connection.begin_nested():
            connection.execute(text(f"{lock} NOWAIT"))
    except exc.DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        log.warning(
            "migration.waits_for_another",
            for_at_most_seconds=TURN_SECONDS,
            holders=_who_holds_locks(connection.engine),
        )
        connection.execute(lock)


def _make(connection: Connection, statement: str, *, unless: str, name: str) -> None:
    """Make what is not there; what another migration makes meanwhile is waited for."""
    # CREATE … IF NOT EXISTS asks for the privilege even when there is nothing to do.
    if connection.scalar(text(unless), {"name": name}):
        return
    try:
        with connection.begin_nested():
            connection.execute(text(statement))
    except exc.DBAPIError:
        if not connection.scalar(text(unless), {"name": name}):
            raise


def _goes_down(script: ScriptDirectory, current: str | None, revision: str) -> bool:
    if revision.startswith("-") or revision == "base":
        return True
    if revision.startswith("+") or revision in ("head", "heads") or current is None:
        return False
    below: list[Any] = [step.revision for step in script.iterate_revisions(current, "base")]
    return revision != current and revision in below
