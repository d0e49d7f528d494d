"""Revision 0003: tails of falling features that the releases before it counted are not used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from monitor.drift.baseline import tails_not_known
from monitor.settings import PostgresSettings
from monitor.store.baselines import load_baseline
from monitor.store.buckets import roll_up
from monitor.store.database import connect, migrate
from monitor.store.windows import new_buckets, read_windows
from monitor.values.scores import SCORE_BINS
from tests.store.builders import LINEAGE, NOON, PACK, chunk, keep, scored

RISES, FALLS = 0, 2
HOUR = timedelta(hours=1)
BINS = f"array_fill(1, ARRAY[{SCORE_BINS}])"


@pytest.fixture
def settings(postgres_url: str) -> PostgresSettings:
    return PostgresSettings(url=postgres_url)


@pytest.fixture
def engine(settings: PostgresSettings) -> Iterator[Engine]:
    made = connect(settings)
    yield made
    made.dispose()


def insert(c: Connection, table: str, **values: object) -> None:
    """A row by the statement of the release before: it names the columns that it knows."""
    given = {name: value for name, value in values.items() if name != "histogram"}
    columns, marks = ", ".join(given), ", ".join(f":{name}" for name in given)
    if "histogram" in values:
        columns, marks = columns + ", histogram", marks + f", {BINS}"
    c.execute(text(f"INSERT INTO monitor_data.{table} ({columns}) VALUES ({marks})"), given)


def before(c: Connection) -> None:
    """What the release before left: 98 of 100 prompts of a falling feature are tail to it."""
    insert(c, "packs", pack_id=PACK, name="small", manifest="{}")
    for ordinal, (name, expected) in enumerate(
        [("toxic", "rises"), ("deceptive", "rises"), ("assistant", "falls")]
    ):
        insert(
            c,
            "pack_features",
            pack_id=PACK,
            ordinal=ordinal,
            name=name,
            kind="direction",
            site=1,
            region="all",
            pooling="mean",
            tags=[],
            expected=expected,
            description="",
            tail_threshold=3.0,
        )
    insert(c, "lineages", **{name: getattr(LINEAGE, name) for name in LINEAGE.__dataclass_fields__})
    insert(
        c,
        "baselines",
        baseline_id="old",
        pack_id=PACK,
        name="old",
        status="approved",
        n=100,
        window_start=NOON - HOUR,
        window_end=NOON,
        fingerprint="{}",
        created_at=NOON,
    )
    for feature, tail in ((RISES, 1), (FALLS, 98)):
        sums = {"feature": feature, "segment": "all", "n": 100, "tail_count": tail, "total": 0.0}
        sums |= {"total_squares": 100.0, "histogram": True}
        add_old(c, feature, at=NOON)
        insert(c, "buckets_hourly", bucket_start=NOON - 2 * HOUR, lineage_id=1, **sums)
        insert(
            c, "baseline_windows", baseline_id="old", design_effect=1, tail_design_effect=1, **sums
        )
        insert(
            c,
            "drifts",
            evaluated_at=NOON,
            baseline_id="old",
            pack_id=PACK,
            segment="all",
            feature=("toxic", "deceptive", "assistant")[feature],
            window_name="1h",
            window_start=NOON - HOUR,
            window_end=NOON,
            n=100,
            baseline_n=100,
            pooled_baseline=False,
            shift=0.5,
            tail_rate=tail / 100,
            baseline_tail_rate=tail / 100,
            tail_ratio=1.0,
            tail_ratio_low=0.8,
            tail_ratio_high=1.2,
            cause="unknown",
        )


def add_old(c: Connection, feature: int, *, at: datetime) -> None:
    """What a worker of the release before does with a hundred prompts: insert, or add to the row."""
    c.execute(
        text(f"""
            INSERT INTO monitor_data.buckets AS kept
                (bucket_start, lineage_id, feature, segment, source, bucket_seconds,
                 n, tail_count, total, total_squares, histogram)
            VALUES (:at, 1, :feature, 'all', 'prompts/0', 60, 100, :tail, 0, 100, {BINS})
            ON CONFLICT (bucket_start, lineage_id, feature, segment, source, bucket_seconds)
            DO UPDATE SET n = kept.n + excluded.n, tail_count = kept.tail_count + excluded.tail_count
        """),
        {"at": at, "feature": feature, "tail": 98 if feature == FALLS else 1},
    )
    c.execute(
        text("""
            INSERT INTO monitor_data.touched_hours (hour, lineage_id, source)
            VALUES (date_trunc('hour', CAST(:at AS timestamptz)), 1, 'prompts/0')
            ON CONFLICT DO NOTHING
        """),
        {"at": at},
    )


@pytest.fixture
def upgraded(settings: PostgresSettings, engine: Engine) -> Engine:
    migrate(settings, "0002")
    with engine.begin() as c:
        before(c)
    migrate(settings)
    return engine


def tails(c: Connection, start: datetime, end: datetime) -> dict[int, int | None]:
    return {
        w.feature: w.tail_count
        for w in read_windows(c, PACK, [(start, end)], segments=["all"])
        if w.feature in (RISES, FALLS)
    }


def test_old_buckets_and_hours_know_no_tail_of_a_falling_feature(upgraded: Engine) -> None:
    with upgraded.connect() as c:
        assert tails(c, NOON, NOON + HOUR) == {RISES: 1, FALLS: None}
        assert tails(c, NOON - 2 * HOUR, NOON - HOUR) == {RISES: 1, FALLS: None}
        assert tails(c, NOON - 2 * HOUR, NOON + HOUR) == {RISES: 2, FALLS: None}
        closed = new_buckets(c, PACK, NOON - HOUR, NOON + HOUR)
        assert {b.feature: b.tail_count for b in closed} == {RISES: 1, FALLS: None}
        rows = c.execute(
            text("SELECT DISTINCT feature, tail_count, tail_rate FROM monitor.feature_windows")
        ).all()
    assert {tuple(row) for row in rows} == {("toxic", 1, 0.01), ("assistant", None, None)}


def test_an_old_baseline_says_which_tails_it_does_not_know(upgraded: Engine) -> None:
    with upgraded.connect() as c:
        baseline = load_baseline(c, pack_id=PACK)
    assert baseline is not None
    assert tails_not_known(baseline) == (FALLS,)
    assert baseline.streams[RISES, "all"].window.tail_count == 1


def test_the_drift_history_keeps_its_shifts_and_loses_the_wrong_tails(upgraded: Engine) -> None:
    with upgraded.connect() as c:
        rows = c.execute(
            text("""
                SELECT feature, shift, tail_rate, baseline_tail_rate, tail_ratio, tail_ratio_low,
                    tail_ratio_high
                FROM monitor.drift_history
            """)
        ).all()
    assert {tuple(row) for row in rows} == {
        ("toxic", 0.5, 0.01, 0.01, 1.0, 0.8, 1.2),
        ("assistant", 0.5, None, None, None, None, None),
    }


def test_only_what_new_workers_alone_counted_is_known(upgraded: Engine) -> None:
    """While a release is rolled out old and new workers take turns, in one row even."""
    minutes = {name: NOON + 3 * HOUR + i * timedelta(minutes=1) for i, name in enumerate("abc")}

    def add_new(name: str, offset: int) -> None:
        prompt = scored(offset, [5.0, 0.0, -5.0], at=minutes[name])
        keep(upgraded, chunk([prompt], start=offset, end=offset + 1))

    add_new("a", 0)  # new alone
    add_new("b", 1)  # new, then old, then new again
    with upgraded.begin() as c:
        add_old(c, FALLS, at=minutes["b"])
        add_old(c, FALLS, at=minutes["c"])  # old, then new
    add_new("b", 2)
    add_new("c", 3)
    step = timedelta(minutes=1)

    def known() -> dict[str, int | None]:
        with upgraded.connect() as c:
            return {name: tails(c, at, at + step)[FALLS] for name, at in minutes.items()}

    assert known() == {"a": 1, "b": None, "c": None}
    with upgraded.begin() as c:
        assert roll_up(c, NOON + 6 * HOUR)
        assert tails(c, NOON + 3 * HOUR, NOON + 4 * HOUR) == {RISES: 4, FALLS: None}
    add = scored(4, [5.0, 0.0, -5.0], at=NOON + 7 * HOUR)
    keep(upgraded, chunk([add], start=4, end=5))
    with upgraded.begin() as c:
        assert roll_up(c, NOON + 9 * HOUR)
        assert tails(c, NOON + 7 * HOUR, NOON + 8 * HOUR) == {RISES: 1, FALLS: 1}


def test_down_and_up_again_a_falling_tail_stays_unknown(
    settings: PostgresSettings, upgraded: Engine
) -> None:
    with upgraded.connect() as c:
        c.execute(text("CREATE VIEW public.mine AS SELECT tail_rate FROM monitor.feature_windows"))
        c.commit()
    migrate(settings, "0002")
    with upgraded.connect() as c:
        assert c.scalar(text("SELECT max(tail_count) FROM monitor.feature_windows")) == 98
    migrate(settings)
    with upgraded.connect() as c:
        assert tails(c, NOON, NOON + HOUR) == {RISES: 1, FALLS: None}
        assert c.scalars(text("SELECT tail_rate FROM public.mine")).all().count(None) == 2
