"""The lookout: does anybody evaluate? Every process looks, and whichever notices that nobody does tells.

A watcher that is gone cannot say so. So every process asks the store who leads and when an evaluation was
last stored, shows it (readiness, metrics, log), and after ``limit`` seconds of the silence rule
``not_evaluated`` puts the alert into the outbox, for the courier to send. A process with a courier also
posts to ``alerts.pulse_url`` while all is well: when nothing of the monitor runs, its receiver pages.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from sqlalchemy import Engine

from monitor.alert.policy import not_evaluated
from monitor.alert.pulse import send_pulse
from monitor.announcing import announce_alone
from monitor.errors import Discard, MonitorError
from monitor.ledger import Ledger
from monitor.logs import get_logger
from monitor.metrics import METRICS
from monitor.settings import Settings, secret
from monitor.store.clock import ahead, machine_time
from monitor.store.database import transaction
from monitor.store.leadership import WATCHER, Leadership, leadership

log = get_logger(__name__)

LOOK_EVERY: Final = timedelta(seconds=5)
LOOK_SOON: Final = timedelta(seconds=1)
"""While something is wrong: a process that has just begun is ready as soon as somebody leads."""
LOOK_IS_OLD: Final = timedelta(seconds=30)
"""A look that took longer says nothing of now: a frozen database answers late or never."""


class Lookout:
    """Looks whether anybody evaluates. ``look`` is one look, ``run`` goes on until stopped.

    ``courier_goes_round`` is asked before each post to ``alerts.pulse_url``; None where no courier runs,
    and nothing is posted.
    """

    def __init__(
        self,
        database: Engine,
        settings: Settings,
        *,
        courier_goes_round: Callable[[], bool] | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._courier_goes_round = courier_goes_round
        rules = settings.drift.silence_rules
        self._rule = next((rule for rule in rules if rule.name == "not_evaluated"), None)
        self._since: datetime | None = None
        self._told = ""
        self._pulse_due = 0.0
        self._pulse: threading.Thread | None = None
        self._problem = "nobody has looked yet who evaluates drift"
        self._looked_at = monotonic()

    @property
    def problem(self) -> str:
        """Why drift is not evaluated now, in a sentence; empty when it is, as of the last look."""
        ago = monotonic() - self._looked_at
        if ago > LOOK_IS_OLD.total_seconds():
            return f"for {ago:.0f} s the database has not said who evaluates drift"
        return self._problem

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop``. Nothing that is found, and no failure of a look, ends the process."""
        while not stop.is_set():
            try:
                self.look()
            except MonitorError as error:
                self._problem = "the database does not say who evaluates drift"
                log.warning("lookout.cannot_look", error=str(error))
            except Exception:
                self._problem = "a defect: the log says more"
                log.exception("lookout.failed")
            self._beat_outwards()
            stop.wait((LOOK_SOON if self._problem else LOOK_EVERY).total_seconds())

    def look(self) -> str:
        """One look: metrics, log, and the alert where it is due; `problem`.

        Raises `DatabaseUnavailable`. Time without an evaluation counts from this process's first look at
        the earliest: whoever starts it all again has the rule's limit to get a watcher to work.
        """
        with transaction(self._database) as c:
            before = machine_time()
            seen = leadership(c, WATCHER)
            off = ahead(before, seen.at, machine_time())
        METRICS.clock_difference.set(off.total_seconds())
        self._since = self._since or seen.at
        quiet = seen.at - max(seen.worked_at or self._since, self._since)
        age = (seen.at - seen.worked_at).total_seconds() if seen.worked_at else math.nan
        METRICS.evaluation_age.set(age)
        METRICS.watcher_leads.set(seen.holder is not None)
        late = self._rule is not None and quiet.total_seconds() > (self._rule.limit or math.inf)
        self._problem, self._looked_at = self._said(seen, late=late), monotonic()
        if late:
            self._alarm(seen, quiet)
        if self.problem != self._told:
            write = log.error if self.problem else log.info
            write("watcher.seen", leader=seen.holder, problem=self.problem or None)
            self._told = self.problem
        return self.problem

    def _said(self, seen: Leadership, *, late: bool) -> str:
        if seen.holder is None:
            return "no watcher leads: drift is not evaluated"
        if late:
            return f"{seen.holder} leads and does not get through an evaluation"
        return ""

    def _alarm(self, seen: Leadership, quiet: timedelta) -> None:
        assert self._rule is not None
        condition = not_evaluated(self._rule, quiet, seen.worked_at, seen.holder)
        try:
            with transaction(self._database) as c:
                event = announce_alone(Ledger(c), self._settings, condition, seen.at)
        except Discard:
            return  # another process told of it
        if event is not None:
            METRICS.alert_events.labels(type=event.type).inc()
            log.error("alert.announced", type=event.type, summary=event.alert.summary)

    # --- outwards --------------------------------------------------------------------------------

    def _beat_outwards(self) -> None:
        """Post the pulse when it is due; a receiver that hangs delays no look."""
        if self._courier_goes_round is None or monotonic() < self._pulse_due:
            return
        if self._pulse is not None and self._pulse.is_alive():
            return
        alerts = self._settings.alerts
        try:
            url = secret(alerts.pulse_url, alerts.pulse_url_file, "alerts.pulse_url")
        except MonitorError as error:
            log.error("pulse.not_sent", error=str(error), hint=error.hint)
            url = None
        self._pulse_due = monotonic() + alerts.pulse_every.total_seconds()
        if not url:
            return
        if self.problem or not self._courier_goes_round():
            METRICS.pulses.labels(outcome="withheld").inc()
            log.warning("pulse.withheld", reason=self.problem or "the courier does not go round")
            return
        self._pulse = threading.Thread(target=_send, args=(url,), name="pulse", daemon=True)
        self._pulse.start()


def _send(url: str) -> None:
    failed = send_pulse(url)
    METRICS.pulses.labels(outcome="failed" if failed else "sent").inc()
    if failed:
        log.warning("pulse.not_sent", error=failed)
