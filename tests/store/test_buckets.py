"""Windows are exact at any time: before and after roll-ups, with late data, and after retention."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, text

from monitor.settings import PostgresSettings
from monitor.store import buckets
from monitor.store.buckets import add_buckets, roll_up
from monitor.store.chunks import store_chunk
from monitor.store.database import transaction
from monitor.store.packs import lineage_id_of
from monitor.store.partitions import drop_partitions, ensure_partitions
from monitor.store.windows import EVERY_SOURCE, new_buckets, read_windows
from monitor.values.drift import Window
from monitor.values.scores import SCORE_BINS, Bucket, ScoredPrompt
from tests.store.builders import (
    FEATURES,
    LINEAGE,
    NOON,
    PACK,
    buckets_of,
    chunk,
    histogram_of,
    keep,
    known_pack,
    records_until,
    scored,
    series,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _pack(database: Engine) -> None:
    known_pack(database)


def windows(database: Engine, *ends: tuple[datetime, datetime]) -> list[Window]:
    with transaction(database) as c:
        return read_windows(c, PACK, ends)


def rolled_up(database: Engine, now: datetime) -> int:
    with transaction(database) as c:
        return roll_up(c, now)


def assert_exact(
    database: Engine, rows: Sequence[ScoredPrompt], ends: Sequence[tuple[datetime, datetime]]
) -> None:
    """Every window is what the scores themselves give."""
    for start, end in ends:
        read = {(w.feature, w.segment): w for w in windows(database, (start, end))}
        expected: dict[tuple[int, str], list[float]] = {}
        for row in rows:
            if start <= row.recorded_at < end:
                for segment in row.segments:
                    for feature, score in enumerate(row.scores.tolist()):
                        if not np.isnan(score):
                            expected.setdefault((feature, segment), []).append(score)
        assert set(read) == set(expected), (start, end)
        for key, values in expected.items():
            assert read[key].n == len(values), (start, end, key)
            assert read[key].total == pytest.approx(sum(values), abs=1e-9)
            in_tail = FEATURES[key[0]].in_tail(np.array(values))
            assert read[key].tail_count == in_tail.sum()
            assert read[key].histogram.tolist() == histogram_of(values).tolist()


def some_ends(
    seed: int, first: datetime, minutes: int, count: int
) -> list[tuple[datetime, datetime]]:
    generator = np.random.default_rng(seed)
    ends = []
    for _ in range(count):
        a, b = sorted(generator.choice(minutes, size=2, replace=False).tolist())
        ends.append((first + a * MINUTE, first + b * MINUTE))
    return ends


def test_windows_are_exact_however_much_is_rolled_up(database: Engine) -> None:
    rows = series(600, step=timedelta(seconds=47), segments=("all", "route=/chat"))
    keep(database, chunk(rows, start=0, end=600))
    ends = [
        *some_ends(1, NOON - HOUR, 600, 12),
        (NOON, NOON + HOUR),
        (NOON + 59 * MINUTE, NOON + 61 * MINUTE),
        (NOON + 10 * MINUTE, NOON + 20 * MINUTE),
    ]
    assert_exact(database, rows, ends)
    for hours in (1, 3, 24):
        rolled_up(database, NOON + hours * HOUR)
        assert_exact(database, rows, ends)


def test_late_records_are_in_the_window_at_once_and_after_the_next_roll_up(
    database: Engine,
) -> None:
    rows = series(100, step=timedelta(seconds=60))
    keep(database, chunk(rows, start=0, end=100))
    assert rolled_up(database, NOON + DAY) == 2
    late = series(20, start=100, at=NOON + 5 * MINUTE, seed=1)
    keep(database, chunk(late, start=100, end=120))

    ends = [(NOON, NOON + 2 * HOUR), (NOON + 5 * MINUTE, NOON + 70 * MINUTE)]
    assert_exact(database, rows + late, ends)
    assert rolled_up(database, NOON + DAY) == 1
    assert_exact(database, rows + late, ends)


def test_roll_up_is_idempotent_and_leaves_the_running_hour(database: Engine) -> None:
    rows = series(100, step=timedelta(seconds=60))
    keep(database, chunk(rows, start=0, end=100))
    assert rolled_up(database, NOON + HOUR + 30 * MINUTE) == 1
    assert rolled_up(database, NOON + HOUR + 30 * MINUTE) == 0
    assert rolled_up(database, NOON + 2 * HOUR) == 1
    assert_exact(database, rows, [(NOON, NOON + 2 * HOUR)])


def test_roll_up_passes_over_hours_that_a_writer_holds(database: Engine) -> None:
    """Nothing waits, and nothing that is not committed yet is lost."""
    first, second = series(10), series(10, start=10, at=NOON + MINUTE, seed=2)
    keep(database, chunk(first, start=0, end=10))
    with transaction(database) as c:
        store_chunk(c, chunk(second, start=10, end=20))
        assert rolled_up(database, NOON + DAY) == 0
        assert_exact(database, first, [(NOON, NOON + HOUR)])
    assert_exact(database, first + second, [(NOON, NOON + HOUR)])
    assert rolled_up(database, NOON + DAY) == 1
    assert_exact(database, first + second, [(NOON, NOON + HOUR)])


def test_writer_that_comes_during_a_roll_up_touches_the_hour_anew(database: Engine) -> None:
    first, second = series(10), series(10, start=10, seed=2)
    keep(database, chunk(first, start=0, end=10))
    writer = threading.Thread(target=keep, args=(database, chunk(second, start=10, end=20)))
    with transaction(database) as c:
        assert roll_up(c, NOON + DAY) == 1
        writer.start()
        writer.join(0.3)
        assert writer.is_alive(), "the writer waits for the roll-up's row lock"
    writer.join(10)
    assert_exact(database, first + second, [(NOON, NOON + HOUR)])
    assert rolled_up(database, NOON + DAY) == 1
    assert_exact(database, first + second, [(NOON, NOON + HOUR)])


def test_a_record_later_than_its_fine_buckets_is_added_to_its_hour(database: Engine) -> None:
    """Retention dropped the minutes; the hour stays exact."""
    rows = series(100, step=timedelta(seconds=60))
    keep(database, chunk(rows, start=0, end=100))
    settings = PostgresSettings(keep_fine_buckets=timedelta(days=2))
    now = NOON + 10 * DAY
    records_until(database, now)
    with transaction(database) as c:
        drop_partitions(c, settings, now)
    assert_fine_buckets(database, some=True)  # they are not rolled up yet
    rolled_up(database, now)
    with transaction(database) as c:
        drop_partitions(c, settings, now)
    assert_fine_buckets(database, some=False)
    whole = [(NOON, NOON + 2 * HOUR), (NOON + HOUR, NOON + 2 * HOUR)]
    assert_exact(database, rows, whole)

    for turn in range(2):
        late = series(5, start=100 + 5 * turn, at=NOON + 3 * MINUTE, seed=turn)
        keep(database, chunk(late, start=100 + 5 * turn, end=105 + 5 * turn))
        rows += late
        with transaction(database) as c:
            ensure_partitions(c, now.date(), 1)
        assert_exact(database, rows, whole)
        assert rolled_up(database, now) == 1
        assert_fine_buckets(database, some=False)
        assert_exact(database, rows, whole)


def assert_fine_buckets(database: Engine, *, some: bool) -> None:
    with transaction(database) as c:
        found = c.scalar(text("SELECT count(*) FROM monitor_data.buckets"))
    assert bool(found) == some


def test_a_long_backlog_is_rolled_up_in_several_calls(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "HOURS_A_CALL", 4)
    rows = series(10, step=HOUR)
    keep(database, chunk(rows, start=0, end=10))
    assert [rolled_up(database, NOON + DAY) for _ in range(4)] == [4, 4, 2, 0]
    assert_exact(database, rows, [(NOON, NOON + DAY)])


def test_windows_can_be_of_some_features_and_segments(database: Engine) -> None:
    rows = [scored(0, [1, 2, 3], segments=("all", "route=/a", "route=/b"))]
    keep(database, chunk(rows, start=0, end=1))
    with transaction(database) as c:
        read = read_windows(
            c, PACK, [(NOON, NOON + MINUTE)], features=[2, 0], segments=["route=/a", "all"]
        )
        none = read_windows(c, "another pack", [(NOON, NOON + MINUTE)])
    assert [(w.feature, w.segment) for w in read] == [
        *((0, "all"), (0, "route=/a"), (2, "all"), (2, "route=/a"))
    ]
    assert none == []


def test_several_windows_come_in_the_order_asked_for(database: Engine) -> None:
    keep(database, chunk(series(30, step=MINUTE), start=0, end=30))
    ends = [(NOON + 20 * MINUTE, NOON + 30 * MINUTE), (NOON, NOON + 30 * MINUTE)]
    read = [w for w in windows(database, *ends) if w.feature == 0]
    assert [(w.start, w.end) for w in read] == ends
    assert [w.n for w in read] == [10, 30]


def test_new_buckets_are_merged_over_partitions_and_begin_after_the_mark(
    database: Engine,
) -> None:
    rows = series(60, step=timedelta(seconds=10))
    others = series(60, step=timedelta(seconds=10), partition=1, seed=5)
    keep(
        database,
        chunk(rows, start=0, end=60),
        chunk(others, start=0, end=60, partition=1),
    )
    with transaction(database) as c:
        read = new_buckets(c, PACK, NOON, NOON + 9 * MINUTE, features=[0])
    assert [b.bucket_start for b in read] == [NOON + step * MINUTE for step in range(1, 9)]
    assert {b.n for b in read} == {12}
    assert {b.source for b in read} == {EVERY_SOURCE}


def test_buckets_are_added_whatever_their_order(database: Engine) -> None:
    given = list(buckets_of(series(40)))
    with transaction(database) as c:
        lineage = lineage_id_of(c, LINEAGE)
        add_buckets(c, lineage, reversed(given))
        add_buckets(c, lineage, given)
        add_buckets(c, lineage, [])
        total = c.scalar(text("SELECT sum(n) FROM monitor_data.buckets"))
    assert total == 2 * sum(bucket.n for bucket in given)


def test_histograms_larger_than_one_bin_count_survive(database: Engine) -> None:
    full = Bucket(
        bucket_start=NOON,
        bucket_seconds=60,
        feature=0,
        segment="all",
        source="t/0",
        n=SCORE_BINS * 1_000_000,
        total=1.5,
        total_squares=2.5,
        histogram=np.full(SCORE_BINS, 1_000_000, dtype=np.int64),
        tail_count=7,
    )
    with transaction(database) as c:
        lineage = lineage_id_of(c, LINEAGE)
        for _ in range(3):
            add_buckets(c, lineage, [full])
    (window,) = windows(database, (NOON, NOON + HOUR))
    assert window.histogram.tolist() == [3_000_000] * SCORE_BINS
    assert (window.total, window.total_squares, window.tail_count) == (4.5, 7.5, 21)


def test_segments_that_become_one_when_they_are_cut_are_added_up(database: Engine) -> None:
    """Nothing of either is lost: each figure is the sum, and each score keeps its bin."""
    long = "route=" + "x" * 300
    rows = [
        row
        for which in "ab"
        for row in series(
            20,
            start=20 * (which == "b"),
            seed=ord(which),
            segments=("all", long + which, f"route={which}"),
        )
    ]
    keep(database, chunk(rows, start=0, end=40))
    read = {(w.feature, w.segment): w for w in windows(database, (NOON, NOON + HOUR))}
    (cut,) = {segment for _, segment in read if segment.endswith("…")}
    assert len(read) == 4 * len(FEATURES)
    for feature in range(len(FEATURES)):
        joined, whole = read[feature, cut], read[feature, "all"]
        assert (joined.n, joined.tail_count) == (whole.n, whole.tail_count)
        assert joined.total == pytest.approx(whole.total)
        assert joined.total_squares == pytest.approx(whole.total_squares)
        assert joined.histogram.tolist() == whole.histogram.tolist()


def test_a_tail_that_one_of_two_does_not_know_is_not_known_of_their_sum(database: Engine) -> None:
    long = "route=" + "x" * 300
    of_all = [b for b in buckets_of(series(5)) if b.feature == 2]
    given = [
        replace(bucket, segment=long + which, tail_count=None if which == "b" else 1)
        for bucket in of_all
        for which in "ab"
    ]
    with transaction(database) as c:
        add_buckets(c, lineage_id_of(c, LINEAGE), given)
    (window,) = windows(database, (NOON, NOON + HOUR))
    assert (window.n, window.tail_count) == (2 * sum(b.n for b in of_all), None)
