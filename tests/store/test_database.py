"""Engines and translated errors."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import Engine, make_url, text

from monitor.demo.services import Postgres
from monitor.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    SchemaError,
    StopLoudly,
)
from monitor.settings import PostgresSettings
from monitor.store.database import connect, require_schema, transaction


@pytest.mark.parametrize("url", ["", "no url", "mysql://host/name", "postgresql+asyncpg://host/x"])
def test_wrong_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"postgres\.url"):
        connect(PostgresSettings(url=url))


@pytest.mark.parametrize("driver", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_the_driver_is_taken(migrated_url: str, driver: str) -> None:
    url = make_url(migrated_url).set(drivername=driver).render_as_string(hide_password=False)
    engine = connect(PostgresSettings(url=url))
    with transaction(engine) as c:
        assert c.scalar(text("SHOW timezone")) == "UTC"
        assert c.scalar(text("SHOW statement_timeout")) == "1min"
    engine.dispose()


def test_looking_at_the_schema_writes_no_line(
    database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Every probe of `/readyz` looks, so each line would stand in the log thousands of times a day."""
    caplog.set_level(logging.DEBUG)
    require_schema(database)
    assert [record.getMessage() for record in caplog.records] == []


def test_no_server_asks_for_a_retry_and_shows_no_password() -> None:
    engine = connect(PostgresSettings(url="postgresql://ada:secret@127.0.0.1:1/none"))
    with pytest.raises(DatabaseUnavailable) as raised, transaction(engine):
        pass
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("who", "where", "mend"),
    [
        ("ada:wrong", "monitor", "Mend the user or the password"),
        ("eve", "monitor", "Let this host and user in in pg_hba.conf"),
        ("nobody", "monitor", "Mend the user in postgres.url, or create that role"),
        ("postgres", "password", "Create the database, or mend its name"),
    ],
)
def test_a_log_in_that_fails_is_told_its_own_mend(
    restartable_postgres: Postgres, who: str, where: str, mend: str
) -> None:
    restartable_postgres.create_database("monitor")
    hba = restartable_postgres.folder / "data" / "pg_hba.conf"
    ways = ("ada all scram-sha-256", "eve all reject")
    rules = [f"host all {user} {host} {way}" for user, host, way in map(str.split, ways)]
    hba.write_text("\n".join([*rules, hba.read_text(encoding="utf-8")]), encoding="utf-8")
    owner = connect(PostgresSettings(url=restartable_postgres.url))
    with transaction(owner) as c:
        c.execute(text("CREATE ROLE ada LOGIN PASSWORD 'right'"))
        c.execute(text("CREATE ROLE eve LOGIN"))
        c.execute(text("SELECT pg_reload_conf()"))
    owner.dispose()
    url = f"postgresql://{who}@127.0.0.1:{restartable_postgres.port}/{where}"
    engine = connect(PostgresSettings(url=url))
    with pytest.raises(DatabaseUnavailable) as raised, transaction(engine):
        pass
    assert raised.value.hint.startswith(mend), raised.value
    engine.dispose()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "password.invalid", "pg_hba.conf.invalid", "127.0.0.1:1/password"]
)
def test_words_of_what_was_asked_for_are_no_words_of_the_server(host: str) -> None:
    engine = connect(PostgresSettings(url=f"postgresql://ada@{host}"))
    with pytest.raises(DatabaseUnavailable) as raised, transaction(engine):
        pass
    assert raised.value.hint.startswith("Mend host, port, user, password and database")


def test_statements_of_the_wrong_kind_are_told_apart(database: Engine) -> None:
    cases: list[tuple[str, type[Exception]]] = [
        ("SELECT * FROM monitor_data.no_such_table", SchemaError),
        ("SELECT no_such_column FROM monitor_data.packs", SchemaError),
        ("SELECT 1 / 0", StopLoudly),
        ("SELECT pg_sleep(5)", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '25006'; END $$", DatabaseUnavailable),
        ("DO $$ BEGIN RAISE SQLSTATE '42501'; END $$", ConfigurationError),
    ]
    for statement, expected in cases:
        with pytest.raises(expected), transaction(database) as c:
            c.execute(text("SET LOCAL statement_timeout = '200ms'"))
            c.execute(text(statement))


def test_values_of_a_row_never_stand_in_an_error(database: Engine) -> None:
    with pytest.raises(StopLoudly) as raised, transaction(database) as c:
        for _ in range(2):
            c.execute(
                text(
                    "INSERT INTO monitor_data.packs (pack_id, name, manifest)"
                    " VALUES ('private', 'private', '{}')"
                )
            )
    assert "private" not in str(raised.value)


def test_busy_pool_asks_for_a_retry(migrated_url: str) -> None:
    engine = connect(PostgresSettings(url=migrated_url, pool_size=1, connect_timeout=1))
    engine.pool._max_overflow = 0  # type: ignore[attr-defined]
    with (
        transaction(engine),
        pytest.raises(DatabaseUnavailable, match="no free"),
        transaction(engine),
    ):
        pass
    engine.dispose()


def test_engine_goes_on_after_a_restart_of_the_server(restartable_postgres: Postgres) -> None:
    engine = connect(PostgresSettings(url=restartable_postgres.url))
    with transaction(engine) as c:
        c.execute(text("SELECT 1"))
    restartable_postgres.kill()
    with pytest.raises(DatabaseUnavailable), transaction(engine) as c:
        c.execute(text("SELECT 1"))
    restartable_postgres.start()
    with transaction(engine) as c:
        assert c.scalar(text("SELECT 1")) == 1
    engine.dispose()
