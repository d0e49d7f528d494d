"""Exactly once: what a chunk leaves behind, and what a second writer of it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Engine, text

from monitor.errors import DatabaseUnavailable, StaleChunk, StopLoudly
from monitor.store.chunks import start_offsets, store_chunk
from monitor.store.database import transaction
from monitor.store.ingest import ingest_health
from monitor.store.packs import lineages_between, pack_features, pack_presence
from monitor.store.scores import copy_scores, strongest_prompts
from monitor.store.windows import read_windows
from monitor.values.prompts import DeadLetter, DeadReason, RecordKey
from tests.store.builders import (
    FEATURES,
    LINEAGE,
    NOON,
    PACK,
    chunk,
    keep,
    known_pack,
    scored,
    series,
)


def count(database: Engine, table: str) -> int:
    with transaction(database) as c:
        return int(c.scalar(text(f"SELECT count(*) FROM monitor_data.{table}")) or 0)


def letter(offset: int, *, detail: str = "not JSON", content: bytes | None = None) -> DeadLetter:
    return DeadLetter(
        key=RecordKey(topic="prompts", partition=0, offset=offset),
        recorded_at=NOON,
        reason=DeadReason.NOT_JSON,
        detail=detail,
        content=content,
    )


@pytest.fixture(autouse=True)
def _pack(database: Engine) -> None:
    known_pack(database)


def test_chunk_is_stored_whole(database: Engine) -> None:
    keep(database, chunk(series(50), start=0, end=51, letters=[letter(50)], log_end=60))

    assert count(database, "scores") == 50
    assert count(database, "dead_letters") == 1
    with transaction(database) as c:
        assert start_offsets(c, "monitor", [("prompts", 0), ("prompts", 1)]) == {("prompts", 0): 51}
        health = ingest_health(c, NOON - timedelta(hours=1), NOON + timedelta(hours=1))
    assert health.outcomes == {"scored": 50, "dead:not_json": 1}
    assert health.lag == {"prompts/0": 9}


def test_bucket_sums_equal_the_sums_of_the_scores(database: Engine) -> None:
    rows = series(400, segments=("all", "route=/chat"))
    for first in range(0, 400, 64):
        part = rows[first : first + 64]
        keep(database, chunk(part, start=first, end=first + len(part)))

    with transaction(database) as c:
        stored = c.execute(
            text("""
                SELECT ordinal, count(score) AS n, sum(score::float8) AS total,
                    sum(score::float8 ^ 2) AS squares,
                    count(*) FILTER (WHERE CASE ordinal WHEN 3 THEN -score ELSE score END > 3) AS tail
                FROM monitor_data.scores, unnest(scores) WITH ORDINALITY AS each (score, ordinal)
                GROUP BY ordinal ORDER BY ordinal
            """)
        ).all()
        windows = read_windows(
            c, PACK, [(NOON - timedelta(days=1), NOON + timedelta(days=1))], segments=["all"]
        )
    assert [w.feature for w in windows] == [0, 1, 2]
    for window, row in zip(windows, stored, strict=True):
        assert window.n == row.n == window.histogram.sum()
        assert window.total == pytest.approx(row.total, rel=1e-9)
        assert window.total_squares == pytest.approx(row.squares, rel=1e-9)
        assert window.tail_count == row.tail


def test_absent_scores_are_null_and_never_nan(database: Engine) -> None:
    keep(database, chunk([scored(0, [1.0, float("nan"), -2.0])], start=0, end=1))
    with transaction(database) as c:
        row = c.execute(text("SELECT scores, readings FROM monitor_data.scores")).one()
    assert row.scores == [1.0, None, -2.0]
    assert row.readings == [2.0, None, -4.0]


def test_a_chunk_that_was_stored_is_stale(database: Engine) -> None:
    result = chunk(series(3), start=10, end=13)
    keep(database, result)
    with pytest.raises(StaleChunk, match="starts at 10, stored up to 13"):
        keep(database, result)
    assert count(database, "scores") == 3


def test_a_gap_is_stale(database: Engine) -> None:
    keep(database, chunk(series(3), start=0, end=3))
    with pytest.raises(StaleChunk):
        keep(database, chunk(series(1, start=4), start=4, end=5))


def test_stale_span_undoes_the_other_spans_of_its_chunk(database: Engine) -> None:
    keep(database, chunk([], start=0, end=5, partition=1))
    first, second = chunk([], start=0, end=9), chunk([], start=0, end=9, partition=1)
    both = chunk(series(3), start=0, end=9)
    object.__setattr__(both, "spans", first.spans + second.spans)
    with pytest.raises(StaleChunk):
        keep(database, both)
    with transaction(database) as c:
        assert start_offsets(c, "monitor", [("prompts", 0), ("prompts", 1)]) == {("prompts", 1): 5}
    assert count(database, "scores") == 0
    assert count(database, "buckets") == 0


def test_groups_do_not_share_offsets(database: Engine) -> None:
    keep(database, chunk([], start=0, end=5), chunk([], start=3, end=4, group="other"))
    with transaction(database) as c:
        assert start_offsets(c, "other", [("prompts", 0)]) == {("prompts", 0): 4}


def test_zombie_waits_for_its_successor_and_loses(database: Engine) -> None:
    """Both hold the same chunk; the zombie's transaction is open while the successor commits."""
    result = chunk(series(5), start=0, end=5)
    outcome: list[BaseException | None] = []

    def zombie() -> None:
        try:
            keep(database, result)
            outcome.append(None)
        except StaleChunk as stale:
            outcome.append(stale)

    with transaction(database) as c:
        store_chunk(c, result)
        late = threading.Thread(target=zombie)
        late.start()
        late.join(0.5)
        assert late.is_alive()
    late.join(10)
    assert isinstance(outcome[0], StaleChunk)
    assert count(database, "scores") == 5
    with transaction(database) as c:
        (window, *_) = read_windows(c, PACK, [(NOON, NOON + timedelta(hours=1))])
    assert window.n == 5


def test_zombie_wins_when_its_successor_fails(database: Engine) -> None:
    """Whoever commits first is right; the other reads again from what is stored."""
    result = chunk(series(5), start=0, end=5)
    stored = threading.Event()

    def zombie() -> None:
        keep(database, result)
        stored.set()

    late = threading.Thread(target=zombie)
    with pytest.raises(RuntimeError), transaction(database) as c:
        store_chunk(c, result)
        late.start()
        raise RuntimeError("killed before its commit")
    late.join(10)
    assert stored.is_set()
    assert count(database, "scores") == 5


def test_two_workers_over_several_partitions_never_deadlock(database: Engine) -> None:
    """Same hour, same features, different partitions, spans in opposite orders."""
    failures: list[BaseException] = []

    def work(partition: int) -> None:
        try:
            for step in range(8):
                rows = series(
                    6, start=6 * step, partition=partition, segments=("all", f"route={step % 3}")
                )
                keep(
                    database,
                    chunk(rows, start=6 * step, end=6 * step + 6, partition=partition),
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(partition,)) for partition in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert count(database, "scores") == 4 * 8 * 6
    assert count(database, "lineages") == 1


HOSTILE: list[Callable[[], str]] = [
    lambda: "nul\0inside",
    lambda: "lone \ud800 surrogate",
    lambda: "x" * 100_000,
    lambda: "'; DROP TABLE monitor_data.scores; --",
    lambda: "%s %(name)s :name {brace}",
    lambda: "",
    lambda: "\U0001f600 汉字",
]


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_text_is_stored_and_never_loops(database: Engine, make: Callable[[], str]) -> None:
    hostile = make()
    row = scored(0, [1, 2, 3], segments=("all", hostile), prompt_id=hostile)
    keep(
        database,
        chunk([row], start=0, end=2, letters=[letter(1, detail=hostile, content=b"\0\xff")]),
    )
    with transaction(database) as c:
        kept = c.execute(text("SELECT prompt_id, segments FROM monitor_data.scores")).one()
        windows = read_windows(c, PACK, [(NOON, NOON + timedelta(minutes=1))], segments=[hostile])
    assert "\0" not in kept.prompt_id
    assert len(kept.prompt_id) <= 256
    assert {window.n for window in windows} == {1}


def test_segments_that_become_one_when_cut_are_added(database: Engine) -> None:
    long = "route=" + "x" * 300
    keep(
        database,
        chunk([scored(0, [1, 1, 1], segments=(long + "a", long + "b"))], start=0, end=1),
    )
    with transaction(database) as c:
        windows = read_windows(c, PACK, [(NOON, NOON + timedelta(minutes=1))])
    assert {window.n for window in windows} == {2}


@pytest.mark.parametrize(
    "at",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_absurd_times_land_in_the_default_partition(database: Engine, at: datetime) -> None:
    keep(database, chunk([scored(0, [1, 2, 3], at=at)], start=0, end=1))
    with transaction(database) as c:
        where = c.scalar(text("SELECT tableoid::regclass::text FROM monitor_data.scores"))
    assert where == "monitor_partitions.scores_default"


def test_unknown_pack_stops_loudly_instead_of_looping(database: Engine) -> None:
    stranger = type(LINEAGE)(**{**_fields(LINEAGE), "pack_id": "never registered"})
    with pytest.raises(StopLoudly, match="refused a statement"):
        keep(database, chunk(series(1), start=0, end=1, lineage=stranger))


def test_a_new_lineage_keeps_its_own_rows(database: Engine) -> None:
    other = type(LINEAGE)(**{**_fields(LINEAGE), "dtype": "bfloat16"})
    rows = series(4)
    keep(
        database,
        chunk(rows, start=0, end=4),
        chunk(rows, start=0, end=4, lineage=other, group="again"),
    )
    assert count(database, "scores") == 8
    with transaction(database) as c:
        lineages = lineages_between(c, PACK, NOON, NOON + timedelta(hours=1))
        windows = read_windows(c, PACK, [(NOON, NOON + timedelta(hours=1))])
    assert [lineage.dtype for lineage in lineages] == ["float32", "bfloat16"]
    assert windows[0].n == 8


def test_strongest_prompts(database: Engine) -> None:
    rows = [
        scored(
            number, [number, 0.0, -number], segments=("all", "route=/a") if number % 2 else ("all",)
        )
        for number in range(10)
    ]
    keep(database, chunk(rows, start=0, end=10))
    with transaction(database) as c:
        end = NOON + timedelta(minutes=1)
        features = pack_features(c, PACK)
        rising = strongest_prompts(c, PACK, features[0], "all", NOON, end, 3)
        falling = strongest_prompts(c, PACK, features[2], "route=/a", NOON, end, 2)
    assert [row["prompt_id"] for row in rising] == ["prompt-9", "prompt-8", "prompt-7"]
    assert [row["score"] for row in falling] == [-9.0, -7.0]
    assert falling[0]["reading"] == -18.0


def test_packs_are_registered_once(database: Engine) -> None:
    known_pack(database)
    with transaction(database) as c:
        features = pack_features(c, PACK)
        assert [pack.pack_id for pack in pack_presence(c, NOON)] == [PACK]
    assert [feature.name for feature in features] == [feature.name for feature in FEATURES]
    assert features[2].expected == "falls"
    assert features[0].tags == ("persona",)


def test_dead_database_asks_for_a_retry(database: Engine) -> None:
    with pytest.raises(DatabaseUnavailable), transaction(database) as c:
        store_chunk(c, chunk(series(3), start=0, end=3))
        victim = c.scalar(text("SELECT pg_backend_pid()"))
        with database.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": victim})
        store_chunk(c, chunk(series(3, start=3), start=3, end=6))
    assert count(database, "scores") == 0
    keep(database, chunk(series(3), start=0, end=3))
    assert count(database, "scores") == 3


def test_copy_on_a_dead_connection_asks_for_a_retry(database: Engine) -> None:
    """COPY runs on the driver's connection, outside of SQLAlchemy's own error handling."""
    with pytest.raises(DatabaseUnavailable), transaction(database) as c:
        victim = c.scalar(text("SELECT pg_backend_pid()"))
        with database.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": victim})
        copy_scores(c, 1, series(3))
    keep(database, chunk(series(3), start=0, end=3))


def test_readings_keep_their_precision(database: Engine) -> None:
    values = np.array([1 / 3, 1e-30, -123456.789], dtype=np.float32)
    keep(database, chunk([scored(0, values.tolist())], start=0, end=1))
    with transaction(database) as c:
        kept = c.scalar(text("SELECT scores FROM monitor_data.scores"))
    assert np.array(kept, dtype=np.float32).tolist() == values.tolist()


def _fields(lineage: object) -> dict[str, str]:
    return {name: getattr(lineage, name) for name in LINEAGE.__dataclass_fields__}
