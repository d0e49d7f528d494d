"""Migrations as processes that are ended in the middle, or started twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import yaml

from monitor.settings import PostgresSettings
from monitor.store.database import connect, require_schema

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SLOW = """
    CREATE FUNCTION public.rest() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(0.3); END $$;
    CREATE EVENT TRIGGER rests ON ddl_command_end WHEN TAG IN ('CREATE VIEW', 'CREATE TABLE')
        EXECUTE FUNCTION public.rest()
"""
"""A table takes as long as on a large database: there is a middle of the migration."""


class Database:
    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._config = folder / "monitor.yaml"
        self._config.write_text(yaml.safe_dump({"postgres": {"url": url}}))
        self._started: list[subprocess.Popen[str]] = []

    def migrator(self) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, "-m", "monitor", "migrate", "--config", str(self._config)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(started)
        return started

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True) as session:
            found = session.execute(statement)
            return found.fetchall() if found.description else []

    def resting(self) -> bool:
        """Whether a migration is in the middle of a statement."""
        return bool(
            self.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                " AND datname = current_database()"
            )
        )

    def close(self) -> None:
        for one in self._started:
            with suppress(ProcessLookupError):
                one.kill()
            one.communicate()


@pytest.fixture
def database(postgres_url: str, tmp_path: Path) -> Iterator[Database]:
    made = Database(postgres_url, tmp_path)
    yield made
    made.close()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_whole(database: Database) -> None:
    engine = connect(PostgresSettings(url=database.url))
    require_schema(engine)
    engine.dispose()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_migration_that_is_ended_in_the_middle_leaves_nothing_behind(
    database: Database, end: signal.Signals
) -> None:
    database.execute(SLOW)
    ended = database.migrator()
    wait_for(database.resting)
    ended.send_signal(end)
    assert ended.wait(10) == -end
    # The server notices when it has something to say to the one who is gone.
    tables = "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text LIKE 'monitor%'"
    wait_for(lambda: not database.resting())
    assert database.execute(tables) == []
    database.execute("DROP EVENT TRIGGER rests")
    again = database.migrator()
    assert again.wait(120) == 0, again.communicate()[0]
    assert_whole(database)


def test_who_waits_for_a_migration_that_is_killed_takes_its_place(database: Database) -> None:
    database.execute(SLOW)
    first = database.migrator()
    wait_for(database.resting)
    second = database.migrator()
    time.sleep(3)
    database.execute("DROP EVENT TRIGGER rests")
    first.kill()
    assert second.wait(120) == 0, second.communicate()[0]
    assert_whole(database)


def test_two_migrations_at_once_are_one_after_the_other(database: Database) -> None:
    both = [database.migrator() for _ in range(2)]
    for one in both:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0, said
        assert "Traceback" not in said
    assert_whole(database)
