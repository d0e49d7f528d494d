"""How each kind of fault is done and undone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import psutil
import psycopg
from kafka import KafkaConsumer
from kafka.errors import KafkaError

from monitor.demo.receiver import Answer
from tests.faults.campaign.proxy import DRIP, FLOOD, Proxy
from tests.faults.campaign.schedule import Fault
from tests.faults.campaign.stage import GROUP, TOPIC, Stage, wait_for

FORGOTTEN_SECONDS: Final = 1.3
"""The embedded broker may forget what came so shortly before it stops; Apache Kafka does not."""


def inflict(fault: Fault, stage: Stage) -> None:
    """Do ``fault`` and undo it. Afterwards everything may work again, and should."""
    _WAYS[fault.kind](fault, stage)


def _kill(fault: Fault, stage: Stage) -> None:
    actor = stage.actors[fault.target]
    actor.end(signal.SIGKILL)
    time.sleep(fault.seconds)
    actor.start()


def _terminate(fault: Fault, stage: Stage) -> None:
    actor = stage.actors[fault.target]
    # Told before it listens, it ends by the signal: also well.
    code = actor.end(signal.SIGTERM)
    assert code in (0, -signal.SIGTERM), f"{fault.target} ended with {code} when asked to"
    time.sleep(fault.seconds)
    actor.start()


def _freeze(fault: Fault, stage: Stage) -> None:
    actor = stage.actors[fault.target]
    actor.signal(signal.SIGSTOP)
    time.sleep(fault.seconds)
    actor.signal(signal.SIGCONT)


def _freeze_postgres(fault: Fault, stage: Stage) -> None:
    family = stage.postgres_family()
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.suspend()
    time.sleep(fault.seconds)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.resume()


def _restart_postgres(fault: Fault, stage: Stage) -> None:
    stage.postgres.stop()
    time.sleep(fault.seconds)
    stage.postgres.start()


def _crash_postgres(fault: Fault, stage: Stage) -> None:
    stage.postgres.kill()
    time.sleep(fault.seconds)
    stage.postgres.start()


def _kill_a_backend(fault: Fault, stage: Stage) -> None:
    """The server ends all others, too, and recovers."""
    with stage.sessions() as session:
        row = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' LIMIT 1"
        ).fetchone()
        if row is None:
            return
        with suppress(psutil.NoSuchProcess):
            psutil.Process(row[0]).kill()
        # Its own session ends with the others: until then the server has not noticed yet.
        with suppress(psycopg.Error, AssertionError):
            wait_for(lambda: session.execute("SELECT 1").fetchone() is None, "it ends nobody", 5)
    wait_for(lambda: _answers(stage), "PostgreSQL does not recover")


def _answers(stage: Stage) -> bool:
    try:
        stage.read()
    except psycopg.Error:
        return False
    return True


def _end_sessions(fault: Fault, stage: Stage) -> None:
    with stage.sessions() as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def _lock(fault: Fault, stage: Stage) -> None:
    with stage.sessions() as session, session.transaction():
        session.execute("SET LOCAL lock_timeout = '5s'")
        with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            session.execute(f"LOCK TABLE monitor_data.{fault.target} IN ACCESS EXCLUSIVE MODE")
            time.sleep(fault.seconds)


def _fill_disk(fault: Fault, stage: Stage) -> None:
    with _full(stage):
        time.sleep(fault.seconds)


@contextmanager
def _full(stage: Stage) -> Iterator[None]:
    """Without a small disk of our own: no file of the server's sessions may grow, its log neither."""
    if stage.disk.real:
        stage.disk.fill()
        try:
            yield
        finally:
            stage.disk.empty()
        return
    _, *family = stage.postgres_family()
    for one in family:
        with suppress(psutil.Error):
            one.rlimit(psutil.RLIMIT_FSIZE, (8_192, psutil.RLIM_INFINITY))
    yield
    for one in family:
        with suppress(psutil.Error):
            one.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    wait_for(lambda: _answers(stage), "PostgreSQL does not recover")


def _cut(fault: Fault, stage: Stage) -> None:
    stage.proxies[fault.target].cut()


def _freeze_broker(fault: Fault, stage: Stage) -> None:
    stage.broker._server.send(signal.SIGSTOP)
    time.sleep(fault.seconds)
    stage.broker._server.send(signal.SIGCONT)


def _restart_broker(fault: Fault, stage: Stage) -> None:
    stage.load.rest()
    time.sleep(FORGOTTEN_SECONDS)
    stage.broker.stop()
    time.sleep(fault.seconds)
    stage.broker.start()
    stage.load.go_on()


def _wrong_clock(fault: Fault, stage: Stage) -> None:
    wrong_by = stage.actors[fault.target].wrong_by
    wrong_by.value = fault.amount
    time.sleep(fault.seconds)
    wrong_by.value = 0.0


def _one_more_worker(fault: Fault, stage: Stage) -> None:
    guest = stage.actor("worker-guest", static=False)
    guest.start()
    time.sleep(fault.seconds)
    try:
        # Never killed: the embedded broker would wait for it for ever. Apache Kafka would not.
        code = guest.end(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM), f"a guest ended with {code} when asked to"
    finally:
        guest.close()


def _foreign_member(fault: Fault, stage: Stage) -> None:
    """Someone who joins the group, takes partitions, commits offsets there and goes again."""
    with suppress(KafkaError):
        stranger = KafkaConsumer(
            TOPIC,
            bootstrap_servers=stage.broker.bootstrap,
            group_id=GROUP,
            session_timeout_ms=6_000,
            max_poll_interval_ms=10_000,
            enable_auto_commit=True,
            auto_commit_interval_ms=100,
            auto_offset_reset="latest",
        )
        try:
            ends = time.monotonic() + fault.seconds
            while time.monotonic() < ends:
                stranger.poll(timeout_ms=100)
        finally:
            stranger.close()


def _answer(fault: Fault, stage: Stage, answer: Answer) -> None:
    stage.receivers[fault.target].answer(*[answer] * int(fault.amount))


def _error(fault: Fault, stage: Stage) -> None:
    _answer(fault, stage, Answer(status=500))


def _slow_down(fault: Fault, stage: Stage) -> None:
    _answer(fault, stage, Answer(status=429, headers={"retry-after": "1"}))


def _for_a_while(behave: Callable[[Proxy, Fault], None]) -> Callable[[Fault, Stage], None]:
    """The wire behaves so for the fault's seconds, and then as it should."""

    def inflicted(fault: Fault, stage: Stage) -> None:
        proxy = stage.proxies[fault.target]
        behave(proxy, fault)
        time.sleep(fault.seconds)
        proxy.behave()

    return inflicted


def _hang(fault: Fault, stage: Stage) -> None:
    _answer(fault, stage, Answer(status=500, hang_seconds=5.0))


_WAYS: Final[Mapping[str, Callable[[Fault, Stage], None]]] = {
    "kill": _kill,
    "terminate": _terminate,
    "freeze": _freeze,
    "outlast the lease": _freeze,
    "outlast the session": _freeze,
    "postgres: freeze": _freeze_postgres,
    "postgres: restart": _restart_postgres,
    "postgres: crash": _crash_postgres,
    "postgres: kill a backend": _kill_a_backend,
    "postgres: end all sessions": _end_sessions,
    "postgres: lock a table": _lock,
    "disk full": _fill_disk,
    "network: cut": _cut,
    "network: cut in a message": _for_a_while(
        lambda proxy, fault: proxy.cut_after(int(fault.amount))
    ),
    "network: refuse": _for_a_while(lambda proxy, _: proxy.refuse(True)),
    "network: stall": _for_a_while(lambda proxy, _: proxy.stall(True)),
    "network: slow": _for_a_while(lambda proxy, fault: proxy.slow(fault.amount)),
    "broker: freeze": _freeze_broker,
    "broker: restart": _restart_broker,
    "clock": _wrong_clock,
    "rebalance: one more worker": _one_more_worker,
    "rebalance: a foreign member": _foreign_member,
    "receiver: 500": _error,
    "receiver: slow down": _slow_down,
    "receiver: hangs": _hang,
    "receiver: floods": _for_a_while(lambda proxy, _: proxy.poison(FLOOD)),
    "receiver: drips": _for_a_while(lambda proxy, _: proxy.poison(DRIP)),
}
