"""The watcher on a real PostgreSQL, after an hour of synthetic scores stored the way the worker stores them."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from datetime import timedelta
from itertools import count
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from monitor.errors import StaleAlert
from monitor.settings import PostgresSettings
from monitor.store.alerts import add_silence, list_alerts
from monitor.store.database import connect, transaction
from monitor.store.drift import load_detectors
from monitor.values.alerts import AlertState, Silence
from monitor.values.witnesses import Cause
from monitor.watcher import Watcher
from tests.traffic import MINUTE, counted_by_the_release_before, settings_of


@pytest.fixture
def template(hour):
    return hour.template


@pytest.fixture
def traffic(hour, database):
    """After its first hour, which was quiet."""
    return hour.resumed(database)


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
    traffic.approve(settings)
    seen = traffic.minutes(60, watcher=watcher)
    assert drift_events(seen) == []
    assert seen[-1].packs[0].cause is Cause.UNKNOWN, "nothing vouches for the served model"
    assert {(d.feature, d.window) for d in seen[-1].drifts} == {
        (name, window) for name in ("toxic", "assistant") for window in ("15m", "1h")
    }
    assert count_rows(database, "drifts") == 60 * 4
    quarter = next(d for d in seen[-1].drifts if d.window == "15m")
    assert quarter.n == 15 * 60
    assert quarter.window_end - quarter.window_start == 15 * MINUTE


@pytest.fixture(scope="module")
def shift(hour, copy_of):
    """A shift of twenty minutes that comes and goes: the baseline, what was seen of it, and after it."""
    settings = settings_of()
    with copy_of(hour.template) as url:
        database = connect(PostgresSettings(url=url))
        traffic = hour.resumed(database)
        watcher = Watcher(database, settings, clock=traffic.now)
        yield SimpleNamespace(
            database=database,
            baseline=traffic.approve(settings),
            moved=traffic.minutes(20, shift=(1.5, 0.0), watcher=watcher),
            back=traffic.minutes(110, watcher=watcher),
        )
        database.dispose()


def test_a_shift_fires_once_and_resolves(shift):
    moved = shift.moved
    detected = [e for seen in moved for e in seen.events]
    assert detected[0].type == "drift.detected"
    assert {e.alert_id for e in detected} == {detected[0].alert_id}
    first = next(i for i, seen in enumerate(moved) if seen.events)
    assert first <= 8, "two minutes of `for`, and a few to move a window of fifteen"
    details = detected[-1].alert.details
    assert detected[-1].alert.labels["feature"] == "toxic"
    assert details["meaning"] == "what toxic means"
    assert details["cause"] == "unknown"
    assert "identity.share is 0" in details["verdict"]
    assert set(details["witnesses"]) == {"canaries", "identity", "labels", "prompt_side"}
    assert details["baseline"]["id"] == shift.baseline.baseline_id
    assert len(details["strongest_prompts"]) == 5
    strongest = [prompt["score"] for prompt in details["strongest_prompts"]]
    assert strongest == sorted(strongest, reverse=True)
    assert strongest[0] > 3.0
    assert set(details["strongest_prompts"][0]) == {"prompt_id", "score", "recorded_at", "record"}
    assert drift_events(shift.back) == ["drift.resolved"]
    with transaction(shift.database) as c:
        assert [a.state for a in list_alerts(c)] == [AlertState.RESOLVED]
        assert list_alerts(c)[0].details["strongest_prompts"]
    assert count_rows(shift.database, "deliveries") == count_rows(shift.database, "events")


def test_a_resolution_says_what_it_reads_now_and_what_it_read_when_it_fired(
    shift,
):
    announced = [e.alert for seen in shift.moved for e in seen.events]
    back = shift.back
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
    with transaction(shift.database) as c:
        assert [a.summary for a in list_alerts(c)] == [ended.summary]


def test_a_served_model_that_is_new_is_not_told_as_moved_canaries(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.model = "served-v2"
    seen = traffic.minutes(12, shift=(2.0, 0.0), watcher=watcher)
    alert = next(e.alert for evaluation in seen for e in evaluation.events)
    assert alert.details["cause"] == "model_shift"
    assert "canaries moved" not in alert.details["verdict"]
    assert "name a served model" in alert.details["verdict"]
    assert "read as recorded" in alert.details["verdict"]


def test_the_query_in_an_alert_answers(traffic, settings, watcher, database):
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
    counted_by_the_release_before(database)
    traffic.approve(settings)
    traffic.minutes(60, watcher=watcher)
    traffic.approve(settings)
    (last,) = traffic.minutes(1, watcher=watcher)
    assert all(math.isfinite(d.tail_ratio.value) for d in last.drifts)


def test_a_restart_in_the_middle_changes_nothing(traffic, settings, database):
    """One watcher for every step tells the same story as one watcher for all."""
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


def test_a_baseline_is_not_compared_with_readings_in_another_dtype_without_a_word(
    traffic, settings, watcher, database
):
    traffic.approve(settings)
    traffic.minutes(2, watcher=watcher)
    traffic.lineage = replace(traffic.lineage, dtype="bfloat16")
    with transaction(database) as c:
        traffic.run_canaries(c)
    seen = traffic.minutes(7, watcher=watcher)  # it must hold for five
    (told,) = [e.alert for evaluation in seen for e in evaluation.events]
    assert told.rule == "model_mismatch"
    assert "w1 reads in bfloat16" in told.summary
    assert "the baseline was made in float32" in told.summary


def test_another_served_model_is_a_model_shift(traffic, settings, watcher):
    traffic.approve(settings)
    traffic.model = "served-v2"
    seen = traffic.minutes(2, watcher=watcher)
    assert seen[-1].packs[0].cause is Cause.MODEL_SHIFT


def test_a_silence_keeps_an_alert_from_being_announced(traffic, settings, watcher, database):
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


def test_two_watchers_at_once_make_one_alert(traffic, settings, database):
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
