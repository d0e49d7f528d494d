"""The watcher on a real PostgreSQL, with synthetic scores stored the way the worker stores them."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
import structlog
from sqlalchemy import text

from monitor.errors import SchemaError, StaleAlert
from monitor.settings import PostgresSettings
from monitor.store.alerts import add_silence, list_alerts
from monitor.store.database import connect, migrate, transaction
from monitor.store.drift import load_detectors
from monitor.store.packs import pack_features
from monitor.store.scores import strongest_prompts
from monitor.values.alerts import AlertState, Silence
from monitor.values.drift import Cause
from monitor.watcher import Watcher
from tests.traffic import MINUTE, Traffic, counted_by_the_release_before, settings_of


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


def test_quiet_traffic_stays_quiet(traffic, settings, watcher, database):
    traffic.minutes(60)
    traffic.approve(settings)
    seen = traffic.minutes(60, watcher=watcher)
    assert drift_events(seen) == []
    assert seen[-1].packs[0].cause is Cause.INPUT_SHIFT
    assert {(d.feature, d.window) for d in seen[-1].drifts} == {
        (name, window) for name in ("toxic", "assistant") for window in ("15m", "1h")
    }
    assert count_rows(database, "drifts") == 60 * 4
    quarter = next(d for d in seen[-1].drifts if d.window == "15m")
    assert quarter.n == 15 * 60
    assert quarter.window_end - quarter.window_start == 15 * MINUTE


def test_a_shift_fires_once_and_resolves(traffic, settings, watcher, database):
    traffic.minutes(60)
    baseline = traffic.approve(settings)
    traffic.minutes(20, watcher=watcher)
    moved = traffic.minutes(20, shift=(1.5, 0.0), watcher=watcher)
    detected = [e for seen in moved for e in seen.events]
    assert detected[0].type == "drift.detected"
    assert {e.alert_id for e in detected} == {detected[0].alert_id}
    first = next(i for i, seen in enumerate(moved) if seen.events)
    assert first <= 8, "two minutes of `for`, and a few to move a window of fifteen"
    details = detected[-1].alert.details
    assert detected[-1].alert.labels["feature"] == "toxic"
    assert details["meaning"] == "what toxic means"
    assert details["cause"] == "input_shift"
    assert details["baseline"]["id"] == baseline.baseline_id
    assert len(details["strongest_prompts"]) == 5
    strongest = [prompt["score"] for prompt in details["strongest_prompts"]]
    assert strongest == sorted(strongest, reverse=True)
    assert strongest[0] > 3.0
    assert set(details["strongest_prompts"][0]) == {"prompt_id", "score", "recorded_at", "record"}
    back = traffic.minutes(110, watcher=watcher)
    assert drift_events(back) == ["drift.resolved"]
    with transaction(database) as c:
        assert [a.state for a in list_alerts(c)] == [AlertState.RESOLVED]
        assert list_alerts(c)[0].details["strongest_prompts"]
    assert count_rows(database, "deliveries") == count_rows(database, "events")


def test_a_resolution_says_what_it_reads_now_and_what_it_read_when_it_fired(
    traffic, settings, watcher, database
):
    traffic.minutes(60)
    traffic.approve(settings)
    moved = traffic.minutes(20, shift=(1.5, 0.0), watcher=watcher)
    announced = [e.alert for seen in moved for e in seen.events]
    back = traffic.minutes(110, watcher=watcher)
    (ended,) = [e.alert for seen in back for e in seen.events]
    last = announced[-1]
    seen = next(
        d
        for evaluation in back
        for d in evaluation.drifts
        if evaluation.at == ended.resolved_at
        and (d.feature, d.window) == ("toxic", last.details["window"])
    )
    then = last.details["shift"]["value"]
    assert abs(seen.shift.value) < 0.3 < then
    for words in (
        "toxic is back inside its thresholds over 15m",
        f"shift now {seen.shift.value:+.2f} SD, was {then:+.2f} when it became critical",
        f"tail now {seen.tail_rate:.2%}, was {last.details['current']['tail_rate']:.2%}",
    ):
        assert words in ended.summary
    assert "rose" not in ended.summary
    # The figures beside the sentence are of now too; those of the firing have a place of their own.
    assert ended.details["readings"]["15m"]["shift"] == pytest.approx(seen.shift.value, rel=1e-5)
    assert ended.details["window_end"] == seen.window_end.isoformat()
    assert abs(ended.details["shift"]["value"]) < 0.3
    assert ended.details["when_fired"]["shift"]["value"] == then
    assert ended.details["when_fired"]["summary"] == last.summary
    assert "verdict" not in ended.details, "nothing changed any more"
    with transaction(database) as c:
        assert [a.summary for a in list_alerts(c)] == [ended.summary]


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


def test_a_served_model_that_is_new_is_not_told_as_moved_canaries(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.model = "served-v2"
    seen = traffic.minutes(12, shift=(2.0, 0.0), watcher=watcher)
    alert = next(e.alert for evaluation in seen for e in evaluation.events)
    assert alert.details["cause"] == "model_shift"
    assert "canaries moved" not in alert.details["verdict"]
    assert "name a served model" in alert.details["verdict"]
    assert "read as recorded" in alert.details["verdict"]


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


def test_the_query_in_an_alert_answers(traffic, settings, watcher, database):
    traffic.minutes(60)
    traffic.approve(settings)
    seen = traffic.minutes(12, shift=(2.0, 0.0), watcher=watcher)
    event = next(e for evaluation in seen for e in evaluation.events)
    with database.connect() as c:
        c.execute(text("SET search_path TO monitor"))
        rows = c.execute(text(event.alert.details["query"])).mappings().all()
    assert rows
    # What the alert says is what the reader finds, to the digits that are told.
    told = event.alert.details["shift"]["value"]
    assert any(row["shift"] == pytest.approx(told, rel=1e-5) for row in rows)


def test_a_falling_feature_alerts_when_it_falls(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    risen = traffic.minutes(10, shift=(0.0, 0.6), watcher=watcher)
    assert not any(
        c.active and c.rule == "persona-drift" for seen in risen for c in seen.conditions
    )
    fallen = traffic.minutes(15, shift=(0.0, -1.5), watcher=watcher)
    events = [e for seen in fallen for e in seen.events]
    assert events[0].alert.labels["feature"] == "assistant"
    scores = [p["score"] for p in events[0].alert.details["strongest_prompts"]]
    assert scores == sorted(scores)
    assert scores[0] < -3.0


def test_growth_of_the_tail_alone_fires(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    seen = traffic.minutes(25, rare=0.04, watcher=watcher)
    assert drift_events(seen)[0] == "drift.detected"
    alert = next(e.alert for evaluation in seen for e in evaluation.events)
    statistics = {crossing["statistic"] for crossing in alert.details["crossed"]}
    assert "tail_ratio" in statistics
    assert "shift" not in statistics


def test_a_tail_that_is_not_known_is_left_out_and_the_rest_goes_on(
    traffic, settings, watcher, database
):
    traffic.minutes(60)
    counted_by_the_release_before(database)
    traffic.approve(settings)
    quiet = traffic.minutes(16, watcher=watcher)
    drifts = {d.feature: d for d in quiet[-1].drifts if d.window == "15m"}
    assert math.isfinite(drifts["toxic"].tail_ratio.value)
    assistant = drifts["assistant"]
    assert assistant.tail_rate == pytest.approx(0.002, abs=0.01), "the window's own is known"
    assert math.isnan(assistant.baseline_tail_rate)
    assert math.isnan(assistant.tail_ratio.value)
    assert assistant.evidence != 0.0, "bets on the mean go on"
    with database.connect() as c:
        kept = c.execute(
            text(
                "SELECT count(tail_ratio), count(tail_ratio_low), count(shift)"
                " FROM monitor.drift_history WHERE feature = 'assistant'"
            )
        ).one()
    assert tuple(kept) == (0, 0, 32)

    fallen = traffic.minutes(15, shift=(0.0, -1.5), watcher=watcher)
    event = next(e for seen in fallen for e in seen.events)
    assert event.alert.labels["feature"] == "assistant"
    assert "against unknown" in event.alert.summary
    assert event.alert.details["tail_ratio"] == {"value": None, "low": None, "high": None}
    assert "tail_ratio" not in {c["statistic"] for c in event.alert.details["crossed"]}


def test_a_new_baseline_knows_the_tail_again(traffic, settings, watcher, database):
    traffic.minutes(60)
    counted_by_the_release_before(database)
    traffic.approve(settings)
    traffic.minutes(60, watcher=watcher)
    traffic.approve(settings)
    (last,) = traffic.minutes(1, watcher=watcher)
    assert all(math.isfinite(d.tail_ratio.value) for d in last.drifts)


def test_a_restart_in_the_middle_changes_nothing(traffic, settings, database):
    """One watcher for every step tells the same story as one watcher for all."""
    traffic.minutes(60)
    traffic.approve(settings)
    seen = []
    for shift in [0.0] * 10 + [1.5] * 10:
        fresh = Watcher(database, settings, clock=traffic.now)
        seen += traffic.minutes(1, shift=(shift, 0.0), watcher=fresh)
    events = [e for evaluation in seen for e in evaluation.events]
    assert events[0].type == "drift.detected"
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert len({e.alert_id for e in events}) == 1
    with transaction(database) as c:
        states = load_detectors(c, seen[-1].packs[0].subject.baseline.baseline_id)
    # The first step only starts the detectors; each later one takes in its minute, once.
    assert {state.steps for state in states.values()} == {19}


def test_a_watcher_that_was_away_catches_up(traffic, settings, watcher, database):
    traffic.minutes(60)
    baseline = traffic.approve(settings)
    traffic.minutes(1, watcher=watcher)
    traffic.minutes(70)
    watcher.step()
    with transaction(database) as c:
        steps = {s.steps for s in load_detectors(c, baseline.baseline_id).values()}
    assert steps == {60}
    watcher.step()
    with transaction(database) as c:
        states = load_detectors(c, baseline.baseline_id)
    assert {state.steps for state in states.values()} == {70}
    watcher.step()
    with transaction(database) as c:
        assert load_detectors(c, baseline.baseline_id) == states


def test_thin_windows_are_no_evidence_either_way(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    fired = traffic.minutes(15, shift=(2.0, 0.0), watcher=watcher)
    assert "drift.detected" in drift_events(fired)
    traffic.minute += timedelta(hours=2)
    silent = traffic.minutes(10, per_minute=2, watcher=watcher)
    assert drift_events(silent) == []
    assert [alert.labels["feature"] for alert in silent[-1].firing if alert.kind == "drift"] == [
        "toxic"
    ]


def test_a_broken_instrument_holds_drift_alerts_and_says_so(traffic, settings, watcher, database):
    traffic.minutes(60)
    baseline = traffic.approve(settings)
    traffic.minutes(5, watcher=watcher)
    traffic.canaries = False
    with transaction(database) as c:
        traffic.run_canaries(c)
    seen = traffic.minutes(15, shift=(2.0, -2.0), watcher=watcher)
    assert drift_events(seen) == []
    assert {e.alert.rule for evaluation in seen for e in evaluation.events} == {"instrument"}
    assert seen[-1].packs[0].cause is Cause.INSTRUMENT_SHIFT
    with transaction(database) as c:
        states = load_detectors(c, baseline.baseline_id)
    assert {state.steps for state in states.values()} == {4}, "its buckets are passed over"


def test_another_served_model_is_a_model_shift(traffic, settings, watcher):
    traffic.minutes(60)
    traffic.approve(settings)
    traffic.model = "served-v2"
    seen = traffic.minutes(2, watcher=watcher)
    assert seen[-1].packs[0].cause is Cause.MODEL_SHIFT


def test_without_a_baseline_that_is_what_it_says(traffic, settings, watcher):
    traffic.minutes(5)
    seen = traffic.minutes(40, watcher=watcher)
    assert seen[-1].drifts == ()
    assert "no_baseline" in {e.alert.rule for evaluation in seen for e in evaluation.events}


def test_a_silence_keeps_an_alert_from_being_announced(traffic, settings, watcher, database):
    traffic.minutes(60)
    traffic.approve(settings)
    with transaction(database) as c:
        add_silence(
            c,
            Silence(
                silence_id="s1",
                matchers={"feature": "tox*"},
                starts_at=traffic.now(),
                ends_at=traffic.now() + timedelta(minutes=12),
                created_by="a person",
            ),
        )
    quiet = traffic.minutes(11, shift=(2.0, 0.0), watcher=watcher)
    assert drift_events(quiet) == []
    assert drift_events(traffic.minutes(3, shift=(2.0, 0.0), watcher=watcher))[:1] == [
        "drift.detected"
    ]


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


def test_two_watchers_at_once_make_one_alert(traffic, settings, database):
    traffic.minutes(60)
    traffic.approve(settings)
    pair = [Watcher(database, settings, clock=traffic.now) for _ in range(2)]
    refused = count()
    for _ in range(12):
        traffic.minutes(1, shift=(1.5, 0.0))
        barrier = threading.Barrier(2)

        def step(watcher, barrier=barrier):
            barrier.wait()
            try:
                watcher.step()
            except StaleAlert:
                next(refused)

        threads = [threading.Thread(target=step, args=(watcher,)) for watcher in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with transaction(database) as c:
        assert len([a for a in list_alerts(c) if a.kind == "drift"]) == 1
        events = c.execute(
            text("SELECT sequence FROM monitor_data.events ORDER BY sequence")
        ).scalars()
        sequences = list(events)
    assert sequences == list(range(1, len(sequences) + 1))
    assert sequences


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

    def lock_holders():
        with database.connect() as c:
            return c.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))

    with Loop(database, settings, traffic.now) as loop:
        assert wait_for(lambda: loop.steps > 3)
        restartable_postgres.kill()
        time.sleep(0.5)
        restartable_postgres.start()
        before = loop.steps
        assert wait_for(lambda: loop.error or loop.steps > before + 5, seconds=60)
        assert wait_for(lambda: lock_holders() == 1)
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
