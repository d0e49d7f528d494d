"""What a step down would take is what it takes."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from monitor.settings import PostgresSettings
from monitor.store.database import MIGRATIONS, current_revision, migrate, transaction
from monitor.store.losses import Loss, step_down
from tests.store.builders import NOON, chunk, keep, known_pack, series

REVISIONS = [
    revision.revision
    for revision in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))
]
HEAD = REVISIONS[-1]


def columns(database: Engine, kind: str) -> dict[str, set[str]]:
    """Columns of every table (``BASE TABLE``) or ``VIEW`` of ours; partitions belong to their table."""
    with transaction(database) as c:
        rows = c.execute(
            text("""
                SELECT table_name, column_name FROM information_schema.columns
                JOIN information_schema.tables USING (table_schema, table_name)
                WHERE table_schema IN ('monitor_data', 'monitor') AND table_type = :kind
                    AND table_name <> 'alembic_version'
            """),
            {"kind": kind},
        ).all()
    found: dict[str, set[str]] = {}
    for table, column in rows:
        found.setdefault(table, set()).add(column)
    return found


def rows_of(database: Engine, table: str) -> int:
    with transaction(database) as c:
        return int(c.scalar(text(f"SELECT count(*) FROM monitor_data.{table}")) or 0)


@pytest.mark.parametrize("revision", [*REVISIONS[:-1], "base"])
def test_what_is_said_to_be_lost_is_what_a_step_down_takes(
    database: Engine, migrated_url: str, revision: str
) -> None:
    known_pack(database)
    keep(database, chunk(series(9), start=0, end=9))
    settings = PostgresSettings(url=migrated_url)
    tables, views = columns(database, "BASE TABLE"), columns(database, "VIEW")
    rows = {table: rows_of(database, table) for table in tables}

    told = step_down(settings, revision)
    assert told is not None
    assert told.current == HEAD
    assert current_revision(database) == HEAD, "asking takes nothing"
    assert {table: rows_of(database, table) for table in tables} == rows

    database.dispose()
    migrate(settings, revision)
    left = columns(database, "BASE TABLE")
    taken = {
        table: (tuple(sorted(held - left[table])) if table in left else (), rows[table])
        for table, held in tables.items()
        if rows[table] and held - left.get(table, set())
    }
    assert {loss.table: (loss.columns, loss.rows) for loss in told.losses} == taken
    assert set(told.views) == views.keys() - columns(database, "VIEW").keys()


def test_a_loss_says_of_which_time_it_is(database: Engine, migrated_url: str) -> None:
    known_pack(database)
    rows = series(9)
    keep(database, chunk(rows, start=0, end=9))
    told = step_down(PostgresSettings(url=migrated_url), "base")
    assert told is not None
    (scores,) = (loss for loss in told.losses if loss.table == "scores")
    assert scores == Loss(table="scores", rows=9, since=NOON, until=rows[-1].recorded_at)


@pytest.mark.parametrize("revision", ["head", HEAD, "+1"])
def test_a_step_that_goes_nowhere_or_up_loses_nothing(migrated_url: str, revision: str) -> None:
    assert step_down(PostgresSettings(url=migrated_url), revision) is None
