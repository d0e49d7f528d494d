"""The database's time: what is kept, claimed and compared goes by one clock, whatever a machine's own says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine

from monitor.errors import DatabaseUnavailable
from monitor.store.database import database_time, transaction

ASKED_EVERY: Final = timedelta(seconds=30)
"""A machine's monotonic clock is trusted for so long; afterwards the database is asked again."""


def machine_time() -> datetime:
    """What this machine's own clock says. Nothing is decided by it: it is compared with the database's."""
    return datetime.now(UTC)


class DatabaseClock:
    """The database's time, asked every `ASKED_EVERY` and carried on by the monotonic clock between.

    Goes on while the database is away, once it has answered. Safe to use from several threads. Calling it
    raises `DatabaseUnavailable` before the first answer.
    """

    def __init__(
        self,
        database: Engine,
        *,
        machine: Callable[[], datetime] = machine_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._machine = machine
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: tuple[datetime, float] | None = None
        self._ask_at = 0.0

    def __call__(self) -> datetime:
        with self._lock:
            if self._known is None:
                self._ask()
            elif self._monotonic() >= self._ask_at:
                with suppress(DatabaseUnavailable):
                    self._ask()
        return self.carried()

    def carried(self) -> datetime:
        """The same without asking, for threads that must not wait; only the first time asks."""
        if self._known is None:
            return self()
        moment, at = self._known
        return moment + timedelta(seconds=self._monotonic() - at)

    def difference(self) -> timedelta:
        """How far this machine's clock is ahead of the database's, at least (0 within the answer's time).

        Asks anew; `DatabaseUnavailable` when there is no answer.
        """
        before = self._machine()
        with self._lock:
            moment = self._ask()
        return ahead(before, moment, self._machine())

    def _ask(self) -> datetime:
        begun = self._monotonic()
        self._ask_at = begun + ASKED_EVERY.total_seconds()
        with transaction(self._database) as c:
            moment = database_time(c)
        # Read somewhere between asking and the answer: the middle is off by half of that at most.
        self._known = moment, (begun + self._monotonic()) / 2.0
        return moment


def ahead(before: datetime, moment: datetime, after: datetime) -> timedelta:
    """How far a clock that read ``before`` and ``after`` is at least ahead of one that read ``moment``
    between; below 0 when it is behind."""
    if before > moment:
        return before - moment
    return min(timedelta(0), after - moment)
