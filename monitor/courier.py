"""The courier loop: outbox → signed webhook → outcome. It shares nothing with the others but Postgres.

Every endpoint has a thread of its own, so an endpoint that hangs delays no other. Deliveries are claimed in
batches while an endpoint takes them, and sent in waves: one at a time at first and after a failure, up to
`LARGEST_WAVE` at once while all goes well; a wave is recorded in one transaction. Each is claimed under a
lease and stays claimed while it is sent: a courier killed at any point leaves its wave to be sent again
after the lease, under the same ``webhook-id``. Events of one alert reach an endpoint in their order: a later
one waits until the earlier is delivered or given up, so no two of a batch are of one alert. Several couriers
may run; each delivery is claimed by one of them.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy import Engine

from monitor.alert.keys import require_keys
from monitor.alert.render import RenderedRequest, render
from monitor.alert.webhook import failure_of, send
from monitor.calling import Caller
from monitor.errors import ConfigurationError, DatabaseUnavailable
from monitor.heartbeat import Heartbeat
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.patience import Patience, rest_until
from monitor.settings import Endpoint, Settings
from monitor.store.clock import DatabaseClock
from monitor.store.database import transaction
from monitor.store.outbox import (
    Tried,
    claim_deliveries,
    disable_endpoint,
    record_attempts,
    release_deliveries,
)
from monitor.store.overview import deliveries_waiting
from monitor.values.alerts import Attempt, Delivery, DeliveryState, Outcome, UnreadableEvent

log = get_logger(__name__)

Sender = Callable[[Caller, RenderedRequest, Endpoint, datetime], Attempt]

LEASE_MARGIN: Final = timedelta(seconds=30)
"""Beside the time of one attempt: to record what came of it."""
BATCH_TIME: Final = timedelta(seconds=5)
"""How long deliveries that were claimed together may take, but for the last of them."""
LARGEST_BATCH: Final = 64
LARGEST_WAVE: Final = 8
"""Connections to one endpoint at most, and what a courier that is killed may send a second time."""
JITTER: Final = 0.2
"""A delay is stretched by up to this share, so that deliveries put off together come back apart."""
SLOW_DOWN: Final = timedelta(seconds=60)
"""How long an endpoint that asks to slow down, and does not say for how long, gets nothing."""


class Courier:
    """Tells the endpoints what the outbox holds. ``step`` is one round, ``run`` goes on until stopped.

    Building it raises `ConfigurationError` when the secret of every endpoint is missing or wrong. With
    some of several the others are told, and the log and `unusable` say which are not.
    """

    def __init__(
        self,
        database: Engine,
        settings: Settings,
        *,
        heartbeat: Heartbeat | None = None,
        clock: Callable[[], datetime] | None = None,
        jitter: random.Random | None = None,
        sender: Sender = send,
    ) -> None:
        self._database = database
        self._settings = settings.alerts
        self._heartbeat = heartbeat
        self._clock = clock or DatabaseClock(database)
        self._jitter = jitter or random.Random()
        self._send = sender
        self._posts = {e.name: _Post(e) for e in settings.alerts.endpoints}
        if not self._posts:
            log.warning("courier.no_endpoints", hint="nobody is told: add one to alerts.endpoints")
        unusable = self.unusable()
        if unusable and len(unusable) == len(self._posts):
            raise next(iter(unusable.values()))
        for name, error in unusable.items():
            log.error("courier.endpoint_unusable", endpoint=name, error=str(error), hint=error.hint)

    def unusable(self) -> dict[str, ConfigurationError]:
        """The endpoints that cannot be told anything just now, for want of their secret."""
        found = {}
        for name, post in self._posts.items():
            try:
                require_keys(post.endpoint)
            except ConfigurationError as error:
                found[name] = error
        return found

    def step(self) -> int:
        """One due delivery to every endpoint, all at once; the number of attempts made.

        Returns when the slowest endpoint has answered. Raises `DatabaseUnavailable`.
        """
        if not self._posts:
            return 0
        with ThreadPoolExecutor(len(self._posts), thread_name_prefix="courier") as pool:
            return sum(pool.map(self._deliver_next, self._posts.values()))

    def run(self, stop: threading.Event) -> None:
        """Deliver until ``stop``. An attempt under way is awaited as long as its timeout lasts.

        A database that does not answer is waited for; any other error of a thread is raised here.
        """
        failures: list[Exception] = []

        def guarded(post: _Post) -> None:
            try:
                self._serve(post, stop)
            except Exception as failure:
                failures.append(failure)

        threads = [
            # Daemons: a database that hangs must not keep the process from ending.
            threading.Thread(target=guarded, args=(post,), name=f"courier-{name}", daemon=True)
            for name, post in self._posts.items()
        ]
        for thread in threads:
            thread.start()
        while not stop.is_set() and not failures:
            if self._heartbeat:
                self._heartbeat.beat("courier")
            self._count_waiting()
            stop.wait(self._settings.poll_every.total_seconds())
        if failures:
            raise failures[0]
        longest = max((p.endpoint.timeout for p in self._posts.values()), default=timedelta(0))
        deadline = time.monotonic() + longest.total_seconds() + 1.0
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._heartbeat:
            self._heartbeat.retire("courier")

    def _serve(self, post: _Post, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                busy = Patience(first_seconds=1.0).until_done(
                    lambda: self._deliver_next(post, post.batch, stop),
                    passing=DatabaseUnavailable,
                    told=_waiting,
                    rest=rest_until(stop),
                    give_up=stop.is_set,
                )
            except DatabaseUnavailable:
                return  # told to stop while it was away: the next run sends what is left
            if not busy:
                stop.wait(self._settings.poll_every.total_seconds())

    def _deliver_next(self, post: _Post, most: int = 1, stop: threading.Event | None = None) -> int:
        """Claim up to ``most`` deliveries, send them wave by wave, record each wave; how many were tried.

        A wave with one that is not delivered ends the batch, and so do ``stop``, the endpoint's rate and
        the lease: what was claimed and not tried is due again at once.
        """
        self._record_kept(post)
        now = self._clock()
        most = min(most, post.room(now))
        if not most:
            return 0
        endpoint = post.endpoint
        lease = (BATCH_TIME + endpoint.timeout + LEASE_MARGIN).total_seconds()
        with transaction(self._database) as connection:
            left = deque(claim_deliveries(connection, now, most, lease, [endpoint.name]))
        tried, ends = 0, time.monotonic() + BATCH_TIME.total_seconds()
        while left and not (tried and ((stop and stop.is_set()) or time.monotonic() > ends)):
            wave = [left.popleft() for _ in range(min(post.wave, len(left)))]
            now = self._clock()
            post.sent.extend([now] * len(wave))
            # Kept until they are recorded: when the database is away just now, it is asked again.
            post.kept = post.at_once(partial(self._attempt, post, now), wave)
            attempts = [attempt for _, attempt in post.kept]
            self._record_kept(post)
            tried += len(wave)
            if not post.learn(attempts):
                break
        if left:
            with transaction(self._database) as connection:
                release_deliveries(connection, left)
        return tried

    def _attempt(self, post: _Post, now: datetime, delivery: Delivery, caller: Caller) -> Attempt:
        """One attempt, whatever the row holds and whatever the receiver does: it never raises."""
        event, endpoint, started = delivery.event, post.endpoint, time.monotonic()

        def failed(outcome: Outcome, error: str) -> Attempt:
            return Attempt(
                attempted_at=now,
                outcome=outcome,
                status=None,
                latency_seconds=time.monotonic() - started,
                error=error,
            )

        if isinstance(event, UnreadableEvent):
            return failed(Outcome.REFUSED, f"cannot be rendered: {event.reason}")
        try:
            external_url = self._settings.external_url
            request = render(event, endpoint, external_url=external_url, attempt_at=now)
        except ConfigurationError as error:
            return failed(Outcome.RETRY, str(error))  # a secret file may be mended before the next
        except Exception as error:
            # The row will not change: it is given up, and the events behind it are told.
            return failed(Outcome.REFUSED, f"cannot be rendered: {failure_of(error, endpoint)}")
        try:
            return self._send(caller, request, endpoint, now)
        except Exception as error:
            return failed(Outcome.RETRY, failure_of(error, endpoint))

    def _record_kept(self, post: _Post) -> None:
        if not post.kept:
            return
        became = [(one, attempt, *self._next(one, attempt)) for one, attempt in post.kept]
        with transaction(self._database) as connection:
            record_attempts(
                connection,
                [
                    Tried(
                        delivery_id=one.delivery_id, attempt=attempt, state=state, next_at=next_at
                    )
                    for one, attempt, state, next_at in became
                ],
            )
            for one, attempt in post.kept:
                if attempt.outcome is Outcome.GONE:
                    reason = "the endpoint answered 410 Gone"
                    disable_endpoint(connection, one.endpoint, attempt.attempted_at, reason)
        post.kept = []
        for one, attempt, state, _ in became:
            if attempt.outcome is Outcome.SLOW_DOWN:
                post.pause(self._clock(), attempt.retry_after_seconds)
            self._told(one, attempt, state)

    def _next(self, delivery: Delivery, attempt: Attempt) -> tuple[DeliveryState, datetime | None]:
        """What becomes of the delivery, and when it is tried again: the schedule, or later if asked."""
        if attempt.outcome is Outcome.DELIVERED:
            return DeliveryState.DELIVERED, None
        made = delivery.attempts + 1
        delays = self._settings.retry_delays
        if attempt.outcome in (Outcome.GONE, Outcome.REFUSED) or made >= len(delays):
            return DeliveryState.GIVEN_UP, None
        delay = delays[made] * (1.0 + JITTER * self._jitter.random())
        asked = timedelta(seconds=attempt.retry_after_seconds or 0.0)
        return DeliveryState.WAITING, self._clock() + max(delay, asked)

    def _told(self, delivery: Delivery, attempt: Attempt, state: DeliveryState) -> None:
        """One canonical log line and the metrics of one attempt: no body, no address, no secret."""
        name, outcome = delivery.endpoint, attempt.outcome.value
        METRICS.deliveries.labels(endpoint=name, outcome=outcome).inc()
        METRICS.delivery_seconds.labels(endpoint=name).observe(attempt.latency_seconds)
        write = log.info if state is DeliveryState.DELIVERED else log.warning
        write(
            "delivery.attempted",
            endpoint=name,
            delivery_id=delivery.delivery_id,
            event_id=delivery.event.event_id,
            type=delivery.event.type,
            attempt=delivery.attempts + 1,
            outcome=outcome,
            state=state.value,
            status=attempt.status,
            seconds=round(attempt.latency_seconds, 3),
            error=attempt.error,
        )

    def _count_waiting(self) -> None:
        try:
            with transaction(self._database) as connection:
                rows = deliveries_waiting(connection)
            METRICS.deliveries_waiting.set(sum(row["waiting"] for row in rows))
        except DatabaseUnavailable:
            return  # The endpoints' threads say so, and wait.


class _Post:
    """One endpoint and what its thread remembers of it; touched by that thread alone."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.sent: deque[datetime] = deque()
        """When attempts of the last minute were made."""
        self.paused_until: datetime | None = None
        self.kept: list[tuple[Delivery, Attempt]] = []
        """Attempts that were made and are not recorded yet."""
        self.batch = 1
        """How many deliveries are claimed together: more while all goes well, one after a failure."""
        # Its own: nothing that one endpoint answers reaches another.
        self._callers = [Caller()]
        self._pool: ThreadPoolExecutor | None = None

    @property
    def wave(self) -> int:
        """How many are sent at once."""
        return min(self.batch, LARGEST_WAVE)

    def at_once(
        self, attempt: Callable[[Delivery, Caller], Attempt], wave: Sequence[Delivery]
    ) -> list[tuple[Delivery, Attempt]]:
        """One attempt for each, over a connection of its own; with what came of it."""
        if len(wave) == 1:
            return [(wave[0], attempt(wave[0], self._callers[0]))]
        while len(self._callers) < len(wave):
            self._callers.append(Caller())
        if self._pool is None:
            self._pool = ThreadPoolExecutor(LARGEST_WAVE, f"courier-{self.endpoint.name}")
        return list(zip(wave, self._pool.map(attempt, wave, self._callers), strict=True))

    def room(self, now: datetime) -> int:
        """How many may be sent: none while the endpoint asked for a pause, else up to its rate."""
        if self.paused_until is not None and now < self.paused_until:
            return 0
        self.paused_until = None
        while self.sent and self.sent[0] <= now - timedelta(minutes=1):
            self.sent.popleft()
        return max(0, self.endpoint.rate_per_minute - len(self.sent))

    def pause(self, now: datetime, seconds: float | None) -> None:
        """As the endpoint asked; of several that asked at once the longest holds."""
        until = now + (SLOW_DOWN if seconds is None else timedelta(seconds=seconds))
        self.paused_until = max(until, self.paused_until or until)

    def learn(self, attempts: Sequence[Attempt]) -> bool:
        """Whether all went well, for the size of what comes next."""
        well = all(attempt.outcome is Outcome.DELIVERED for attempt in attempts)
        self.batch = min(2 * self.batch, LARGEST_BATCH) if well else 1
        return well


def _waiting(error: Exception, seconds: float) -> None:
    METRICS.retries.labels(dependency="database").inc()
    log.warning("courier.waiting_for_database", error=str(error), seconds=seconds)
