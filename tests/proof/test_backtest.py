"""`monitor backtest` on a real PostgreSQL, beside what a real watcher raised on the same minutes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from monitor.drift.history import History
from monitor.errors import BadInput, DatabaseUnavailable
from monitor.proof.backtest import moments, replay, span_of, trial
from monitor.settings import DriftRule, PostgresSettings, Thresholds
from monitor.store.alerts import add_silence
from monitor.store.database import connect, snapshot, transaction
from monitor.store.windows import new_buckets, read_windows
from monitor.store.workers import record_canary_run
from monitor.values.alerts import Silence
from monitor.values.scores import CanaryRun
from monitor.watcher import Watcher
from tests.traffic import MINUTE, PACK, settings_of

RULES = (
    DriftRule(
        name="persona-drift",
        segments=("all", "route=*"),
        severities={
            "warning": Thresholds(shift=0.3, tail_ratio=3.0, tail_growth=3.0),
            "critical": Thresholds(shift=0.8, tail_ratio=10.0),
        },
        cooldown=10 * MINUTE,
        reminder=20 * MINUTE,
    ),
    DriftRule(name="process-change", severities={"warning": Thresholds(process_change=True)}),
)


def a_day_in_short(traffic, watcher):
    """Rises, dips, ends; a tail alone under a silence; a slice alone; an instrument that is off."""
    traffic.minutes(5, watcher=watcher)
    traffic.minutes(9, shift=(0.6, 0.0), watcher=watcher)
    traffic.minutes(1, shift=(-1.0, 0.0), watcher=watcher)
    traffic.minutes(4, shift=(1.5, 0.0), watcher=watcher)
    traffic.minutes(36, watcher=watcher)
    with transaction(traffic.database) as c:
        made = Silence(
            silence_id="s1",
            matchers={"feature": "tox*"},
            starts_at=traffic.now(),
            ends_at=traffic.now() + 8 * MINUTE,
            created_by="a person",
        )
        add_silence(c, made)
    traffic.minutes(10, rare=0.08, watcher=watcher)
    traffic.minutes(7, shift=(0.0, -1.5), segment="route=/chat", watcher=watcher)
    for reproduced, length in ((False, 8), (True, 7)):
        traffic.canaries = reproduced
        run_canaries(traffic)
        traffic.minutes(length, shift=(1.0, -1.0), watcher=watcher)


def run_canaries(traffic):
    """After the last evaluation, and before the next."""
    with transaction(traffic.database) as c:
        record_canary_run(
            c,
            CanaryRun(
                worker_id=traffic.worker,
                ran_at=traffic.now() + timedelta(seconds=5),
                lineage=traffic.lineage,
                largest_deviation=0.0 if traffic.canaries else 4.0,
                noise_floor=0.05,
                reproduced=traffic.canaries,
            ),
        )


@pytest.fixture(scope="module")
def past(hour, copy_of):
    # The watcher comes an hour after the first scores; a backtest looks at that hour too, and would tell that
    # it had no baseline.
    known = settings_of().drift.silence_rules
    settings = settings_of(
        windows={"15m": 15 * MINUTE, "30m": 30 * MINUTE},
        rules=RULES,
        silence_rules=tuple(one for one in known if one.name != "no_baseline"),
    )
    with copy_of(hour.template) as url:
        database = connect(PostgresSettings(url=url))
        traffic = hour.resumed(database)
        approved = traffic.now()
        baseline = traffic.approve(settings)
        a_day_in_short(traffic, Watcher(database, settings, clock=traffic.now))
        yield SimpleNamespace(
            database=database,
            settings=settings,
            baseline=baseline,
            start=approved,
            end=traffic.now() + timedelta(seconds=1),
        )
        database.dispose()


def changed(past, **drift):
    return past.settings.model_copy(update={"drift": past.settings.drift.model_copy(update=drift)})


def backtest(past, others=None, baseline_id=None, **asked):
    with snapshot(past.database) as c:
        tried = trial(c, past.settings, others, baseline_id)
        whole = [past.settings, *([tried.settings] if tried else [])]
        start, end = asked.get("start", past.start), asked.get("end", past.end)
        return replay(c, past.settings, tried, span_of(c, whole, start, end, past.end))


STRICT = DriftRule(
    name="strict", severities={"critical": Thresholds(shift=1.2)}, hold_for=5 * MINUTE
)


@pytest.fixture(scope="module")
def told(past):
    """The rules in force, and a strict one beside them."""
    before = rows_of(past.database)
    found = backtest(past, changed(past, rules=(STRICT,)))
    assert rows_of(past.database) == before, "nothing is written"
    return found


def rows_of(database):
    tables = ("alerts", "events", "drifts", "detectors", "identity_detectors", "deliveries")
    with database.connect() as c:
        return [c.scalar(text(f"SELECT count(*) FROM monitor_data.{table}")) for table in tables]


def life(alert):
    return (
        alert.alert_id,
        alert.rule,
        alert.severity,
        alert.fired_at,
        alert.ended_at,
        alert.state,
        alert.announced,
        alert.cause if alert.state == "firing" else None,
    )


def test_the_rules_in_force_raise_what_the_watcher_raised(told):
    assert list(map(life, told.in_force.alerts)) == list(map(life, told.recorded.alerts))
    kinds = {(one.kind, one.feature, one.segment, one.state) for one in told.in_force.alerts}
    assert kinds >= {
        ("drift", "toxic", "all", "resolved"),
        ("drift", "toxic", "all", "firing"),
        ("drift", "assistant", "route=/chat", "firing"),
        ("silence", None, None, "resolved"),
    }
    assert {one.rule for one in told.in_force.alerts} >= {"persona-drift", "instrument"}
    assert any(one.severity == "critical" for one in told.in_force.alerts)
    assert set(told.not_replayed) == {
        "lag",
        "delay",
        "starvation",
        "not_evaluated",
        "replay_mismatch",
    }


def test_other_rules_stand_beside_those_in_force(told):
    drifting = [one for one in told.candidate.alerts if one.kind == "drift"]
    assert {one.rule for one in drifting} <= {"strict"}
    assert len(drifting) < len([one for one in told.in_force.alerts if one.kind == "drift"])
    assert told.candidate.figures(told.span)["fired"] == len(told.candidate.alerts)


def test_a_snapshot_can_write_nothing(past):
    with (
        pytest.raises(DatabaseUnavailable, match="read-only"),
        snapshot(past.database) as c,
    ):
        c.execute(text("DELETE FROM monitor_data.alerts"))


def test_another_confidence_is_looked_at_anew(past):
    """A bound that is wider is no sooner to cross the same line."""
    first = {}
    for confidence in (0.99, 1 - 1e-12):
        others = changed(past, confidence=confidence, rules=RULES[:1])
        found = backtest(past, others, end=past.start + 25 * MINUTE)
        drifting = [one for one in found.candidate.alerts if one.kind == "drift"]
        first[confidence] = min((one.fired_at, one.summary) for one in drifting)
        for side in (found.in_force, found.recorded):
            ended = [one.ended_at for one in side.alerts if one.ended_at]
            assert all(moment < found.span.end for moment in ended), "later ends are not known yet"
    sure, surer = first[0.99], first[1 - 1e-12]
    assert surer[0] >= sure[0]
    assert surer != sure, "its bounds at least are others"


def test_another_baseline_takes_the_place_of_the_one_in_force(past):
    """Here the same one, which is then there from the warm-up on."""
    found = backtest(past, baseline_id=past.baseline.baseline_id, end=past.start + 25 * MINUTE)
    keys = [{one.dedupe_key for one in side.alerts} for side in (found.in_force, found.candidate)]
    assert keys[0] == keys[1]
    with pytest.raises(BadInput, match="--baseline: there is no baseline 'none'"):
        backtest(past, baseline_id="none")


def test_what_stored_history_cannot_follow_is_refused(past):
    with pytest.raises(BadInput, match=r"drift\.bucket: stored history was made with"):
        backtest(past, changed(past, bucket=5 * MINUTE))


def test_spans_that_cannot_be_replayed(past):
    with pytest.raises(BadInput, match="--from"):
        backtest(past, start=past.end, end=past.start)
    with pytest.raises(BadInput, match="nothing is stored between"):
        backtest(past, start=past.start - timedelta(days=9), end=past.start - timedelta(days=8))
    with past.database.begin() as c:
        c.execute(
            text(
                "INSERT INTO monitor_data.retention (table_name, kept_from) VALUES ('buckets', :at)"
                " ON CONFLICT (table_name) DO UPDATE SET kept_from = excluded.kept_from"
            ),
            {"at": past.start + 30 * MINUTE},
        )
    try:
        with snapshot(past.database) as c:
            cut = span_of(c, [past.settings], past.start, past.end, past.end)
        assert cut.start == past.start + 60 * MINUTE
        assert "were dropped" in cut.notes[0]
        with pytest.raises(BadInput, match="were dropped"):
            backtest(past, end=past.start + 50 * MINUTE)
    finally:
        with past.database.begin() as c:
            c.execute(text("DELETE FROM monitor_data.retention WHERE table_name = 'buckets'"))


def test_windows_and_buckets_of_a_history_are_the_stores(past):
    start, end = past.start.replace(second=0), past.end.replace(second=0)
    with snapshot(past.database) as c:
        kept = new_buckets(c, PACK, start - timedelta(seconds=1), end)
        whole = History.of(kept, start, end, MINUTE)
        parts = [
            History.of(kept, at, min(at + 25 * MINUTE, end), MINUTE)
            for at in (start + step * 25 * MINUTE for step in range(4))
            if at < end
        ]
        for history in (whole, History.joined(parts), History.joined(parts).since(start)):
            for first, after in ((0, 15), (20, 80), (61, 62), (3, 85)):
                span = start + first * MINUTE, start + after * MINUTE
                for ours, theirs in zip(
                    history.windows(*span), read_windows(c, PACK, [span]), strict=True
                ):
                    same(ours, theirs)
            some = start + 5 * MINUTE, start + 9 * MINUTE
            for ours, theirs in zip(
                history.buckets(*some), new_buckets(c, PACK, *some), strict=True
            ):
                same(ours, theirs)
        later = whole.since(start + 30 * MINUTE)
        assert later.start == start + 30 * MINUTE
        assert later.end == whole.end


def same(ours, theirs):
    for name in ("total", "total_squares"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-12, abs=1e-12)
    assert (ours.histogram == theirs.histogram).all()
    rounded = {name: getattr(ours, name) for name in ("total", "total_squares", "histogram")}
    assert ours == replace(theirs, **rounded)


def test_moments_are_those_of_then_and_gaps_are_filled():
    start = datetime(2026, 3, 1, tzinfo=UTC)
    at = [start + 10 * MINUTE, start + 11 * MINUTE, start + 14 * MINUTE]
    found = moments(at, start, start + 20 * MINUTE, MINUTE, 5 * MINUTE)
    assert [(one - start) // MINUTE for one in found] == [*range(10), 10, 11, 14, *range(15, 20)]
