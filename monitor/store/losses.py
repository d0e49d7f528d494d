"""What a migration to an older revision takes away, found by taking the step and rolling it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, text

from monitor.errors import DatabaseUnavailable
from monitor.settings import PostgresSettings
from monitor.store.database import connect, migration, transaction, translated

COUNT_SECONDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A table with rows, or some columns of one, that a step down drops."""

    table: str
    columns: tuple[str, ...] = ()
    """Empty: the whole table goes."""
    rows: int | None
    """None: too many to be counted in `COUNT_SECONDS`."""
    since: datetime | None = None
    until: datetime | None = None
    """Of the first column that holds a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDown:
    """A migration to an older revision. Tables without rows are left out."""

    current: str
    losses: tuple[Loss, ...]
    views: tuple[str, ...]


def step_down(settings: PostgresSettings, revision: str) -> StepDown | None:
    """What `monitor.store.database.migrate` would drop; None when ``revision`` is no older one.

    The step is taken in a transaction that is rolled back, so it holds the tables' locks for a
    moment. Raises as `migrate` does.
    """
    engine = connect(settings)
    try:
        tried = _tried(engine, settings, revision)
        if tried is None:
            return None
        current, before, after = tried
        tables = {name for name, kind in before if kind == "table"}
        return StepDown(
            current=current,
            losses=tuple(
                loss
                for name in sorted(tables)
                if (loss := _loss(engine, name, before, after)) is not None
            ),
            views=tuple(sorted(name for name, kind in before.keys() - after if kind == "view")),
        )
    finally:
        engine.dispose()


Columns = Mapping[tuple[str, str], frozenset[str]]
"""(name, ``table`` or ``view``) → its columns."""


def _tried(
    engine: Engine, settings: PostgresSettings, revision: str
) -> tuple[str, Columns, Columns] | None:
    # Never committed: closing the connection rolls back.
    with translated(), engine.connect() as c, migration(c, settings, revision) as step:
        if not step.goes_down or step.current is None:
            return None
        before = _columns(c)
        step.take()
        return step.current, before, _columns(c)


def _columns(c: Connection) -> Columns:
    rows = c.execute(
        text("""
            SELECT
                class.relname AS name,
                CASE class.relkind WHEN 'v' THEN 'view' ELSE 'table' END AS kind,
                array_agg(column_.attname) AS columns
            FROM pg_class AS class
            JOIN pg_namespace AS schema ON schema.oid = class.relnamespace
            JOIN pg_attribute AS column_ ON column_.attrelid = class.oid
                AND column_.attnum > 0 AND NOT column_.attisdropped
            WHERE schema.nspname IN ('monitor_data', 'monitor')
                AND class.relkind IN ('r', 'p', 'v')
                AND class.relname <> 'alembic_version'
            GROUP BY class.relname, class.relkind
        """)
    )
    return {(row.name, row.kind): frozenset(row.columns) for row in rows}


def _loss(engine: Engine, table: str, before: Columns, after: Columns) -> Loss | None:
    key = (table, "table")
    columns = tuple(sorted(before[key] - after[key])) if key in after else ()
    if key in after and not columns:
        return None
    try:
        with transaction(engine) as c:
            c.execute(text(f"SET LOCAL statement_timeout = '{COUNT_SECONDS}s'"))
            moment = _moment(c, table)
            span = f"min({moment}), max({moment})" if moment else "NULL, NULL"
            row = c.execute(text(f"SELECT count(*), {span} FROM monitor_data.{table}")).one()
    except DatabaseUnavailable:
        return Loss(table=table, columns=columns, rows=None)
    rows, since, until = row
    if not rows:
        return None
    return Loss(table=table, columns=columns, rows=rows, since=since, until=until)


def _moment(c: Connection, table: str) -> str | None:
    name: str | None = c.scalar(
        text("""
            SELECT column_name FROM information_schema.columns
            WHERE table_schema = 'monitor_data' AND table_name = :table
                AND data_type = 'timestamp with time zone'
            ORDER BY ordinal_position LIMIT 1
        """),
        {"table": table},
    )
    return name
