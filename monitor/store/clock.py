"""The database's time: what is kept, claimed and compared goes by one clock, whatever a machine's own says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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

    def __call__(self) -> datetime:
        with self._lock:
            known = self._known
            if known is None or self._monotonic() - known[1] > ASKED_EVERY.total_seconds():
                try:
                    known = self._ask()
                except DatabaseUnavailable:
                    if known is None:
                        raise
        moment, at = known
        return moment + timedelta(seconds=self._monotonic() - at)

    def difference(self) -> timedelta:
        """How far this machine's clock is ahead of the database's, at least (0 within the answer's time).

        Asks anew; `DatabaseUnavailable` when there is no answer.
        """
        before = self._machine()
        with self._lock:
            moment, _ = self._ask()
        after = self._machine()
        if before > moment:
            return max(timedelta(0), before - moment)
        return min(timedelta(0), after - moment)

    def _ask(self) -> tuple[datetime, float]:
        begun = self._monotonic()
        with transaction(self._database) as c:
            moment = database_time(c)
        # Read somewhere between asking and the answer: the middle is off by half of that at most.
        self._known = moment, (begun + self._monotonic()) / 2.0
        return self._known
