"""Partitions are made ahead, filled up from DEFAULT, and dropped table by table."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from monitor.settings import PostgresSettings
from monitor.store import partitions
from monitor.store.buckets import roll_up
from monitor.store.database import transaction
from monitor.store.partitions import drop_partitions, ensure_partitions, mend_kept_from
from monitor.store.windows import read_windows
from tests.store.builders import (
    NOON,
    PACK,
    chunk,
    keep,
    known_pack,
    records_until,
    scored,
    series,
)

DAY = timedelta(days=1)
TODAY = NOON.date()


@pytest.fixture(autouse=True)
def _pack(database: Engine) -> None:
    known_pack(database)


def ensure(database: Engine, today: date = TODAY, ahead: int = 2) -> tuple[str, ...]:
    with transaction(database) as c:
        return ensure_partitions(c, today, ahead)


def where_scores_lie(database: Engine) -> dict[str, int]:
    with transaction(database) as c:
        rows = c.execute(
            text("""
                SELECT replace(tableoid::regclass::text, 'monitor_partitions.', '') AS name,
                    count(*) AS n
                FROM monitor_data.scores GROUP BY 1
            """)
        ).all()
    return {row.name: row.n for row in rows}


def test_days_are_made_ahead_once(database: Engine) -> None:
    made = ensure(database)
    assert [name for name in made if name.startswith("scores_")] == [
        f"scores_p{day}" for day in ("20260313", "20260314", "20260315", "20260316")
    ]
    assert [name for name in made if name.startswith("drifts_")] == ["drifts_p202603"]
    assert ensure(database) == ()
    keep(database, chunk(series(3), start=0, end=3))
    assert where_scores_lie(database) == {"scores_p20260314": 3}


def test_rows_in_default_move_into_their_day(database: Engine) -> None:
    """A partition cannot be attached over rows that DEFAULT holds: they are moved first."""
    keep(database, chunk(series(5), start=0, end=5))
    assert where_scores_lie(database) == {"scores_default": 5}
    ensure(database)
    assert where_scores_lie(database) == {"scores_p20260314": 5}
    keep(database, chunk(series(5, start=5), start=5, end=10))
    assert where_scores_lie(database) == {"scores_p20260314": 10}


def test_days_that_only_default_knows_get_a_partition_too(database: Engine) -> None:
    old, absurd = NOON - 20 * DAY, datetime(1971, 1, 1, tzinfo=UTC)
    rows = [scored(0, [1, 1, 1], at=old), scored(1, [1, 1, 1], at=absurd)]
    keep(database, chunk(rows, start=0, end=2))
    ensure(database)
    assert where_scores_lie(database) == {"scores_p20260222": 1, "scores_default": 1}


def test_year_and_month_ends(database: Engine) -> None:
    made = ensure(database, date(2027, 12, 31), 2)
    assert {name for name in made if name.startswith("drifts_")} == {
        *("drifts_p202712", "drifts_p202801")
    }
    assert "scores_p20280101" in made


def test_indexes_of_a_partition_belong_to_the_table(database: Engine) -> None:
    ensure(database)
    with transaction(database) as c:
        loose = c.scalars(
            text("""
                SELECT indexrelid::regclass::text FROM pg_index
                JOIN pg_class ON pg_class.oid = indrelid
                WHERE relispartition AND NOT EXISTS (
                    SELECT FROM pg_inherits WHERE inhrelid = indexrelid)
            """)
        ).all()
    assert loose == []


def test_concurrent_makers_take_turns(database: Engine) -> None:
    made: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda: made.append(ensure(database))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, made))[:3] == [0, 0, 0]


def test_writers_go_on_while_partitions_are_made(database: Engine) -> None:
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for step in range(15):
                keep(database, chunk(series(3, start=3 * step), start=3 * step, end=3 * step + 3))
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for ahead in range(1, 6):
        ensure(database, ahead=ahead)
    writer.join()
    # A row that was on its way to DEFAULT is refused with a retry, never misplaced.
    assert all(type(failure).__name__ == "DatabaseUnavailable" for failure in failures)
    with transaction(database) as c:
        misplaced = c.scalar(text("SELECT count(*) FROM monitor_partitions.scores_default"))
    assert misplaced == 0


def test_retention_is_by_table(database: Engine) -> None:
    ensure(database)
    keep(database, chunk(series(5), start=0, end=5))
    settings = PostgresSettings(keep_scores=2 * DAY, keep_dead_letters=3 * DAY)
    with transaction(database) as c:
        assert drop_partitions(c, settings, NOON) == ()
    for days in (2, 3):
        records_until(database, NOON + days * DAY)
    with transaction(database) as c:
        assert drop_partitions(c, settings, NOON + 2 * DAY) == ("scores_p20260313",)
        dropped = drop_partitions(c, settings, NOON + 3 * DAY)
    assert dropped == ("scores_p20260314", "dead_letters_p20260313")
    assert where_scores_lie(database) == {}
    with transaction(database) as c:
        assert c.scalar(text("SELECT count(*) FROM monitor_data.buckets"))


def test_a_day_is_kept_until_all_of_it_is_too_old(database: Engine) -> None:
    ensure(database)
    settings = PostgresSettings(keep_scores=DAY)
    for moment in (datetime(2026, 3, 15, 23, 59, tzinfo=UTC), datetime(2026, 3, 16, tzinfo=UTC)):
        records_until(database, moment)
    with transaction(database) as c:
        early = drop_partitions(c, settings, datetime(2026, 3, 15, 23, 59, tzinfo=UTC))
        late = drop_partitions(c, settings, datetime(2026, 3, 16, 0, 0, tzinfo=UTC))
    assert "scores_p20260314" not in early
    assert "scores_p20260314" in late


def test_default_is_trimmed_on_both_sides(database: Engine) -> None:
    rows = [
        scored(0, [1, 1, 1], at=datetime(1971, 1, 1, tzinfo=UTC)),
        scored(1, [1, 1, 1], at=datetime(9000, 1, 1, tzinfo=UTC)),
        scored(2, [1, 1, 1], at=NOON + 5 * DAY),
    ]
    keep(database, chunk(rows, start=0, end=3))
    records_until(database, NOON)
    with transaction(database) as c:
        drop_partitions(c, PostgresSettings(), NOON)
        kept = c.scalars(text("SELECT record_offset FROM monitor_data.scores")).all()
    assert kept == [2]


def test_fine_buckets_wait_for_their_roll_up(database: Engine) -> None:
    ensure(database)
    keep(database, chunk(series(5), start=0, end=5))
    settings = PostgresSettings(keep_fine_buckets=2 * DAY, keep_scores=DAY)
    records_until(database, NOON + 9 * DAY)
    with transaction(database) as c:
        dropped = drop_partitions(c, settings, NOON + 9 * DAY)
    assert "scores_p20260314" in dropped
    assert not any(name.startswith("buckets_p") for name in dropped)
    with transaction(database) as c:
        assert roll_up(c, NOON + 9 * DAY) == 1
        dropped = drop_partitions(c, settings, NOON + 9 * DAY)
    assert "buckets_p20260314" in dropped


def test_nothing_goes_that_the_newest_record_allows_to_stay(database: Engine) -> None:
    """A clock that is 50 days ahead."""
    ensure(database)
    keep(database, chunk(series(5), start=0, end=5))
    with transaction(database) as c:
        roll_up(c, NOON + DAY)
        dropped = drop_partitions(c, PostgresSettings(), NOON + 50 * DAY)
        assert dropped == ()
        assert c.scalar(text("SELECT count(*) FROM monitor_data.buckets"))
        kept_from = c.scalars(text("SELECT kept_from FROM monitor_data.retention")).all()
    assert max(kept_from) <= NOON


def test_retention_goes_by_steps(database: Engine) -> None:
    ensure(database, ahead=6)
    records_until(database, NOON + 30 * DAY)
    settings = PostgresSettings(keep_scores=DAY)

    def drop() -> list[str]:
        with transaction(database) as c:
            names = drop_partitions(c, settings, NOON + 30 * DAY)
        return [name for name in names if name.startswith("scores")]

    assert drop() == ["scores_p20260313", "scores_p20260314"]
    with transaction(database) as c:
        border = c.scalar(
            text("SELECT kept_from FROM monitor_data.retention WHERE table_name = 'scores'")
        )
    assert border == datetime(2026, 3, 15, tzinfo=UTC), (
        "what is kept from is what was dropped up to"
    )
    assert drop() == ["scores_p20260315", "scores_p20260316"]


def test_a_border_in_the_future_is_taken_back(database: Engine) -> None:
    """As a watcher 50 days ahead once left it: windows came out short for good."""
    ensure(database)
    keep(database, chunk(series(5), start=0, end=5))
    now = NOON + timedelta(minutes=10)
    with transaction(database) as c:
        c.execute(
            text("""
                INSERT INTO monitor_data.retention
                SELECT name, :future FROM unnest(ARRAY['scores', 'buckets']) AS name
            """),
            {"future": NOON + 50 * DAY},
        )
        roll_up(c, NOON + 50 * DAY)  # by then these hours were late: their fine buckets went
    keep(database, chunk(series(5, start=5), start=5, end=10))
    with transaction(database) as c:
        mended = mend_kept_from(c, PostgresSettings(), now)
        assert set(mended) == {"scores", "buckets"}
        assert mended["buckets"] == NOON + timedelta(hours=1), (
            "the last hour that is told as a whole"
        )
        assert mend_kept_from(c, PostgresSettings(), now) == {}
    late = [scored(10, [1, 1, 1], at=NOON + timedelta(hours=2))]
    keep(database, chunk(late, start=10, end=11))
    with transaction(database) as c:
        roll_up(c, NOON + 5 * timedelta(hours=1))
        total = c.scalar(
            text(
                "SELECT sum(n) FROM monitor_data.buckets_hourly WHERE feature = 0 AND segment = 'all'"
            )
        )
        (window,) = read_windows(
            c, PACK, [(NOON, NOON + timedelta(hours=3))], segments=["all"], features=[0]
        )
    assert (total, window.n) == (11, 11)


COUNTED = {
    "scores": "SELECT count(*) FROM monitor_data.scores WHERE recorded_at >= :noon",
    "buckets": "SELECT sum(n) FROM monitor_data.buckets WHERE feature = 0 AND bucket_start >= :noon",
}


@pytest.mark.parametrize("before", [0, 8], ids=["planned anew", "planned before"])
@pytest.mark.parametrize("table", COUNTED)
def test_a_reader_sees_all_or_none_while_rows_leave_default(
    database: Engine, table: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 200 were counted for a moment; a statement that ran before is prepared, with its plan."""
    keep(database, chunk(series(200), start=0, end=200))
    ours = tuple(one for one in partitions.PARTITIONED if one.table == table)
    monkeypatch.setattr(partitions, "PARTITIONED", ours)
    seen: list[int] = []

    def count(c: Connection) -> int:
        return int(c.scalar(text(COUNTED[table]), {"noon": NOON}) or 0)

    def look() -> None:
        with database.connect() as c:
            for _ in range(before):
                count(c)
                c.rollback()
            ready.set()
            go.wait(10)
            seen.append(count(c))

    ready, go = threading.Event(), threading.Event()
    reader = threading.Thread(target=look)
    reader.start()
    assert ready.wait(20)
    with transaction(database) as c:
        assert ensure_partitions(c, TODAY, 1)
        go.set()
        reader.join(1.0)
        assert reader.is_alive(), "it waits for what is on its way"
    reader.join(20)
    assert seen == [200]
