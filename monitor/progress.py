"""Telling the store where the logs end, beside whatever the worker does.

The worker's own loop may stand for long in one chunk, and it is then that lag matters most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Engine

from monitor.errors import MonitorError
from monitor.logs import get_logger
from monitor.store.database import transaction
from monitor.store.progress import keep_log_ends
from monitor.values.progress import LogEnd

log = get_logger(__name__)

TELL_SECONDS: Final = 5.0
STOP_SECONDS: Final = 5.0


class ProgressReport:
    """A thread that stores what ``log_ends`` answers, every `TELL_SECONDS`; a context manager.

    A store that is away is tried again the next time: the view says how old its figures are.
    """

    def __init__(
        self,
        log_ends: Callable[[], Sequence[LogEnd]],
        database: Engine,
        *,
        group_id: str,
        worker_id: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._log_ends = log_ends
        self._database = database
        self._group_id = group_id
        self._worker_id = worker_id
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(TELL_SECONDS):
            try:
                self._tell()
            except MonitorError as error:
                log.warning("progress.not_told", error=str(error), effect="told again soon")
            except Exception:
                # A defect here must not end the scoring: the view says how old its figures are.
                log.exception("progress.failed")

    def _tell(self) -> None:
        ends = self._log_ends()
        if ends:
            with transaction(self._database) as c:
                keep_log_ends(c, self._group_id, self._worker_id, ends, self._clock())
