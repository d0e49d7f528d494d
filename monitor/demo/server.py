"""A server as a child process of ours, with its log and pid file in its own folder.

It runs in a session of its own: Ctrl-C reaches us first, and we stop it in order. If we are killed
before, it ends with us (`tether`). One that was kept, or left by a machine that lost its power, is
found by its pid file and ended before the next start.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from monitor.demo.tether import TETHER, end
from monitor.errors import RefuseToStart

START_SECONDS: Final = 30.0


class Server:
    """One child process, its log and its pid file. Started again with the same command line.

    ``tells`` is the signal that asks it to end in order.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        ready: Callable[[], bool],
        *,
        start_seconds: float = START_SECONDS,
        tells: signal.Signals = signal.SIGINT,
    ) -> None:
        self.name = name
        self.folder = folder
        self._ready = ready
        self._start_seconds = start_seconds
        self._tells = tells
        self._child: psutil.Popen | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, command: Sequence[str], user: str | None) -> None:
        """`launch` and `wait_until_ready`."""
        self.launch(command, user)
        self.wait_until_ready()

    def launch(self, command: Sequence[str], user: str | None) -> None:
        """Begin, and wait for nothing: servers that need one another begin together."""
        self.end_leftover(command[0])
        with self.log.open("ab") as log:
            self._child = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                user=user,
                group=user,
                preexec_fn=TETHER.hold(self._tells),
            )
        self._pid_file.write_text(str(self._child.pid), encoding="utf-8")

    def wait_until_ready(self) -> None:
        """Wait until it answers; if it never does, kill it and raise `RefuseToStart` with its log's end."""
        try:
            self._wait()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                end = self.log.read_text(encoding="utf-8", errors="replace")[-1_000:]
                raise RefuseToStart(f"{self.name} did not start in {self.folder}:\n{end}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        """Signal the server and wait for it and its children; after `tether.END_SECONDS`, SIGKILL."""
        if self._child is not None:
            end(self._child, how)
            TETHER.release(self._child.pid)
        self._child = None
        self._pid_file.unlink(missing_ok=True)

    def send(self, what: signal.Signals) -> None:
        """Send a signal that ends nothing: SIGSTOP, SIGCONT."""
        if self._child is not None:
            self._child.send_signal(what)

    def keep(self) -> None:
        """Let the server outlive this process."""
        if self._child is not None:
            TETHER.release(self._child.pid)

    def end_leftover(self, executable: str) -> None:
        """End the server that an earlier process of ours left running in this folder."""
        with suppress(OSError, ValueError, psutil.Error):
            leftover = psutil.Process(int(self._pid_file.read_text(encoding="utf-8")))
            ours = [Path(part).is_relative_to(self.folder) for part in leftover.cmdline()]
            if any(ours) and leftover.cmdline()[0] == executable:
                end(leftover, self._tells)
