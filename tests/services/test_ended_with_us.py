"""Whatever ends the process that started them, the services of a demo or of the tests end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

START_SECONDS = 60.0
END_SECONDS = 30.0
"""Postgres and the broker are asked to end, one after the other; seconds on an idle machine."""

AS_FROM_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
"""A suite that runs in the background, or under nohup, hands ignored signals on to its children."""
SERVICES = (
    AS_FROM_A_TERMINAL
    + """
import sys, time
from pathlib import Path
from monitor.demo.services import Broker, Postgres
folder = Path(sys.argv[1])
with Postgres(folder / "postgres") as postgres, Broker(folder / "broker") as broker:
    (folder / "ready").touch()
    time.sleep(600)
"""
)
KEPT = SERVICES.replace("time.sleep(600)", "postgres.keep(); broker.keep()")
DEMO = (
    AS_FROM_A_TERMINAL
    + """
import sys, time
from pathlib import Path
from monitor.demo.stage import Stage, ended_by_signals
folder = Path(sys.argv[1])
with ended_by_signals(), Stage(folder / "state", folder / "no-model", keep=True):
    (folder / "ready").touch()
    time.sleep(600)
"""
)


def running_in(folder: Path) -> list[str]:
    """Command lines of the processes that name a folder in it, as all of its services do."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if f"{folder}/" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """``started(program)``: a process that has its services up; all that is left is killed at the end."""
    programs: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "said").open("wb") as said:
            programs.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(tmp_path)],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
        there = wait_until((tmp_path / "ready").exists, START_SECONDS)
        assert there, (tmp_path / "said").read_text(encoding="utf-8")
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.wait()
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or ()):
            process.kill()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        ),
    ],
)
def test_services_end_with_the_process_that_started_them(
    started: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, number: signal.Signals
) -> None:
    program = started(SERVICES)
    assert len(running_in(tmp_path)) >= 2
    program.send_signal(number)
    program.wait(END_SECONDS)
    assert wait_until(lambda: not running_in(tmp_path), END_SECONDS), running_in(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_ended_before_its_end_leaves_nothing_running_even_with_keep(
    started: Callable[[str], subprocess.Popen[bytes]],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    program = started(DEMO)
    assert any("monitor run" in line for line in running_in(tmp_path))
    # Everything that shares the terminal gets it, as when its window is closed.
    os.killpg(program.pid, number)
    program.wait(2 * END_SECONDS)
    assert wait_until(lambda: not running_in(tmp_path), END_SECONDS), running_in(tmp_path)
    if number in (signal.SIGTERM, signal.SIGHUP):
        assert program.returncode == 128 + number, "ended in order, not torn down"


@pytest.mark.slow
def test_what_is_kept_outlives_its_process(
    started: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    program = started(KEPT)
    assert program.wait(END_SECONDS) == 0
    time.sleep(2.0)
    assert len(running_in(tmp_path)) >= 2
