"""Migrations: from empty, down and up again, equal to the models, and kind to the previous release."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, text

from monitor.errors import DatabaseUnavailable, SchemaError
from monitor.settings import PostgresSettings
from monitor.store import database as store
from monitor.store.database import MIGRATIONS, connect, current_revision, migrate, require_schema
from monitor.store.tables import DATA_SCHEMA, metadata

REPOSITORY = Path(__file__).parents[2]
REVISIONS = [
    revision.revision
    for revision in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))
]


@pytest.fixture
def settings(postgres_url: str) -> PostgresSettings:
    return PostgresSettings(url=postgres_url)


@pytest.fixture
def engine(settings: PostgresSettings) -> Iterator[Engine]:
    made = connect(settings)
    yield made
    made.dispose()


def columns(c: Connection) -> dict[tuple[str, str], tuple[str, bool]]:
    """(table, column) → (type, whether an insert may leave it out); of the data schema."""
    rows = c.execute(
        text("""
            SELECT table_name, column_name, udt_name,
                is_nullable = 'YES' OR column_default IS NOT NULL OR is_identity = 'YES' AS optional
            FROM information_schema.columns
            WHERE table_schema = 'monitor_data' AND table_name <> 'alembic_version'
        """)
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def objects(c: Connection) -> set[str]:
    """Everything that a migration could leave behind."""
    return set(
        c.scalars(
            text("""
                SELECT nspname || '.' || relname FROM pg_class
                JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE nspname LIKE 'monitor%' AND relname NOT LIKE 'alembic%'
            """)
        )
    )


def test_from_empty_to_head(settings: PostgresSettings, engine: Engine) -> None:
    with pytest.raises(SchemaError, match="no schema yet") as refused:
        require_schema(engine)
    assert "monitor migrate" in refused.value.hint
    migrate(settings)
    require_schema(engine)
    assert current_revision(engine) == REVISIONS[-1]
    migrate(settings)  # nothing to do


def test_partitions_are_there_after_a_migration(settings: PostgresSettings, engine: Engine) -> None:
    migrate(settings)
    with engine.connect() as c:
        made = c.scalar(text("SELECT count(*) FROM pg_class WHERE relname ~ '^scores_p[0-9]{8}$'"))
    assert made == settings.partitions_ahead_days + 2


def test_models_equal_the_migrated_schema(database: Engine) -> None:
    with database.connect() as c:
        context = MigrationContext.configure(
            c,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == DATA_SCHEMA,
                "version_table_schema": DATA_SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_the_comparison_sees_a_difference(database: Engine) -> None:
    with database.connect() as c:
        c.execute(text("ALTER TABLE monitor_data.detectors DROP COLUMN steps"))
        c.execute(text("CREATE TABLE monitor_data.stray (n int)"))
        context = MigrationContext.configure(
            c,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == DATA_SCHEMA,
                "version_table_schema": DATA_SCHEMA,
            },
        )
        found = {difference[0] for difference in compare_metadata(context, metadata)}
    assert found == {"add_column", "remove_table"}


def test_primary_keys_and_checks_equal_the_models(database: Engine) -> None:
    """Autogenerate looks at neither."""
    wanted = {
        (table.name, constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if constraint.name
    }
    with database.connect() as c:
        there = {
            (row[0], row[1])
            for row in c.execute(
                text("""
                    SELECT relname, conname FROM pg_constraint
                    JOIN pg_class ON pg_class.oid = conrelid
                    JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE nspname = 'monitor_data' AND contype <> 'n'
                        AND relname <> 'alembic_version'
                """)
            )
        }
    assert there == wanted


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_revision_goes_down_and_up_again(
    settings: PostgresSettings, engine: Engine, revision: str
) -> None:
    migrate(settings, revision)
    with engine.connect() as c:
        before = objects(c)
    migrate(settings, "-1")
    below = REVISIONS[REVISIONS.index(revision) - 1] if revision != REVISIONS[0] else None
    assert current_revision(engine) == below
    if below:
        with pytest.raises(SchemaError, match=f"at revision {below}"):
            require_schema(engine)
    migrate(settings, "+1")
    with engine.connect() as c:
        assert objects(c) == before


def test_down_to_nothing_leaves_nothing(settings: PostgresSettings, engine: Engine) -> None:
    migrate(settings)
    migrate(settings, "base")
    assert current_revision(engine) is None
    with engine.connect() as c:
        assert objects(c) == set()
    migrate(settings)


def test_data_survives_down_one_and_up_one(settings: PostgresSettings, engine: Engine) -> None:
    migrate(settings)
    with engine.begin() as c:
        c.execute(text("INSERT INTO monitor_data.packs VALUES ('p', 'name', '{}', now())"))
    migrate(settings, "-1")
    migrate(settings)
    with engine.connect() as c:
        assert c.scalar(text("SELECT pack_id FROM monitor_data.packs")) == "p"


@pytest.mark.parametrize(("old", "new"), list(itertools.pairwise(REVISIONS)))
def test_the_previous_release_runs_on_the_new_schema(
    settings: PostgresSettings, engine: Engine, old: str, new: str
) -> None:
    """Expand, never break: what the old release inserts, with the columns that it knows, still goes in.

    This covers columns (none gone, none retyped, new ones optional) and inserts into every table. It
    does not cover the meaning of values.
    """
    migrate(settings, old)
    with engine.connect() as c:
        before = columns(c)
    known = MetaData()
    known.reflect(engine, schema=DATA_SCHEMA)
    migrate(settings, new)
    with engine.begin() as c:
        after = columns(c)
        for column, (kind, _) in before.items():
            assert after[column][0] == kind, f"{column} changed its type or went"
        for column in set(after) - set(before):
            table_is_new = not any(table == column[0] for table, _ in before)
            assert table_is_new or after[column][1], f"{column} is new and not optional"
        for table in known.sorted_tables:
            if table.name != "alembic_version":
                c.execute(table.insert().values(_sample(table.name, dict(before))))


SAMPLES = {
    "int2": 1,
    "int4": 1,
    "int8": 1,
    "float4": 1.0,
    "float8": 1.0,
    "bool": True,
    "bytea": b"x",
    "jsonb": {},
    "timestamptz": "2026-03-14T12:00:00Z",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "_text": ["all"],
    "_int4": [1],
    "_int8": [1],
    "_float4": [1.0],
    "_float8": [1.0],
}
STATES = {
    "baselines": {"status": "draft"},
    "alerts": {"state": "firing"},
    "deliveries": {"state": "waiting"},
}
MADE_BY_THE_SERVER = {
    ("lineages", "lineage_id"),
    ("adjusted_lineages", "adjusted_id"),
    ("canary_runs", "run_id"),
    ("deliveries", "delivery_id"),
    ("pack_features", "sign"),
}


def _sample(table: str, known: dict[tuple[str, str], tuple[str, bool]]) -> dict[str, object]:
    row: dict[str, object] = {
        column: SAMPLES.get(kind, "x")
        for (name, column), (kind, _) in known.items()
        if name == table and (table, column) not in MADE_BY_THE_SERVER
    }
    return row | STATES.get(table, {})


def test_a_newer_schema_is_accepted_and_not_migrated(
    settings: PostgresSettings, engine: Engine
) -> None:
    """The previous release, while the next one is being rolled out."""
    migrate(settings)
    with engine.begin() as c:
        c.execute(text("UPDATE monitor_data.alembic_version SET version_num = '9999'"))
    require_schema(engine)
    with pytest.raises(SchemaError, match="9999"):
        migrate(settings)


def test_migrators_that_start_together_take_turns(
    settings: PostgresSettings, engine: Engine
) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            migrate(settings)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    require_schema(engine)


def test_a_lock_that_cannot_be_had_changes_nothing(
    settings: PostgresSettings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT_SECONDS", 1)
    migrate(settings)
    with engine.begin() as c:
        c.execute(text("SELECT * FROM monitor.alerts"))
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            migrate(settings, "base")
    assert current_revision(engine) == REVISIONS[-1]
    migrate(settings, "base")


def test_no_reader_role_when_none_is_wanted(postgres_url: str) -> None:
    migrate(PostgresSettings(url=postgres_url, reader_role=None))


def test_a_user_who_may_not_make_roles_migrates_all_the_same(
    settings: PostgresSettings, engine: Engine
) -> None:
    with engine.begin() as c:
        c.execute(text("DROP ROLE IF EXISTS monitor_owner_test"))
        c.execute(text("CREATE ROLE monitor_owner_test LOGIN"))
        c.execute(text(f"GRANT CREATE ON DATABASE {engine.url.database} TO monitor_owner_test"))
    url = engine.url.set(username="monitor_owner_test").render_as_string(hide_password=False)
    limited = PostgresSettings(url=url, reader_role="a_role_that_is_missing")
    try:
        migrate(limited)
        require_schema(engine)
    finally:
        with engine.begin() as c:
            c.execute(text("DROP OWNED BY monitor_owner_test CASCADE"))
            c.execute(text("DROP ROLE monitor_owner_test"))


@pytest.mark.slow
def test_migrate_works_from_an_installed_wheel(settings: PostgresSettings, tmp_path: Path) -> None:
    """The migrations travel in the wheel, and are found beside the package."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    for name in ("README.md", "LICENSE"):
        (source / name).touch()
    for name in ("monitor", "migrations"):
        shutil.copytree(REPOSITORY / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=source,
        check=True,
        capture_output=True,
    )
    site = tmp_path / "site"
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = (
        "import sys, monitor.store.database as store; from monitor.settings import PostgresSettings;"
        f"assert str(store.MIGRATIONS).startswith({str(site)!r}), store.MIGRATIONS;"
        "settings = PostgresSettings(url=sys.argv[1]); store.migrate(settings);"
        "store.require_schema(store.connect(settings))"
    )
    subprocess.run(
        [sys.executable, "-c", program, settings.url.get_secret_value()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        check=True,
    )
