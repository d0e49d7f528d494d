"""Lag and watermark: what is known of a partition, and what the view says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, text

from monitor.store.chunks import advance_offsets
from monitor.store.database import transaction
from monitor.store.progress import FRESH, IN_USE, ends_not_told, keep_log_ends, progress_of
from monitor.store.reading import begin_partitions
from monitor.values.progress import LogEnd, Progress
from monitor.values.prompts import OffsetSpan

SECOND = timedelta(seconds=1)
NOW = datetime.now(UTC).replace(microsecond=0)


def asked(
    database: Engine,
    end: int,
    *,
    partition: int = 0,
    at: datetime = NOW,
    begins_at: int = 0,
    worker: str = "w",
    group: str = "g",
    topic: str = "prompts",
    still_at: datetime | None = None,
) -> None:
    told = LogEnd(topic=topic, partition=partition, begins_at=begins_at, log_end=end, asked_at=at)
    with transaction(database) as c:
        keep_log_ends(c, group, worker, [told], still_at or at)


def read(
    database: Engine,
    start: int,
    end: int,
    *,
    partition: int = 0,
    newest: datetime | None = None,
    log_end: int | None = None,
) -> None:
    span = OffsetSpan(topic="prompts", partition=partition, start=start, end=end, log_end=log_end)
    with transaction(database) as c:
        advance_offsets(c, "g", "w", [span], {("prompts", partition): newest} if newest else {})


def known(database: Engine, now: datetime = NOW, group: str | None = "g") -> dict[int, Progress]:
    with transaction(database) as c:
        return {one.partition: one for one in progress_of(c, now, group)}


def shown(database: Engine) -> dict[int, Any]:
    with transaction(database) as c:
        rows = c.execute(text("SELECT *, now() AS at FROM monitor.ingest_lag")).all()
    return {row.partition: row for row in rows}


def test_a_partition_read_to_its_end_is_up_to_date_while_somebody_asks(database: Engine) -> None:
    read(database, 0, 50, newest=NOW - 600 * SECOND, log_end=50)
    asked(database, 50, at=NOW - 10 * SECOND)
    one = known(database)[0]
    assert (one.lag, one.watermark, one.delay(NOW)) == (0, NOW, 0.0)
    later = NOW + FRESH
    assert known(database, later)[0].watermark == NOW - 10 * SECOND, "as of the last question"
    assert known(database, later)[0].delay(later) == FRESH.total_seconds() + 10


def test_behind_the_watermark_is_the_newest_record_that_is_stored(database: Engine) -> None:
    read(database, 0, 50, newest=NOW - 600 * SECOND, log_end=80)
    asked(database, 80)
    assert known(database)[0].lag == 30
    assert known(database)[0].watermark == NOW - 600 * SECOND
    read(database, 50, 60)  # a chunk without a record tells no time
    assert known(database)[0].watermark == NOW - 600 * SECOND
    assert known(database)[0].lag == 20


def test_what_comes_to_an_empty_partition_waits_since_it_came(database: Engine) -> None:
    asked(database, 0, at=NOW - 86_400 * SECOND)
    asked(database, 0, at=NOW - 15 * SECOND)
    asked(database, 1, at=NOW)
    assert known(database)[0].watermark is None
    assert known(database)[0].delay(NOW) == 15


def test_a_partition_from_which_nothing_was_read(database: Engine) -> None:
    asked(database, 70, begins_at=40, at=NOW - 5 * SECOND)
    asked(database, 7, begins_at=7, partition=1, at=NOW - 5 * SECOND)
    waiting, empty = known(database)[0], known(database)[1]
    assert (waiting.lag, waiting.watermark, waiting.delay(NOW)) == (30, None, 5.0)
    assert (empty.lag, empty.watermark) == (0, NOW)


def test_of_a_log_whose_end_nobody_told_there_is_no_lag(database: Engine) -> None:
    with transaction(database) as c:
        begin_partitions(c, "g", "w", {("prompts", 0): 40})
    one = shown(database)[0]
    assert (one.next_offset, one.log_end, one.lag, one.watermark, one.delay) == (40, *[None] * 4)
    assert known(database) == {}
    with transaction(database) as c:
        assert (ends_not_told(c, "g"), ends_not_told(c, "another")) == (1, 0)
    read(database, 40, 45)  # a chunk may come before the first answer
    assert shown(database)[0].lag is None
    asked(database, 70, begins_at=40)
    assert (shown(database)[0].lag, known(database)[0].lag) == (25, 25)


def test_a_clock_ahead_is_no_progress_beyond_now(database: Engine) -> None:
    read(database, 0, 50, newest=NOW + 3_600 * SECOND, log_end=80)
    asked(database, 80)
    assert known(database)[0].watermark == NOW


def test_an_older_answer_changes_nothing(database: Engine) -> None:
    asked(database, 80, worker="new")
    asked(database, 60, at=NOW - SECOND, worker="old")
    assert known(database)[0].lag == 80
    assert shown(database)[0].owner == "new"


def test_a_topic_that_is_not_read_any_more_holds_nothing_back(database: Engine) -> None:
    asked(database, 80, at=NOW - 2 * IN_USE, partition=0)
    asked(database, 5, begins_at=5, partition=1)
    asked(database, 9, at=NOW - 2 * IN_USE, partition=2, group="another")
    assert set(known(database)) == {1}
    assert known(database, group="another")[2].lag == 9, "its whole group is away: it counts"


def test_partitions_whose_broker_is_away_stay_in_use(database: Engine) -> None:
    asked(database, 80, at=NOW - 10 * IN_USE, still_at=NOW, partition=0)
    asked(database, 5, begins_at=5, partition=1)
    assert set(known(database)) == {0, 1}


def test_offsets_of_a_release_that_asked_nothing_tell_a_lag_and_no_delay(
    database: Engine,
) -> None:
    read(database, 0, 50, log_end=80)
    assert known(database)[0].lag == 30
    assert known(database)[0].delay(NOW) is None
    assert shown(database)[0].delay is None


def test_the_view_says_what_the_watcher_sees(database: Engine) -> None:
    read(database, 0, 50, newest=NOW - 600 * SECOND, log_end=80)
    read(database, 0, 20, partition=1, newest=NOW - 300 * SECOND, log_end=20)
    read(database, 0, 20, partition=2, newest=NOW - 300 * SECOND, log_end=20)
    read(database, 0, 20, partition=4, newest=NOW + 300 * SECOND, log_end=90)
    for partition, end in {0: 85, 1: 20, 3: 4, 4: 90}.items():
        asked(database, end, partition=partition)
    asked(database, 20, partition=2, at=NOW - FRESH - 9 * SECOND, still_at=NOW)
    rows = shown(database)
    seen = known(database, rows[0].at)
    assert set(rows) == set(seen) == {0, 1, 2, 3, 4}
    for partition, row in rows.items():
        one = seen[partition]
        assert (row.lag, row.asked_at, row.watermark) == (one.lag, one.asked_at, one.watermark)
        assert row.delay.total_seconds() == one.delay(row.at)
