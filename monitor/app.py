"""Composition root: builds the loops from the settings, runs them, and turns their end into an exit code.

Exit codes: 0 asked to stop and did; 1 stopped loudly; 2 refused to start.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from monitor.courier import Courier
from monitor.errors import DatabaseUnavailable, MonitorError, PackError, RefuseToStart
from monitor.score.pack import Pack, fit_problems, load_pack, manifest, shipped_pack
from monitor.settings import Settings, secret
from monitor.store import scores as store
from monitor.store.database import connect, require_schema, transaction
from monitor.telemetry import METRICS, Heartbeat, get_logger
from monitor.watcher import Watcher
from monitor.web.app import create_app
from monitor.web.server import WebServer

if TYPE_CHECKING:
    from monitor.replay.engine import ReplayEngine

log = get_logger(__name__)

LOOPS = ("worker", "watcher", "courier", "web")


class Readiness:
    """What ``/readyz`` names: each check is True, or the reason why not."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        self.checks: dict[str, Callable[[], bool | str]] = {"database": self._answers}

    def report(self) -> Mapping[str, bool | str]:
        return {name: check() for name, check in list(self.checks.items())}

    def _answers(self) -> bool | str:
        try:
            require_schema(self._database)
        except MonitorError as error:
            return str(error)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """The copy of the model with the pack that reads it."""

    pack: Pack
    engine: ReplayEngine


def build_instrument(settings: Settings) -> Instrument:
    """Load pack and model, and refuse a pack that was made for another model.

    torch is imported here and not above: watcher, courier and web run without it.
    """
    from monitor.replay.engine import ReplayEngine
    from monitor.replay.model import fingerprint_of, load_model

    fingerprint = dict(fingerprint_of(settings.replay))
    if settings.pack.other_weights:
        del fingerprint["weights_hash"]
    path = settings.pack.path or shipped_pack(fingerprint)
    if path is None:
        raise PackError(
            f"no pack is shipped for the model in {settings.replay.model}",
            hint="Set pack.path, or build a pack with `monitor pack build contrast`.",
        )
    pack = load_pack(path)
    problems = fit_problems(pack, fingerprint)
    if problems:
        raise PackError(
            f"the pack {pack.name} does not fit the model in {settings.replay.model}:\n  "
            + "\n  ".join(problems),
            hint="Use the pack made for this model, or build one: `monitor pack build contrast`.",
        )
    full = settings.replay.mode == "generate"
    loaded = load_model(settings.replay, pack.deepest_site, full=full)
    return Instrument(pack=pack, engine=ReplayEngine(loaded, pack.features, settings.replay))


def run_loops(settings: Settings, names: Sequence[str], stop: threading.Event | None = None) -> int:
    """Run the named loops until SIGTERM, SIGINT or ``stop``; the first loop that fails stops all."""
    stop = stop or threading.Event()
    heartbeat = Heartbeat()
    database = connect(settings.postgres)
    readiness = Readiness(database)
    _wait_for_schema(database, stop)
    failures: list[BaseException] = []

    def guarded(name: str, run: Callable[[threading.Event], None]) -> None:
        try:
            run(stop)
        except BaseException as error:
            failures.append(error)
            log.error("loop.failed", loop=name, error=str(error), kind=type(error).__name__)
        finally:
            stop.set()

    with _signals(stop):
        loops = {
            name: _loop(name, settings, database, heartbeat, readiness, stop) for name in names
        }
        threads = [
            threading.Thread(target=guarded, args=(name, run), name=name)
            for name, run in loops.items()
        ]
        for thread in threads:
            thread.start()
        log.info("monitor.running", loops=list(names))
        for thread in threads:
            thread.join()
    database.dispose()
    log.info("monitor.stopped", failed=bool(failures))
    if failures:
        raise failures[0]
    return 0


def _loop(
    name: str,
    settings: Settings,
    database: Engine,
    heartbeat: Heartbeat,
    readiness: Readiness,
    stop: threading.Event,
) -> Callable[[threading.Event], None]:
    if name == "worker":
        readiness.checks["model"] = lambda: "it is being loaded"
        return lambda stop: _run_worker(settings, database, heartbeat, readiness, stop)
    if name == "watcher":
        return Watcher(database, settings, heartbeat=heartbeat).run
    if name == "courier":
        return Courier(database, settings, heartbeat=heartbeat).run
    app = create_app(database, heartbeat, readiness.report)
    return WebServer(app, settings.web).serve


def _run_worker(
    settings: Settings,
    database: Engine,
    heartbeat: Heartbeat,
    readiness: Readiness,
    stop: threading.Event,
) -> None:
    from monitor.ingest.kafka import DeadLetterProducer, KafkaSource
    from monitor.worker import Worker

    instrument = build_instrument(settings)
    pack = instrument.pack
    with transaction(database) as connection:
        store.register_pack(connection, pack.pack_id, pack.name, manifest(pack), pack.features)
    if stop.is_set():
        return

    def start_offsets(partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        with transaction(database) as connection:
            return store.start_offsets(connection, settings.kafka.group_id, partitions)

    sink = DeadLetterProducer(settings.kafka) if settings.kafka.dead_letter_topic else None
    try:
        with KafkaSource(settings.kafka, settings.ingest, start_offsets) as source:
            worker = Worker(
                source=source,
                replay=instrument.engine,
                pack=pack,
                database=database,
                settings=settings,
                hash_key=hash_key(settings),
                worker_id=worker_id(),
                dead_letters=sink,
                heartbeat=heartbeat,
            )
            readiness.checks["model"] = lambda: True
            readiness.checks["assignment"] = lambda: bool(source.assigned()) or "no partition yet"
            worker.run(stop)
    finally:
        if sink:
            sink.close()


def hash_key(settings: Settings) -> bytes:
    """The key of the content hashes; without a configured one, a new key, so hashes do not join."""
    given = secret(settings.privacy.hash_key, settings.privacy.hash_key_file, "privacy.hash_key")
    return given.encode() if given else secrets.token_bytes(32)


def worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _wait_for_schema(database: Engine, stop: threading.Event) -> None:
    """Postgres may start after us; a wrong schema is refused, an absent server is waited for."""
    delay = 1.0
    while not stop.is_set():
        try:
            return require_schema(database)
        except DatabaseUnavailable as error:
            METRICS.retries.labels(dependency="database").inc()
            log.warning("monitor.waiting_for_database", error=str(error), seconds=delay)
            stop.wait(delay)
            delay = min(delay * 2, 30.0)
    raise RefuseToStart("stopped before the database answered")


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("monitor.stopping", signal=signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
