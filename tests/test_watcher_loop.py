"""The watcher from its first minute on, and its loop: who leads, what ends it, what a kill leaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import structlog
from sqlalchemy import text

from monitor.errors import SchemaError
from monitor.settings import PostgresSettings
from monitor.store.database import connect, migrate, transaction
from monitor.store.packs import pack_features
from monitor.store.scores import strongest_prompts
from monitor.watcher import Watcher
from tests.traffic import MINUTE, Traffic, settings_of


@pytest.fixture
def traffic(database):
    return Traffic(database)


@pytest.fixture
def settings():
    return settings_of()


@pytest.fixture
def watcher(database, settings, traffic):
    return Watcher(database, settings, clock=traffic.now)


def drift_events(evaluations):
    return [e.type for seen in evaluations for e in seen.events if e.type.startswith("drift")]


def count_rows(database, table):
    with database.connect() as c:
        return c.scalar(text(f"SELECT count(*) FROM monitor_data.{table}"))


@pytest.mark.slow
def test_a_silence_alert_says_what_it_reads_when_it_is_over(traffic, settings, watcher):
    fired = traffic.minutes(60, watcher=watcher)
    (began,) = [e.alert for seen in fired for e in seen.events]
    assert began.summary == "pack pack-1 has no approved baseline: drift is not watched"
    baseline = traffic.approve(settings)
    seen = traffic.minutes(3, watcher=watcher)
    seen += traffic.minutes(40, watcher=watcher)
    (ended,) = [e.alert for evaluation in seen for e in evaluation.events]
    assert ended.summary == f"a baseline is approved; when it fired: {began.summary}"
    assert ended.details["baseline"] == baseline.baseline_id


def test_a_rule_that_can_select_nothing_is_warned_of_once(traffic, database):
    rule = {"name": "mute", "severities": {"warning": {"shift": 1.0}}}
    settings = settings_of(
        rules=[
            rule | {"features": ["toxik"], "segments": ["all", "route=*"]},
            rule | {"name": "fine"},
        ]
    )
    watcher = Watcher(database, settings, clock=traffic.now)
    with structlog.testing.capture_logs() as lines:
        traffic.minutes(3, watcher=watcher)
    warned = [line for line in lines if line["event"] == "rule.selects_nothing"]
    assert {line["where"] for line in warned} == {"rule mute"}
    assert {line["log_level"] for line in warned} == {"warning"}
    assert [line["mend"] for line in warned] == [
        "Did you mean 'toxic'?",
        "Add route to ingest.segment_keys, or take the pattern out.",
    ]


def test_without_a_baseline_that_is_what_it_says(traffic, settings, watcher):
    traffic.minutes(5)
    seen = traffic.minutes(40, watcher=watcher)
    assert seen[-1].drifts == ()
    assert "no_baseline" in {e.alert.rule for evaluation in seen for e in evaluation.events}


def test_segments_have_their_own_baseline_or_the_pooled_one(traffic, settings, watcher, database):
    traffic.minutes(60, segment="route=/chat")
    traffic.approve(settings)
    traffic.minutes(2, segment="route=/new", watcher=watcher)
    seen = traffic.minutes(2, segment="route=/chat", watcher=watcher)
    pooled = {d.segment: d.pooled_baseline for d in seen[-1].drifts}
    assert pooled == {"all": False, "route=/chat": False, "route=/new": True}
    unwatched = [d for d in seen[-1].drifts if d.segment == "route=/new"]
    assert {d.evidence for d in unwatched} == {0.0}
    assert {d.evidence_limit for d in unwatched} == {float("inf")}
    with database.connect() as c:
        kept = c.execute(text("SELECT segment, count(*) FROM monitor_data.drifts GROUP BY segment"))
        rows = dict(kept.tuples().all())
    assert rows["all"] == 4 * 4
    # A window of fifteen minutes is kept each minute, one of an hour every fourth.
    assert rows["route=/chat"] < rows["all"]


def test_answers_of_the_copys_own_are_watched_apart_from_logged_ones(traffic, settings, watcher):
    def both(n, *, own=(0.0, 0.0)):
        """The clock goes on by a minute for each kind."""
        seen = []
        for _ in range(n):
            seen += traffic.minutes(1, per_minute=120, watcher=watcher)
            seen += traffic.minutes(1, per_minute=120, generated=True, shift=own, watcher=watcher)
        return seen

    both(30)
    traffic.approve(settings)
    events = [event for seen in both(8, own=(2.5, 0.0)) for event in seen.events]
    assert {(e.alert.labels["feature"], e.alert.labels["segment"]) for e in events} == {
        ("toxic", "generated")
    }
    assert events[0].alert.details["strongest_prompts"][0]["score"] > 3.0
    window = traffic.minute - 15 * MINUTE, traffic.now()
    with transaction(traffic.database) as c:
        (toxic, _) = pack_features(c, traffic.pack)
        strongest = {
            segment: strongest_prompts(c, traffic.pack, toxic, segment, *window, 50)
            for segment in ("all", "generated")
        }
    of = {
        name: {"generated" in row["segments"] for row in rows} for name, rows in strongest.items()
    }
    assert of == {"all": {False}, "generated": {True}}


# --- the loop itself -----------------------------------------------------------------------------


def wait_for(condition, *, seconds=30.0):
    """Until the condition holds; False when it never did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


class Loop:
    """A watcher's `run` in a thread."""

    def __init__(self, database, settings, clock):
        self.steps = 0
        self.stop = threading.Event()
        self.error = None
        self.watcher = Watcher(database, settings, clock=self._counted(clock))
        self.thread = threading.Thread(target=self._run)

    def _counted(self, clock):
        def read():
            self.steps += 1
            return clock()

        return read

    def _run(self):
        try:
            self.watcher.run(self.stop)
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def test_one_leads_the_other_stands_by_and_takes_over(traffic, database):
    settings = settings_of(evaluate_every=timedelta(seconds=0.2))
    with Loop(database, settings, traffic.now) as first:
        assert wait_for(lambda: first.steps > 5)
        with Loop(database, settings, traffic.now) as second:
            before = first.steps
            assert wait_for(lambda: first.steps > before + 5)
            assert second.steps == 0
            first.stop.set()
            assert wait_for(lambda: second.steps > 3)
            first.thread.join(30)
            stood = first.steps
            time.sleep(0.6)
            assert first.steps == stood


def test_a_leader_whose_server_restarted_leads_again(restartable_postgres):
    url = restartable_postgres.create_database("monitor")
    migrate(PostgresSettings(url=url))
    database = connect(PostgresSettings(url=url))
    traffic = Traffic(database)
    settings = settings_of(evaluate_every=timedelta(seconds=0.2))

    def token():
        with database.connect() as c:
            return c.scalar(text("SELECT token FROM monitor_data.leadership"))

    with Loop(database, settings, traffic.now) as loop:
        assert wait_for(lambda: loop.steps > 3)
        restartable_postgres.kill()
        time.sleep(0.5)
        restartable_postgres.start()
        before = loop.steps
        assert wait_for(lambda: loop.error or loop.steps > before + 5, seconds=60)
        assert token() in (1, 2), "it kept its lease, or took it again"
    assert loop.error is None
    database.dispose()


def test_a_schema_that_does_not_fit_stops_the_process(traffic, database):
    with database.begin() as c:
        c.execute(text("DROP TABLE monitor_data.detectors CASCADE"))
        c.execute(text("DROP TABLE monitor_data.canary_runs CASCADE"))
    with Loop(database, settings_of(), traffic.now) as loop:
        assert wait_for(lambda: loop.error is not None)
    assert isinstance(loop.error, SchemaError)


def test_house_is_kept(traffic, database, settings):
    traffic.minutes(3)
    with database.begin() as c:
        c.execute(text("DROP TABLE monitor_partitions.scores_p" + f"{datetime.now(UTC):%Y%m%d}"))
    watcher = Watcher(database, settings, clock=lambda: traffic.now() + timedelta(hours=2))
    watcher.keep_house()
    with database.connect() as c:
        there = c.scalar(
            text("SELECT to_regclass('monitor_partitions.scores_p' || to_char(now(), 'YYYYMMDD'))")
        )
    assert there is not None
    assert count_rows(database, "touched_hours") == 0
    assert count_rows(database, "buckets_hourly") > 0
    assert watcher.roll_up() == 0


def _watch(url, at):
    """A watcher process, whose every step is at the time that the parent wrote last."""
    database = connect(PostgresSettings(url=url))
    clock = Watcher(
        database,
        settings_of(evaluate_every=timedelta(seconds=0.05)),
        clock=lambda: datetime.fromtimestamp(at.value, tz=UTC),
        lease=timedelta(seconds=1),
    )
    clock.run(threading.Event())


@pytest.mark.slow
@pytest.mark.parametrize("most", [5, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_watcher_killed_anywhere_makes_one_alert(traffic, settings, database, migrated_url, most):
    """SIGKILLs at random moments while a shift comes and goes."""
    traffic.minutes(60)
    traffic.approve(settings)
    random = np.random.default_rng(3)
    spawn = multiprocessing.get_context("spawn")
    at = spawn.Value("d", traffic.now().timestamp())
    process, kills = None, 0

    def drift_rows():
        with database.connect() as c:
            return c.scalar(
                text("SELECT count(*) FROM monitor_data.drifts WHERE evaluated_at = :at"),
                {"at": datetime.fromtimestamp(at.value, tz=UTC)},
            )

    for shift in [1.5] * 12 + [0.0] * 78:
        traffic.minutes(1, shift=(shift, 0.0))
        at.value = traffic.now().timestamp()
        if process is None:
            process = spawn.Process(target=_watch, args=(migrated_url, at))
            process.start()
        if kills < most and random.random() < 0.35:
            time.sleep(random.random() * 0.15)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            process = None
            kills += 1
        else:
            assert wait_for(lambda: drift_rows() > 0, seconds=60)
    if process:
        process.kill()
        process.join()
    assert kills == most
    with database.connect() as c:
        events = c.execute(
            text("""
                SELECT event.alert_id, event.type, event.sequence
                FROM monitor_data.events AS event ORDER BY event.created_at, event.sequence
            """)
        ).all()
        deliveries = c.scalar(text("SELECT count(*) FROM monitor_data.deliveries"))
    assert {event.alert_id for event in events} == {events[0].alert_id}
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].type == "drift.detected"
    assert events[-1].type == "drift.resolved"
    assert deliveries == len(events)
