"""Who leads the watcher: nobody without the monitor's own rights decides it, and nobody leads in secret."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine, text

from monitor.demo.receiver import Receiver
from monitor.errors import DatabaseUnavailable, StaleLease
from monitor.lookout import Lookout
from monitor.settings import PostgresSettings
from monitor.store import database as store
from monitor.store import leadership
from monitor.store.alerts import list_alerts
from monitor.store.clock import DatabaseClock
from monitor.store.database import database_time, migrate, transaction
from monitor.store.outbox import list_deliveries
from monitor.values.alerts import AlertState
from monitor.watcher import Watcher
from tests.traffic import Traffic, settings_of

NAMES = ("monitor.watcher", "monitor.migrate", "monitor.partitions")


@contextmanager
def stranger(database: Engine) -> Iterator[psycopg.Connection]:
    """A session of a role without any grant, but that it may connect."""
    with database.begin() as c:
        c.execute(text("DROP ROLE IF EXISTS stranger_test"))
        c.execute(text("CREATE ROLE stranger_test LOGIN"))
    url = database.url.set(drivername="postgresql", username="stranger_test")
    try:
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as c:
            yield c
    finally:
        with database.begin() as c:
            c.execute(text("DROP ROLE stranger_test"))


def take_advisory_locks(session: psycopg.Connection) -> None:
    for name in NAMES:
        session.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (name,))


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@contextmanager
def running(watcher: Watcher) -> Iterator[threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def evaluations(database: Engine) -> int:
    with database.connect() as c:
        return c.scalar(text("SELECT count(*) FROM monitor_data.drifts")) or 0


@pytest.fixture
def traffic(database: Engine) -> Traffic:
    made = Traffic(database)
    made.minutes(40)
    made.approve(settings_of(), last=timedelta(minutes=40))
    return made


def test_a_stranger_with_every_advisory_lock_stops_nothing(database: Engine, traffic) -> None:
    settings = settings_of(evaluate_every=timedelta(seconds=0.2))
    with stranger(database) as session:
        take_advisory_locks(session)
        with running(Watcher(database, settings, clock=traffic.now)):
            assert wait_for(lambda: evaluations(database) > 0)
            url = database.url.render_as_string(hide_password=False)
            migrate(PostgresSettings(url=url))  # waits for nobody
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("UPDATE monitor_data.leadership SET token = token + 1")


def test_who_lost_his_lease_stores_nothing_more(database: Engine, traffic) -> None:
    settings = settings_of()
    frozen = Watcher(database, settings, clock=traffic.now, lease=timedelta(seconds=0.2))
    successor = Watcher(database, settings, clock=traffic.now)
    assert frozen._leader.take()
    time.sleep(0.3)
    assert successor._leader.take(), "a lease ends by itself"
    for job in (frozen.step, frozen.roll_up, frozen.keep_house):
        with pytest.raises(StaleLease):
            job()
    assert evaluations(database) == 0
    assert not frozen._leader.renew()
    frozen._leader.give_back()
    assert not Watcher(database, settings)._leader.take(), "what was his is not given back by him"
    successor.step()
    assert evaluations(database) > 0


def test_a_leader_that_stands_still_as_it_commits_is_cut_off(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "COMMIT_SECONDS", 1)
    with transaction(database) as c:
        lease = leadership.take(c, "watcher", "one", timedelta(0))
    with pytest.raises(DatabaseUnavailable), transaction(database) as c:
        leadership.confirm(c, lease)
        with transaction(database) as other:
            assert leadership.take(other, "watcher", "two", timedelta(seconds=9)), "waits a second"
    with transaction(database) as c:
        assert leadership.leadership(c, "watcher").holder == "two"


def test_whoever_notices_that_nobody_evaluates_tells_once(database: Engine, traffic) -> None:
    settings = settings_of(evaluate_every=timedelta(seconds=0.2))
    quick = [
        rule.model_copy(update={"limit": 1.0}) if rule.name == "not_evaluated" else rule
        for rule in settings.drift.silence_rules
    ]
    drift = settings.drift.model_copy(update={"silence_rules": tuple(quick)})
    settings = settings.model_copy(update={"drift": drift})
    lookouts = [Lookout(database, settings) for _ in range(2)]
    assert [one.look() for one in lookouts] == ["no watcher leads: drift is not evaluated"] * 2
    with database.connect() as c:
        assert list_alerts(c) == [], "who starts it all again has time to get a watcher to work"
    time.sleep(1.1)
    with structlog.testing.capture_logs() as lines:
        for one in lookouts * 2:
            one.look()
    assert [line["type"] for line in lines if line["event"] == "alert.announced"] == [
        "silence.detected"
    ]
    with database.connect() as c:
        (alert,) = list_alerts(c)
        (waiting,) = list_deliveries(c)
    assert (alert.state, alert.severity) == (AlertState.FIRING, "critical")
    assert alert.summary.endswith("(limit 1 s): no watcher leads")
    assert waiting.event.alert_id == alert.alert_id
    with running(Watcher(database, settings)):
        assert wait_for(lambda: all(one.look() == "" for one in lookouts))
        assert wait_for(lambda: list_states(database) == {alert.alert_id: AlertState.RESOLVED})


def list_states(database: Engine) -> dict[str, AlertState]:
    with database.connect() as c:
        return {one.alert_id: one.state for one in list_alerts(c) if one.rule == "not_evaluated"}


def test_no_pulse_goes_out_until_drift_is_evaluated(database: Engine, traffic) -> None:
    with Receiver() as receiver:
        settings = settings_of()
        alerts = settings.alerts.model_copy(
            update={
                "pulse_url": SecretStr(receiver.url),
                "pulse_every": timedelta(seconds=0.1),
            }
        )
        settings = settings.model_copy(update={"alerts": alerts})
        lookout = Lookout(database, settings, courier_goes_round=lambda: True)
        lookout.look()
        lookout._beat_outwards()
        watcher = Watcher(database, settings)
        assert watcher._leader.take()
        watcher.step()
        assert receiver.received == (), "nobody led when it last looked"
        assert lookout.look() == ""
        time.sleep(0.2)
        lookout._beat_outwards()
        assert wait_for(lambda: len(receiver.received) == 1)


def test_a_migration_that_waits_says_for_whom(
    migrated_url: str, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TURN_SECONDS", 1)
    with database.begin() as c, structlog.testing.capture_logs() as lines:
        c.execute(text("LOCK TABLE monitor_data.alembic_version IN EXCLUSIVE MODE"))
        with pytest.raises(DatabaseUnavailable, match="nothing was migrated") as refused:
            migrate(PostgresSettings(url=migrated_url))
        pid = c.scalar(text("SELECT pg_backend_pid()"))
    assert f"session {pid} of " in refused.value.hint  # a name that is a password too is not shown
    (line,) = [line for line in lines if line["event"] == "migration.waits_for_another"]
    assert f"session {pid} " in line["holders"]


@pytest.mark.parametrize("off", [timedelta(days=50), timedelta(minutes=-2)])
def test_a_machine_whose_clock_is_wrong_does_not_lead(database: Engine, traffic, off) -> None:
    """50 days ahead once dropped every score, fine bucket and dead letter in 14 seconds."""
    settings = settings_of(evaluate_every=timedelta(seconds=0.2))
    with transaction(database) as c:
        before = c.scalar(text("SELECT count(*) FROM monitor_data.scores"))
    watcher = Watcher(database, settings, machine_clock=lambda: datetime.now(UTC) + off)
    with structlog.testing.capture_logs() as lines, running(watcher):
        assert wait_for(lambda: watcher.problem)
        time.sleep(0.6)
    (line,) = [line for line in lines if line["event"] == "watcher.does_not_lead"]
    assert line["log_level"] == "error"
    assert line["reason"] == watcher.problem
    said = "4320000 s ahead of" if off > timedelta(0) else "120 s behind"
    assert watcher.problem.startswith(f"this machine's clock is {said} the database's")
    with transaction(database) as c:
        assert leadership.leadership(c, "watcher").holder is None
        assert c.scalar(text("SELECT count(*) FROM monitor_data.scores")) == before


def test_times_are_the_databases_whatever_the_machine_says(database: Engine) -> None:
    clock = DatabaseClock(database, machine=lambda: datetime.now(UTC) + timedelta(days=50))
    with transaction(database) as c:
        before = database_time(c)
        assert before <= clock() <= database_time(c) + timedelta(seconds=1)
    assert clock.difference() > timedelta(days=49)
