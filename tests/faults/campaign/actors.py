"""The processes that are broken: worker, watcher and courier as `monitor.app.run_loops` runs them.

What differs from the command line: the model is a null replay, a lease is short, and the machine's clock can
be set wrong. They are forked from one process that has imported everything, so that a start takes a
moment and a campaign can kill hundreds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.null_replay import NullReplay, null_pack
from monitor import app, leading
from monitor.errors import MonitorError
from monitor.instrument import Instrument
from monitor.logs import configure
from monitor.settings import load
from monitor.store import clock
from monitor.values.prompts import Prompt
from monitor.values.scores import Replayed, Unreplayable
from monitor.watcher import Watcher

FEATURES = 4
LEASE = timedelta(seconds=1.5)
SHIFT = 2.0
SHIFTED = "shifted"
"""Texts that begin like this read `SHIFT` higher: what alerts are about."""
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class ShiftingReplay(NullReplay):
    def run(self, prepared: Sequence[Prompt]) -> list[Replayed | Unreplayable]:
        return [
            replace(one, readings=one.readings + np.float32(SHIFT))
            if isinstance(one, Replayed) and (one.prompt.text or "").startswith(SHIFTED)
            else one
            for one in super().run(prepared)
        ]


def play(config: Path, loop: str, log: Path, wrong_by: Any) -> None:
    """One loop in this process, until SIGTERM; ``wrong_by.value``: seconds that its clock is ahead."""
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(into, 1)
    os.dup2(into, 2)

    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=wrong_by.value)

    clock.datetime = WrongClock
    leading.COMPARE_CLOCKS = timedelta(seconds=0.25)
    app.Watcher = partial(Watcher, lease=LEASE)
    settings = load(config)
    configure(settings.log)
    instrument = Instrument(pack=null_pack(FEATURES), engine=ShiftingReplay(FEATURES))
    try:
        app.run_loops(settings, (loop,), build=lambda _: instrument)
    except MonitorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


class Actor:
    """One loop's process, started as often as it is killed."""

    def __init__(self, name: str, config: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self._config = config
        self._loop = name.partition("-")[0]
        self.wrong_by = FORKS.RawValue("d", 0.0)
        self._process: BaseProcess | None = None

    def start(self) -> None:
        args = (self._config, self._loop, self.log, self.wrong_by)
        self._process = FORKS.Process(target=play, args=args, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.exitcode

    def signal(self, which: signal.Signals) -> None:
        os.kill(self.pid, which)

    def end(self, how: signal.Signals, seconds: float = 30.0) -> int | None:
        """Its exit code; None: it did not end in ``seconds``."""
        assert self._process is not None
        self.signal(how)
        self._process.join(seconds)
        return self._process.exitcode

    def close(self) -> None:
        if self._process is not None and self._process.is_alive():
            self.signal(signal.SIGCONT)
            self.end(signal.SIGKILL)

    def memory(self) -> int:
        """Bytes of its own and shared, resident."""
        return int(psutil.Process(self.pid).memory_info().rss)
