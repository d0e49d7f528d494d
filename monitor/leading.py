"""Leading the watcher: a lease in the store, taken only by a machine that agrees with it what time it is."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Connection, Engine

from monitor.errors import Retry
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.store.clock import DatabaseClock
from monitor.store.database import transaction
from monitor.store.leadership import WATCHER, Lease, confirm, release, renew, take

log = get_logger(__name__)

LEASE: Final = timedelta(seconds=15)
"""How long a leader that is gone is waited for. It renews every second, and gives back as it stops."""
COMPARE_CLOCKS: Final = timedelta(seconds=10)
"""How often a leader looks whether its machine's clock still is the database's."""


class Leader:
    """One process's part in who leads. Its jobs may run in other threads than what keeps the lease."""

    def __init__(
        self,
        database: Engine,
        clock: DatabaseClock,
        *,
        tolerance: timedelta,
        length: timedelta = LEASE,
    ) -> None:
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.problem = ""
        """Why this process may not lead, in a sentence; empty when it may."""
        self._database = database
        self._clock = clock
        self._tolerance = tolerance.total_seconds()
        self._length = length
        self._lease: Lease | None = None
        self._sure_until = 0.0
        self._compare_at = 0.0

    @property
    def renew_every(self) -> float:
        """Seconds between two calls of `keep`."""
        return min(self._length.total_seconds() / 3.0, 1.0)

    def take(self) -> bool:
        """Try to lead; raises `DatabaseUnavailable`."""
        if not self._agrees():
            return False
        asked = monotonic()
        with transaction(self._database) as c:
            self._lease = take(c, WATCHER, self.holder, self._length)
        self._sure_until = asked + self._length.total_seconds()
        return self._lease is not None

    def keep(self) -> bool:
        """Renew the lease; False when it is lost, may be by now, or must not be kept."""
        asked = monotonic()
        try:
            if asked >= self._compare_at and not self._agrees():
                return False
            if not self.renew():
                self._sure_until = asked
        except Retry as error:
            log.warning("watcher.cannot_renew_its_lease", error=str(error))
        if monotonic() < self._sure_until:
            return True
        log.warning("watcher.lost_its_lease", holder=self.holder)
        return False

    def renew(self) -> bool:
        """Have the lease anew from now; False when it is another's. Raises `DatabaseUnavailable`."""
        assert self._lease is not None
        asked = monotonic()
        with transaction(self._database) as c:
            kept = renew(c, self._lease, self._length)
        if kept:
            self._sure_until = asked + self._length.total_seconds()
        return kept

    def give_back(self) -> None:
        """Lead no more; raises `DatabaseUnavailable`, and then the lease ends by itself."""
        lease, self._lease = self._lease, None
        if lease is not None:
            with transaction(self._database) as c:
                release(c, lease)

    @contextmanager
    def transaction(self, *, worked: bool = False) -> Iterator[Connection]:
        """A transaction that is stored only while we lead; of a job called by itself, in any case.

        ``worked``: it is what the leader leads for. Raises `StaleLease`.
        """
        with transaction(self._database) as c:
            yield c
            if self._lease is not None:
                confirm(c, self._lease, worked=worked)

    def _agrees(self) -> bool:
        """Whether machine and database agree what time it is; where not, one of them is wrong."""
        off = self._clock.difference().total_seconds()
        self._compare_at = monotonic() + COMPARE_CLOCKS.total_seconds()
        METRICS.clock_difference.set(off)
        if abs(off) <= self._tolerance:
            self.problem = ""
            return True
        known = self.problem
        self.problem = (
            f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the "
            f"database's (limit {self._tolerance:g} s)"
        )
        if not known:
            mend = "Set the clock that is wrong (NTP); then it leads again by itself."
            log.error("watcher.does_not_lead", reason=self.problem, mend=mend)
        return False
