"""The courier on a real database and real receivers: who is told what, how often, and in which order."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from monitor.alert.webhook import send
from monitor.calling import Caller
from monitor.courier import LARGEST_WAVE, Courier
from monitor.demo.receiver import Answer, Received, Receiver
from monitor.heartbeat import Heartbeat
from monitor.settings import AlertSettings, Endpoint, Settings
from monitor.store.database import transaction
from monitor.store.outbox import (
    claim_deliveries,
    disabled_endpoints,
    enable_endpoint,
    list_deliveries,
    replay_delivery,
)
from monitor.values.alerts import Attempt, Delivery, DeliveryState
from tests.scenes.outbox import announce, attempts

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Clock:
    """The time of day, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def pass_(self, **length: float) -> None:
        self.ahead += timedelta(**length)


def endpoint(receiver: Receiver, name: str = "ops", **changes: Any) -> Endpoint:
    return Endpoint(**{"name": name, "url": receiver.url, "secret": SECRET} | changes)


def settings(*endpoints: Endpoint, **alerts: Any) -> Settings:
    given = {"endpoints": endpoints, "poll_every": timedelta(seconds=0.05)} | alerts
    return Settings(alerts=AlertSettings(**given))


def courier(database: Engine, *endpoints: Endpoint, clock: Any = None, **alerts: Any) -> Courier:
    return Courier(
        database, settings(*endpoints, **alerts), clock=clock or Clock(), jitter=random.Random(1)
    )


def deliveries(database: Engine) -> list[Delivery]:
    with transaction(database) as connection:
        return list(reversed(list_deliveries(connection)))


def ids(received: tuple[Received, ...]) -> list[str]:
    return [request.headers["webhook-id"] for request in received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(SECRET) as receiver:
        yield receiver


def test_an_event_is_told_once_verified_and_recorded(database: Engine, receiver: Receiver) -> None:
    (event_id,) = announce(database)
    sender = courier(database, endpoint(receiver))
    assert sender.step() == 1
    assert sender.step() == 0
    (got,) = receiver.received
    assert got.verified
    assert got.headers["webhook-id"] == event_id
    assert got.json["type"] == "drift.detected"
    assert got.json["data"]["labels"] == {"feature": "toxic", "segment": "all"}
    (delivery,) = deliveries(database)
    assert delivery.state is DeliveryState.DELIVERED
    (attempt,) = attempts(database)
    assert (attempt.number, attempt.outcome, attempt.status, attempt.error) == (
        1,
        "delivered",
        204,
        "",
    )
    assert attempt.latency_seconds > 0


def test_failures_are_tried_again_by_the_schedule_with_the_same_id(
    database: Engine, receiver: Receiver
) -> None:
    (event_id,) = announce(database)
    clock = Clock()
    delays = (timedelta(0), timedelta(seconds=5), timedelta(seconds=100))
    sender = courier(database, endpoint(receiver), clock=clock, retry_delays=delays)
    receiver.answer(Answer(status=500), Answer(status=500))
    assert sender.step() == 1
    assert sender.step() == 0, "5 s have not passed"
    clock.pass_(seconds=6.1)
    assert sender.step() == 1
    clock.pass_(seconds=90)
    assert sender.step() == 0, "the second delay is 100 s"
    clock.pass_(seconds=40)
    assert sender.step() == 1
    assert ids(receiver.received) == [event_id] * 3
    assert ids(receiver.events) == [event_id]
    stamps = [int(r.headers["webhook-timestamp"]) for r in receiver.received]
    assert stamps == sorted(set(stamps)), "every attempt is stamped and signed anew"
    assert [(a.number, a.outcome) for a in attempts(database)] == [
        (1, "retry"),
        (2, "retry"),
        (3, "delivered"),
    ]


def test_it_gives_up_after_the_last_delay_and_a_person_may_replay(
    database: Engine, receiver: Receiver
) -> None:
    (event_id,) = announce(database)
    receiver.always(Answer(status=500))
    clock = Clock()
    delays = (timedelta(0), timedelta(seconds=1), timedelta(seconds=2))
    sender = courier(database, endpoint(receiver), clock=clock, retry_delays=delays)
    for _ in range(6):
        sender.step()
        clock.pass_(seconds=3)
    (delivery,) = deliveries(database)
    assert (delivery.state, delivery.attempts) == (DeliveryState.GIVEN_UP, 3)
    receiver.always(Answer())
    with transaction(database) as connection:
        replay_delivery(connection, delivery.delivery_id, clock())
    assert sender.step() == 1
    assert deliveries(database)[0].state is DeliveryState.DELIVERED
    assert set(ids(receiver.received)) == {event_id}


def test_jitter_spreads_the_attempts_and_never_hastens_them(
    database: Engine, receiver: Receiver
) -> None:
    for _ in range(8):
        announce(database)
    receiver.always(Answer(status=500))
    clock = Clock()
    delays = (timedelta(0), timedelta(hours=10))
    sender = courier(database, endpoint(receiver), clock=clock, retry_delays=delays)
    while sender.step():
        pass
    waits = [d.next_attempt_at - clock() for d in deliveries(database)]
    assert all(timedelta(hours=9.9) < wait < timedelta(hours=12) for wait in waits)
    assert len({round(wait.total_seconds() / 60) for wait in waits}) > 4


def test_gone_disables_the_endpoint_and_no_other(database: Engine, receiver: Receiver) -> None:
    with Receiver(SECRET) as other:
        receiver.always(Answer(status=410))
        announce(database, "ops", "other")
        sender = courier(database, endpoint(receiver), endpoint(other, "other"))
        assert sender.step() == 2
        announce(database, "ops", "other")
        assert sender.step() == 1
        assert len(receiver.received) == 1
        assert len(other.events) == 2
    with transaction(database) as connection:
        assert list(disabled_endpoints(connection)) == ["ops"]
        enable_endpoint(connection, "ops")
    receiver.always(Answer())
    assert sender.step() == 1
    assert [d.state for d in deliveries(database) if d.endpoint == "ops"] == [
        DeliveryState.GIVEN_UP,
        DeliveryState.DELIVERED,
    ]


def test_slow_down_pauses_the_whole_endpoint_for_as_long_as_it_asks(
    database: Engine, receiver: Receiver
) -> None:
    announce(database)
    announce(database)
    receiver.answer(Answer(status=429, headers={"retry-after": "120"}))
    clock = Clock()
    sender = courier(database, endpoint(receiver), clock=clock)
    assert sender.step() == 1
    clock.pass_(seconds=110)
    assert sender.step() == 0
    clock.pass_(seconds=15)
    assert sender.step() == 1
    assert sender.step() == 1
    assert len(receiver.events) == 2


def test_a_redirect_is_not_followed_and_tried_again(database: Engine, receiver: Receiver) -> None:
    with Receiver(SECRET) as target:
        receiver.answer(Answer(status=302, headers={"location": target.url}))
        announce(database)
        clock = Clock()
        sender = courier(database, endpoint(receiver), clock=clock)
        sender.step()
        clock.pass_(seconds=7)
        sender.step()
        assert target.received == ()
    assert [a.status for a in attempts(database)] == [302, 204]


def test_a_refused_body_is_given_up_at_once(database: Engine) -> None:
    with Receiver() as pagerduty:
        pagerduty.always(Answer(status=400))
        announce(database)
        sender = courier(database, endpoint(pagerduty, format="pagerduty", secret="R0UT1NG"))
        assert sender.step() == 1
        assert pagerduty.received[0].json["routing_key"] == "R0UT1NG"
    assert deliveries(database)[0].state is DeliveryState.GIVEN_UP


def test_events_of_one_alert_keep_their_order_and_do_not_hold_up_others(
    database: Engine, receiver: Receiver
) -> None:
    first = announce(database, types=("drift.detected", "drift.reminder", "drift.resolved"))
    second = announce(database)
    receiver.answer(Answer(status=500))
    clock = Clock()
    sender = courier(database, endpoint(receiver), clock=clock)
    while sender.step():
        pass
    assert ids(receiver.events) == second
    clock.pass_(seconds=7)
    while sender.step():
        pass
    assert ids(receiver.events) == second + first


def test_an_endpoint_that_hangs_delays_no_other(database: Engine, receiver: Receiver) -> None:
    with Receiver(SECRET) as hanging:
        hanging.always(Answer(hang_seconds=60))
        ends = [
            endpoint(hanging, "hanging", timeout=timedelta(seconds=2)),
            endpoint(receiver, "quick"),
        ]
        expected = [announce(database, "hanging", "quick")[0] for _ in range(10)]
        with running(courier(database, *ends)) as ended:
            assert receiver.wait_for(lambda got: len(got) == 10, 10)
            hung = len(hanging.received)
        assert hung <= 4, "the quick one did not wait for the other's timeouts"
        assert ended() < 4
    assert sorted(ids(receiver.events)) == sorted(expected)


def test_no_more_than_the_rate_of_an_endpoint(database: Engine, receiver: Receiver) -> None:
    for _ in range(5):
        announce(database)
    clock = Clock()
    sender = courier(database, endpoint(receiver, rate_per_minute=3), clock=clock)
    while sender.step():
        pass
    assert len(receiver.events) == 3
    clock.pass_(seconds=61)
    while sender.step():
        pass
    assert len(receiver.events) == 5


def test_an_unreadable_secret_waits_for_a_person(
    database: Engine, receiver: Receiver, tmp_path: Any
) -> None:
    announce(database)
    file = tmp_path / "secret"
    file.write_text(SECRET)
    clock = Clock()
    to = endpoint(receiver, secret=None, secret_file=file)
    sender = courier(database, to, clock=clock)
    file.unlink()
    assert sender.step() == 1
    assert "cannot read" in str(sender.unusable()[to.name])
    assert "cannot read" in attempts(database)[0].error
    file.write_text(SECRET)
    assert not sender.unusable()
    clock.pass_(seconds=7)
    assert sender.step() == 1
    assert receiver.events[0].verified


UNRENDERABLE = {
    "no object": "alert = 'null'",
    "a list": "alert = '[1]'",
    "a field is missing": "alert = alert - 'summary'",
    "a state of another release": 'alert = alert || \'{"state": "pondering"}\'',
    "a moment that is none": 'alert = alert || \'{"fired_at": "yesterday"}\'',
    "a summary that is no text": 'alert = alert || \'{"summary": {"a": 1}}\'',
    "labels that are no mapping": 'alert = alert || \'{"labels": ["a"]}\'',
    "labels that are no texts": 'alert = alert || \'{"labels": {"feature": 7}}\'',
    "a number beyond 64 bits": "alert = jsonb_set(alert, '{details,n}', to_jsonb(1e30::numeric))",
    "a number of 5,000 digits": "alert = jsonb_set(alert, '{details,n}', repeat('9', 5000)::jsonb)",
    "nested 3,000 deep": "alert = jsonb_set(alert, '{details,n}',"
    " (repeat('[', 3000) || repeat(']', 3000))::jsonb)",
    "made before there was time": "alert = 'null', created_at = '-infinity'",
}


@pytest.mark.parametrize("damage", UNRENDERABLE.values(), ids=UNRENDERABLE)
def test_an_event_that_cannot_be_rendered_is_given_up_with_its_reason_and_the_rest_goes_on(
    database: Engine, receiver: Receiver, damage: str
) -> None:
    (broken,) = announce(database)
    with transaction(database) as connection:
        connection.execute(
            text(f"UPDATE monitor_data.events SET {damage} WHERE event_id = :id"), {"id": broken}
        )
    (whole,) = announce(database)
    with running(courier(database, endpoint(receiver))):
        assert receiver.wait_for(lambda got: len(got) == 1, 10)
    assert ids(receiver.events) == [whole]
    first, second = deliveries(database)
    assert (first.state, second.state) == (DeliveryState.GIVEN_UP, DeliveryState.DELIVERED)
    reason = attempts(database)[0].error
    assert reason.startswith("cannot be rendered: "), reason
    assert len(reason) < 400


def test_what_no_sender_was_written_for_is_tried_again_and_ends_no_thread(
    database: Engine, receiver: Receiver
) -> None:
    announce(database)
    (whole,) = announce(database)
    failures = [RuntimeError(f"a word that nobody should see: {SECRET}")]

    def failing_once(*given: Any) -> Attempt:
        if failures:
            raise failures.pop()
        return send(*given)

    sender = Courier(database, settings(endpoint(receiver)), sender=failing_once)
    with running(sender):
        assert receiver.wait_for(lambda got: len(got) == 1, 10)
    assert ids(receiver.events) == [whole]
    assert [(a.outcome, a.error) for a in attempts(database)] == [
        ("retry", "RuntimeError"),
        ("delivered", ""),
    ]


def test_an_attempt_that_could_not_be_recorded_is_recorded_later_and_not_repeated(
    database: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monitor.errors import DatabaseUnavailable

    announce(database)
    sender = courier(database, endpoint(receiver))
    with database.connect() as locker:
        locker.execute(text("LOCK TABLE monitor_data.delivery_attempts"))
        with database.begin() as connection:
            name = connection.scalar(text("SELECT current_database()"))
            connection.execute(text(f"ALTER DATABASE {name} SET lock_timeout = '200ms'"))
        database.dispose(close=False)
        with pytest.raises(DatabaseUnavailable):
            sender.step()
    assert len(receiver.events) == 1
    assert attempts(database) == []
    sender.step()
    assert [a.outcome for a in attempts(database)] == ["delivered"]
    assert len(receiver.received) == 1


class running:
    """A courier in a thread; leaving stops it. Calling the value gives the seconds that took."""

    def __init__(self, *couriers: Courier) -> None:
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(c,)) for c in couriers]
        self._seconds = 0.0

    def _run(self, sender: Courier) -> None:
        try:
            sender.run(self._stop)
        except BaseException as failure:
            self._failures.append(failure)

    def __enter__(self) -> Callable[[], float]:
        for thread in self._threads:
            thread.start()
        return lambda: self._seconds

    def __exit__(self, *_: object) -> None:
        started = time.monotonic()
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._seconds = time.monotonic() - started
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self._failures


def test_two_couriers_share_the_work_and_repeat_nothing(
    database: Engine, receiver: Receiver
) -> None:
    expected = [
        event_id
        for _ in range(20)
        for event_id in announce(database, types=("drift.detected", "drift.resolved"))
    ]
    to = endpoint(receiver, rate_per_minute=1_000)
    with running(courier(database, to), courier(database, to)):
        assert receiver.wait_for(lambda got: len(got) >= 40, 30)
        time.sleep(0.3)
    heard = ids(receiver.received)
    assert sorted(heard) == sorted(expected)
    order: dict[str, list[int]] = {}
    for request in receiver.received:
        data = request.json["data"]
        order.setdefault(data["alert_id"], []).append(data["sequence"])
    assert all(sequences == [1, 2] for sequences in order.values())


def flood(database: Engine, number: int) -> None:
    """As many alerts again as ``number``, each with two events, to ``ops``, by SQL and unanalysed."""
    announce(database, types=("drift.detected", "drift.resolved"))
    with transaction(database) as connection:
        connection.execute(
            text("""
                INSERT INTO monitor_data.events
                SELECT event_id || n, md5(n::text)::uuid::text, type, sequence, created_at, alert
                FROM monitor_data.events, generate_series(1, :number) AS n
            """),
            {"number": number},
        )
        connection.execute(
            text("""
                INSERT INTO monitor_data.deliveries
                    (event_id, endpoint, alert_id, sequence, state, next_attempt_at)
                SELECT event_id, 'ops', alert_id, sequence, 'waiting', created_at
                FROM monitor_data.events
                WHERE event_id NOT IN (SELECT event_id FROM monitor_data.deliveries)
            """)
        )


def test_of_ten_thousand_alerts_each_claim_looks_at_few(database: Engine) -> None:
    """Counted by the server, not timed: rows that a claim of 64 fetches of deliveries."""
    flood(database, 10_000)
    looked = text(
        "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_all_tables"
        " WHERE relid = 'monitor_data.deliveries'::regclass"
    )
    for _ in range(12):  # a driver prepares a statement that it has seen five times
        with transaction(database) as connection:
            before = connection.scalar(looked)
            claimed = claim_deliveries(connection, datetime.now(UTC), 64, 60, ["ops"])
            assert len({d.event.alert_id for d in claimed}) == len(claimed) == 64
            assert {d.event.sequence for d in claimed} == {1}
            assert connection.scalar(looked) - before < 3_000


class Counting:
    """A sender that knows which alerts are told at the moment, and how many were at most."""

    def __init__(self, *, until: int) -> None:
        self.most = 0
        self.twice: list[str] = []
        self._now: list[str] = []
        self._changed = threading.Condition()
        self._until = until

    def __call__(self, caller: Caller, request: Any, to: Endpoint, now: datetime) -> Attempt:
        alert_id = json.loads(request.body)["data"]["alert_id"]
        with self._changed:
            if alert_id in self._now:
                self.twice.append(alert_id)
            self._now.append(alert_id)
            self.most = max(self.most, len(self._now))
            self._changed.notify_all()
            # So many at once, or what comes alone at the beginning.
            self._changed.wait_for(lambda: self.most >= self._until, 0.05)
        attempt = send(caller, request, to, now)
        with self._changed:
            self._now.remove(alert_id)
        return attempt


def test_while_all_goes_well_an_endpoint_is_told_several_things_at_once(
    database: Engine, receiver: Receiver
) -> None:
    """But never two of one alert; and what was told together is recorded together."""
    commits: list[object] = []
    event.listen(database, "commit", commits.append)
    for _ in range(60):
        announce(database, types=("drift.detected", "drift.reminder", "drift.resolved"))
    commits.clear()
    counting = Counting(until=LARGEST_WAVE)
    to = endpoint(receiver, rate_per_minute=10_000)
    with running(Courier(database, settings(to), sender=counting)):
        assert receiver.wait_for(lambda got: len(got) == 180, 60)
    assert counting.most == LARGEST_WAVE
    assert counting.twice == []
    order: dict[str, list[int]] = {}
    for request in receiver.received:
        data = request.json["data"]
        order.setdefault(data["alert_id"], []).append(data["sequence"])
    assert list(order.values()) == [[1, 2, 3]] * 60
    assert len(commits) < 180, "each took two transactions once"


def test_after_a_failure_an_endpoint_is_told_one_thing_at_a_time(
    database: Engine, receiver: Receiver
) -> None:
    receiver.always(Answer(status=500))
    for _ in range(20):
        announce(database)
    counting = Counting(until=2)
    with running(Courier(database, settings(endpoint(receiver)), sender=counting)):
        assert receiver.wait_for(lambda got: len(got) == 20, 60)
    assert counting.most == 1


def test_a_batch_ends_at_a_failure_and_what_was_not_tried_is_due_at_once(
    database: Engine, receiver: Receiver
) -> None:
    for _ in range(12):
        announce(database)
    receiver.answer(*[Answer()] * 5, Answer(status=500))
    with running(courier(database, endpoint(receiver, rate_per_minute=1_000))):
        assert receiver.wait_for(lambda got: len(got) == 12, 20)
    assert len(receiver.events) == 11
    assert len(set(ids(receiver.received))) == 12
    waiting = [d for d in deliveries(database) if d.state is DeliveryState.WAITING]
    assert [d.attempts for d in waiting] == [1]


def test_the_heartbeat_beats_while_it_runs(database: Engine, receiver: Receiver) -> None:
    heartbeat = Heartbeat()
    sender = Courier(database, settings(endpoint(receiver)), heartbeat=heartbeat)
    with running(sender):
        deadline = time.monotonic() + 5
        while heartbeat.age("courier") is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert heartbeat.age("courier") is not None
    assert heartbeat.age("courier") is None


def test_without_endpoints_there_is_nothing_to_do(database: Engine) -> None:
    sender = courier(database)
    assert sender.step() == 0
    with running(sender):
        time.sleep(0.1)


PROGRAM = """
import sys, threading
from datetime import timedelta
from monitor.calling import Caller
from monitor.courier import LARGEST_WAVE, Courier
from monitor.settings import AlertSettings, Endpoint, PostgresSettings, Settings
from monitor.store.database import connect

url, address, secret = sys.argv[1:]
to = Endpoint(name="ops", url=address, secret=secret, timeout=timedelta(seconds=30))
alerts = AlertSettings(endpoints=(to,), poll_every=timedelta(seconds=0.05))
Courier(connect(PostgresSettings(url=url)), Settings(alerts=alerts)).run(threading.Event())
"""


def test_a_courier_killed_while_it_sends_is_made_up_for_under_the_same_id(
    database: Engine, migrated_url: str, receiver: Receiver
) -> None:
    first, last = announce(database, types=("drift.detected", "drift.resolved"))
    receiver.answer(Answer(hang_seconds=60))
    command = [sys.executable, "-c", PROGRAM, migrated_url, receiver.url, SECRET]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        assert receiver.wait_for(lambda got: len(got) == 1, 60)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert attempts(database) == []
    clock = Clock()
    sender = courier(database, endpoint(receiver), clock=clock)
    assert sender.step() == 0, "the dead courier's lease still holds"
    clock.pass_(seconds=131)
    assert sender.step() == 1
    assert sender.step() == 1
    assert ids(receiver.received) == [first, first, last]
    assert {d.state for d in deliveries(database)} == {DeliveryState.DELIVERED}


def test_the_database_going_away_is_waited_for(
    restartable_postgres: Any, receiver: Receiver
) -> None:
    from monitor.settings import PostgresSettings
    from monitor.store.database import connect, migrate

    url = PostgresSettings(url=restartable_postgres.url)
    migrate(url)
    database = connect(url)
    with running(courier(database, endpoint(receiver))):
        restartable_postgres.stop()
        time.sleep(0.5)
        restartable_postgres.start()
        (event_id,) = announce(database)
        assert receiver.wait_for(lambda got: len(got) == 1, 30)
    assert ids(receiver.events) == [event_id]
    database.dispose()
