"""`monitor sidecar`: `monitor run` beside a serving container, in a process that never ends by itself.

A native sidecar that is not running makes its whole pod not ready, whatever its probes: the serving
container would leave its Service for as long as ours restarts. So nothing here is left to the
kubelet. The run is a child process; when it ends, or no longer answers ``/livez``, it is started
again, with longer and longer rests.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx

from monitor.errors import MonitorError
from monitor.logs import configure, get_logger
from monitor.settings import LogSettings, Settings, load
from monitor.signals import stopped_by_signals

log = get_logger(__name__)

SHORTEST_REST: Final = timedelta(seconds=1)
LONGEST_REST: Final = timedelta(minutes=5)
SETTLED: Final = timedelta(minutes=10)
"""A run that lasted this long is started again after the shortest rest."""
ASK_EVERY: Final = timedelta(seconds=15)
ASK_WITHIN: Final = timedelta(seconds=5)
SILENCES: Final = 4
"""So many questions without a good answer, one after the other, end a run that has answered before."""
KILL_AFTER: Final = timedelta(seconds=5)
"""Beside ``shutdown_grace``, which the run keeps by itself."""


def keep_running(config: Path | None, stop: threading.Event | None = None) -> None:
    """Run, and run again, until SIGTERM, SIGINT or ``stop``; no error of the run ends it.

    The configuration is read anew for every run, so one that is wrong is waited out as well.
    """
    stop = stop or threading.Event()
    configure(LogSettings())
    rest = SHORTEST_REST
    with stopped_by_signals(stop):
        while not stop.is_set():
            began = time.monotonic()
            reason = _one_run(config, stop)
            if stop.is_set():
                break
            lasted = time.monotonic() - began
            if lasted > SETTLED.total_seconds():
                rest = SHORTEST_REST
            log.error(
                "sidecar.run_ended",
                reason=reason,
                lasted_seconds=round(lasted, 1),
                again_in_seconds=rest.total_seconds(),
            )
            stop.wait(rest.total_seconds())
            rest = min(2 * rest, LONGEST_REST)
    log.info("sidecar.stopped")


def _one_run(config: Path | None, stop: threading.Event) -> str:
    """Why it ended."""
    try:
        settings = load(config)
    except MonitorError as error:
        return str(error)
    configure(settings.log)
    command = [sys.executable, "-m", "monitor", "run"]
    if config:
        command += ["--config", str(config)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as run:
        try:
            return _attend(run, settings, stop)
        finally:
            _end(run, settings)


def _attend(run: subprocess.Popen[bytes], settings: Settings, stop: threading.Event) -> str:
    silences, answered, ask_at = 0, False, time.monotonic()
    while not stop.wait(0.2):
        if (code := run.poll()) is not None:
            return f"exit code {code}; its last lines say why"
        if time.monotonic() < ask_at or not settings.web.port:
            continue
        ask_at = time.monotonic() + ASK_EVERY.total_seconds()
        if _lives(settings):
            silences, answered = 0, True
        elif answered:
            silences += 1
            if silences >= SILENCES:
                return "/livez gave no good answer any more"
    return "asked to stop"


def _lives(settings: Settings) -> bool:
    loopback = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  listened at, not asked at
    host = loopback.get(settings.web.host, settings.web.host)
    try:
        answer = httpx.get(
            f"http://{host}:{settings.web.port}/livez",
            timeout=ASK_WITHIN.total_seconds(),
            trust_env=False,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _end(run: subprocess.Popen[bytes], settings: Settings) -> None:
    if run.poll() is not None:
        return
    run.terminate()
    try:
        run.wait((settings.shutdown_grace + KILL_AFTER).total_seconds())
    except subprocess.TimeoutExpired:
        run.kill()
