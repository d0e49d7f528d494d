"""Processes that end with the one that started them, whatever ends it: SIGKILL, too.

A watcher process reads a pipe whose other end this process alone holds open. When that end closes,
for whatever reason, the watcher ends every process that is still held. A new process reports itself
into the pipe before it becomes another program, so there is no moment at which it is not held.

Run as a script, with the pipe as standard input, this module is the watcher. It then imports nothing
of ours, to be there at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import psutil

END_SECONDS: Final = 20.0


class Tether:
    """The pipe and its watcher, both made when first needed; one for a process (`TETHER`)."""

    def __init__(self) -> None:
        self._pipe = -1
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def hold(self, how: signal.Signals) -> Callable[[], None]:
        """The ``preexec_fn`` of a process that is ended with ours, by the signal ``how``."""
        self._ensure_watcher()
        pipe, number = self._pipe, int(how)

        def report() -> None:
            # One short write and nothing else: other threads may hold locks when we fork.
            os.write(pipe, b"+ %d %d\n" % (os.getpid(), number))

        return report

    def release(self, pid: int) -> None:
        """The process was ended, or may outlive us."""
        if self._owner == os.getpid():
            with suppress(BrokenPipeError):
                os.write(self._pipe, b"- %d 0\n" % pid)

    def _ensure_watcher(self) -> None:
        if self._owner == os.getpid() and self._watcher and self._watcher.poll() is None:
            return
        reading, self._pipe = os.pipe()
        self._owner = os.getpid()
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(reading)


TETHER: Final = Tether()


def end(process: psutil.Process, how: signal.Signals, seconds: float = END_SECONDS) -> None:
    """Signal the process, wait for it and its children, and kill what is left after ``seconds``."""
    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        process.send_signal(how)
        for left in _alive_after(family, seconds):
            with suppress(psutil.NoSuchProcess):
                left.kill()
        _alive_after(family, seconds)


def _alive_after(family: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    _, alive = psutil.wait_procs(family, timeout=0)
    # One that is dead and not ours to be reaped stays a zombie where nobody reaps it.
    while alive := [process for process in alive if not _is_dead(process)]:
        if time.monotonic() > deadline:
            break
        _, alive = psutil.wait_procs(alive, timeout=0.1)
    return list(alive)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def watch(lines: Iterable[bytes]) -> None:
    """Remember who is held until ``lines`` end; then end them, the last started first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    held: dict[int, tuple[psutil.Process, signal.Signals]] = {}
    for line in lines:
        action, pid, how = line.split()
        held.pop(int(pid), None)
        if action == b"+":
            with suppress(psutil.NoSuchProcess):
                # Knows when the process began: another one that gets its number is left alone.
                held[int(pid)] = (psutil.Process(int(pid)), signal.Signals(int(how)))
    for process, sent in reversed(held.values()):
        end(process, sent)


if __name__ == "__main__":
    watch(sys.stdin.buffer)
