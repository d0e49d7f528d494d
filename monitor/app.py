"""Composition root: builds the loops from the settings, runs them, and turns their end into an exit code.

Exit codes: 0 asked to stop and did; 1 stopped loudly; 2 refused to start.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Final

from sqlalchemy import Engine

from monitor.alert.judged import ALLOW, require_judged
from monitor.courier import Courier
from monitor.errors import DatabaseUnavailable, MonitorError, ReplayUnavailable
from monitor.heartbeat import Heartbeat
from monitor.ingest.kafka import DeadLetterTopic, KafkaSource
from monitor.instrument import Instrument, build_instrument, dtypes_before
from monitor.lasting import keep_loaded
from monitor.logs import get_logger
from monitor.lookout import Lookout
from monitor.metrics import METRICS
from monitor.patience import Patience, rest_until
from monitor.reading_points import StoredPoints
from monitor.score.pack import Pack, manifest
from monitor.server_canaries import ServerCanaries
from monitor.server_copy import ServerCopy
from monitor.settings import Settings, secret
from monitor.signals import stopped_by_signals
from monitor.store.clock import DatabaseClock
from monitor.store.database import connect, require_schema, transaction
from monitor.store.packs import register_pack
from monitor.unanswered import Unanswered
from monitor.watcher import Watcher
from monitor.web.app import create_app
from monitor.web.server import WebServer, health_server
from monitor.worker import Worker

log = get_logger(__name__)

LOOK_SECONDS: Final = 0.2
"""How often a thread that waits looks whether it is asked to stop."""


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


Build = Callable[[Settings], Instrument]


def build_watched(settings: Settings) -> Instrument:
    """The instrument, with a pack that the rules may page on: `RefuseToStart` before the model is loaded.

    Waits for the database where the dtype depends on what is stored there, and for the server of another
    engine.
    """

    def accept(pack: Pack) -> None:
        require_judged(settings, pack.name, pack.selectable, pack.verdicts)

    def before(pack_id: str) -> Sequence[str]:
        found: list[str] = []
        database = connect(settings.postgres)
        try:
            until_answered(
                lambda: found.extend(dtypes_before(database, settings.replay)(pack_id)),
                threading.Event(),
            )
        finally:
            database.dispose()
        return found

    def told(error: Exception, seconds: float) -> None:
        METRICS.retries.labels(dependency="replay").inc()
        log.warning("monitor.waiting_for_replay", error=str(error), seconds=seconds)

    return Patience(first_seconds=1.0).until_done(
        lambda: build_instrument(settings, accept, before), passing=ReplayUnavailable, told=told
    )


def run_loops(
    settings: Settings,
    names: Sequence[str],
    *,
    stop: threading.Event | None = None,
    build: Build = build_watched,
) -> None:
    """Run the named loops until SIGTERM, SIGINT or ``stop``; the first that fails stops all.

    The web face answers first, before anything is reached for: whatever is down, ``/livez`` is well
    and ``/readyz`` says what is waited for. Raises what the failed loop raised, after the others
    have finished what they had in hand.
    """
    stop = stop or threading.Event()
    failures: list[BaseException] = []

    def guarded(name: str, run: Loop) -> None:
        try:
            run(stop)
        except BaseException as error:
            failures.append(error)
            log.error("loop.failed", loop=name, error=str(error), kind=type(error).__name__)
        finally:
            stop.set()

    with stopped_by_signals(stop), ExitStack() as open_parts:
        database = connect(settings.postgres)
        open_parts.callback(database.dispose)
        loops = _Loops(settings, database, build, names)
        if "web" in names:
            for server in filter(None, (loops.health, loops.face)):
                server.start()
                open_parts.callback(server.stop)
        runs = {name: getattr(loops, name)() for name in names}
        if not until_answered(lambda: require_schema(database), stop):
            log.info("monitor.stopped", failed=False)
            return
        runs["lookout"] = loops.lookout.run
        threads = [
            threading.Thread(target=guarded, args=(name, run), name=name)
            for name, run in runs.items()
        ]
        for thread in threads:
            thread.start()
        log.info("monitor.running", loops=list(names))
        stop.wait()
        deadline = time.monotonic() + settings.shutdown_grace.total_seconds()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        late = [thread.name for thread in threads if thread.is_alive()]
        if late:
            # What they had in hand is read, evaluated or sent again by whoever comes next.
            log.warning("monitor.left_at_the_end_of_its_grace", loops=late)
            os._exit(1 if failures else 0)
    log.info("monitor.stopped", failed=bool(failures))
    if loops.loading:
        # Nothing is in hand yet, and Python cannot end in good order below a library that is loading.
        os._exit(1 if failures else 0)
    if failures:
        raise failures[0]


Loop = Callable[[threading.Event], None]


class _Loops:
    """Builds each loop on what the loops of one process share; a method is named for its loop."""

    def __init__(
        self, settings: Settings, database: Engine, build: Build, names: Collection[str]
    ) -> None:
        self._settings = settings
        self._database = database
        self._build = build
        self._loader: threading.Thread | None = None
        self._heartbeat = Heartbeat()
        self._readiness = Readiness(database)
        self._clock = DatabaseClock(database)
        web = settings.web
        self._remarks: list[str] = []
        self._said: Callable[[], Sequence[str]] = tuple
        self.lookout = Lookout(
            database,
            settings,
            courier_goes_round=self._courier_goes_round if "courier" in names else None,
        )
        app = partial(
            create_app,
            database,
            self._heartbeat,
            self._readiness.report,
            live_within=web.live_within,
            clock=self._clock,
            own_remarks=lambda: tuple(
                filter(None, (*self._remarks, *self._said(), self.lookout.problem))
            ),
        )
        self.face = WebServer(app(), web)
        self.health = health_server(app(pages=False), web)

    def _courier_goes_round(self) -> bool:
        age = self._heartbeat.age("courier")
        return age is not None and age < self._settings.web.live_within.total_seconds()

    def watcher(self) -> Loop:
        watcher = Watcher(self._database, self._settings, heartbeat=self._heartbeat)
        self._readiness.checks["watcher"] = lambda: watcher.problem or self.lookout.problem or True
        return watcher.run

    def courier(self) -> Loop:
        courier = Courier(
            self._database, self._settings, heartbeat=self._heartbeat, clock=self._clock
        )

        def endpoints() -> bool | str:
            return "; ".join(str(error) for error in courier.unusable().values()) or True

        self._readiness.checks["endpoints"] = endpoints
        return courier.run

    def web(self) -> Loop:
        return self.face.serve

    def worker(self) -> Loop:
        self._readiness.checks["model"] = lambda: "it is loaded when the database has answered"
        return self._work

    def _work(self, stop: threading.Event) -> None:
        settings, checks = self._settings, self._readiness.checks
        checks["model"] = lambda: "it is being loaded"
        instrument = self._loaded(stop)
        if instrument is None:
            return
        unanswered = Unanswered(settings.replay, instrument.pack.features)
        if unanswered.mend:
            log.warning("worker.skips_unanswered", effect=unanswered.told, mend=unanswered.mend)
            self._remarks.append(f"{unanswered.told}: {unanswered.mend}")
        pack = instrument.pack
        for sentence in require_judged(settings, pack.name, pack.selectable, pack.verdicts):
            log.warning("pack.not_judged", pack=pack.name, effect=sentence, allowed_by=ALLOW)
            self._remarks.append(f"pack {pack.name}: {sentence} (allowed by {ALLOW})")
        if not until_answered(lambda: self._register(instrument), stop):
            return
        keep_loaded()
        worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        with ExitStack() as open_parts:
            sink = None
            if settings.kafka.dead_letter_topic:
                sink = open_parts.enter_context(DeadLetterTopic(settings.kafka))
            points = StoredPoints(
                self._database, group_id=settings.kafka.group_id, worker_id=worker_id
            )
            source = open_parts.enter_context(
                KafkaSource(settings.kafka, settings.ingest, points, clock=self._clock.carried)
            )
            asking = self._server_canaries(instrument, worker_id)
            if asking is not None:
                open_parts.enter_context(asking.running())
            self._said = lambda: (
                *source.remarks(),
                *([sink.problem] if sink and sink.problem else ()),
                *([asking.problem] if asking and asking.problem else ()),
            )
            checks["model"] = lambda: True
            checks["assignment"] = lambda: (
                bool(source.assigned()) or source.problem or "no partition yet"
            )
            Worker(
                source=source,
                replay=instrument.engine,
                pack=instrument.pack,
                database=self._database,
                settings=settings,
                hash_key=hash_key(settings),
                worker_id=worker_id,
                dead_letters=sink,
                remarks=self._said,
                heartbeat=self._heartbeat,
                clock=self._clock,
            ).run(stop)

    def _server_canaries(self, instrument: Instrument, worker_id: str) -> ServerCanaries | None:
        if instrument.examiner is None:
            return None
        settings = self._settings
        return ServerCanaries(
            copy=ServerCopy(instrument.pack, instrument.engine, instrument.examiner, settings),
            database=self._database,
            settings=settings,
            worker_id=worker_id,
            clock=self._clock,
        )

    def _loaded(self, stop: threading.Event) -> Instrument | None:
        """The instrument, which may take minutes; None as soon as asked to stop before it is there."""
        building: Future[Instrument] = Future()

        def build() -> None:
            try:
                building.set_result(self._build(self._settings))
            except BaseException as error:
                building.set_exception(error)

        self._loader = threading.Thread(target=build, name="loader", daemon=True)
        self._loader.start()
        while self.loading and not stop.is_set():
            self._loader.join(LOOK_SECONDS)
        return building.result() if building.done() else None

    @property
    def loading(self) -> bool:
        """Whether a model is still being loaded, by a thread that nobody waits for."""
        return self._loader is not None and self._loader.is_alive()

    def _register(self, instrument: Instrument) -> None:
        pack = instrument.pack
        lineage = instrument.engine.lineage(pack.pack_id)
        METRICS.pack_info.labels(
            pack_id=pack.pack_id,
            pack_name=pack.name,
            model_id=lineage.model_id,
            dtype=lineage.dtype,
            device=lineage.device,
        ).set(1)
        with transaction(self._database) as connection:
            register_pack(connection, pack.pack_id, pack.name, manifest(pack), pack.features)


def hash_key(settings: Settings) -> bytes:
    """The key of the content hashes; without a configured one, a new key, so hashes do not join."""
    given = secret(settings.privacy.hash_key, settings.privacy.hash_key_file, "privacy.hash_key")
    return given.encode() if given else secrets.token_bytes(32)


def until_answered(action: Callable[[], None], stop: threading.Event) -> bool:
    """Repeat ``action`` until the database answers; False when asked to stop before it did."""

    def told(error: Exception, seconds: float) -> None:
        METRICS.retries.labels(dependency="database").inc()
        log.warning("monitor.waiting_for_database", error=str(error), seconds=seconds)

    try:
        Patience(first_seconds=1.0).until_done(
            action,
            passing=DatabaseUnavailable,
            told=told,
            rest=rest_until(stop),
            give_up=stop.is_set,
        )
    except DatabaseUnavailable:
        return False
    return not stop.is_set()
