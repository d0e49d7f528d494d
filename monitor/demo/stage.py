"""The parts of the demo: services, a configuration file, and `monitor run` in a process of its own."""

from __future__ import annotations

import base64
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil
import yaml

from monitor.demo.history import History
from monitor.demo.receiver import Receiver
from monitor.demo.services import Broker, Postgres, free_port
from monitor.demo.tether import TETHER
from monitor.errors import BadInput, StopLoudly
from monitor.settings import load
from monitor.store.database import migrate

TOPIC = "prompts"
BASELINE_PROMPTS = 150
IDENTITY_SHARE = 0.25
STOP_SECONDS = 40.0
MARK = "monitor-demo"
"""An empty file: the folder is a demo's, and the next one may delete it."""
RULES: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "name": "persona-drift",
        "features": ["tag:misaligned", "!tag:watch-only"],
        "min_n": 25,
        "for": 6,
        "cooldown": 60,
        "severities": {"warning": {"shift": 0.4}, "critical": {"shift": 0.9}},
    },
)
"""What does not ship by the judge's verdict is left out: it counts as tagged watch-only."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end the block as an exception would.

    So what it has open is closed in order; a second signal ends the process as it always does.
    """

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    # A signal that is ignored, as under nohup, stays ignored.
    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stage:
    """Everything that runs; a context manager that leaves nothing behind, however it ends.

    With ``keep`` everything stays up after a block that came to its end.
    """

    def __init__(self, state: Path, model: Path, *, keep: bool) -> None:
        self.state = state.resolve()
        self.config = self.state / "monitor.yaml"
        self.log = self.state / "monitor.log"
        self._model = model.resolve()
        self._keep = keep
        self._kept = False
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        clear(self.state)
        with ExitStack() as parts:
            self.postgres = parts.enter_context(Postgres(self.state / "postgres"))
            self.broker = parts.enter_context(Broker(self.state / "broker"))
            self.broker.create_topic(TOPIC)
            secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
            self.receiver = parts.enter_context(Receiver(secret))
            self._configure(secret)
            self.settings = load(self.config)
            migrate(self.settings.postgres)
            self.history = History(self.database_url)
            parts.callback(self.history.close)
            self._start_monitor()
            parts.callback(self._stop_monitor)
            self._parts = parts.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._keep and kind is None:
            self.postgres.keep()
            self.broker.keep()
            TETHER.release(self._monitor.pid)
            self._kept = True
        self._parts.close()

    @property
    def database_url(self) -> str:
        return self.postgres.url.replace("+psycopg", "")

    def command(self, *arguments: str) -> str:
        """Run a command of the monitor as a person would; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "monitor", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StopLoudly(f"monitor {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def require_monitor(self) -> None:
        """Raise `StopLoudly` when the monitor's process has ended."""
        if self._monitor.poll() is not None:
            raise StopLoudly(
                f"the monitor ended with exit code {self._monitor.returncode}",
                hint=f"Its log says why: {self.log}",
            )

    def _configure(self, secret: str) -> None:
        secret_file = self.state / "webhook-secret"
        secret_file.write_text(secret, encoding="utf-8")
        secret_file.chmod(0o600)
        self.config.write_text(
            yaml.safe_dump(self._configuration(secret_file), sort_keys=False), encoding="utf-8"
        )

    def _configuration(self, secret_file: Path) -> dict[str, Any]:
        """A production configuration with a faster clock: seconds where production has minutes."""
        return {
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap,
                "topics": [TOPIC],
                "dead_letter_topic": None,
                # A monitor that was killed takes its own place when it is started again: see `Broker`.
                "client_options": {"group_instance_id": "demo"},
            },
            "ingest": {"chunk_records": 16, "chunk_wait": 0.3, "segment_keys": ["route"]},
            # A fifth of the conversations without a logged answer get a short one of the copy's own.
            "replay": {
                "model": str(self._model),
                "dtype": "float32",
                "answer_share": 0.2,
                "generate_tokens": 16,
            },
            # Whether answers are the copy's own is asked of some; of those a filter gave no law is known.
            "identity": {"share": IDENTITY_SHARE, "rule": {"for": 4, "cooldown": 60}},
            "postgres": {"url": self.postgres.url},
            "drift": {
                "bucket": 2,
                "settle": 1,
                "windows": {"30s": 30},
                "evaluate_every": 2,
                "min_baseline_n": BASELINE_PROMPTS,
                "rules": list(RULES),
                "silence_rules": [],
            },
            "alerts": {
                "poll_every": 0.5,
                "endpoints": [
                    {
                        "name": "demo",
                        "url": self.receiver.url,
                        "secret_file": str(secret_file),
                    }
                ],
            },
            "web": {"port": free_port()},
            "shutdown_grace": 20,
        }

    def _start_monitor(self) -> None:
        with self.log.open("wb") as log:
            self._monitor = subprocess.Popen(
                [sys.executable, "-m", "monitor", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=TETHER.hold(signal.SIGTERM),  # noqa: PLW1509  one write, no lock
            )
        (self.state / "monitor.pid").write_text(str(self._monitor.pid), encoding="utf-8")

    def _stop_monitor(self) -> None:
        if self._kept:
            return
        if self._monitor.poll() is None:
            self._monitor.send_signal(signal.SIGTERM)
            try:
                self._monitor.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._monitor.kill()
        TETHER.release(self._monitor.pid)


def left_running(state: Path) -> list[str]:
    """What an earlier demo in ``state`` left running: postgres, broker, monitor."""
    return [name for name, process in _running(state.resolve()) if process.is_running()]


def _running(state: Path) -> Iterator[tuple[str, psutil.Process]]:
    for file in sorted(state.rglob("*.pid")):
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(file.read_text(encoding="utf-8").split()[0]))
            if any(str(state) in argument for argument in process.cmdline()):
                yield file.stem, process


def require_own(state: Path) -> None:
    """Raise `BadInput` when the folder holds what no demo has written."""
    if state.exists() and not (state.is_dir() and _is_ours(state)):
        raise BadInput(
            f"{state} is not a demo's, and would be deleted",
            hint="Give --state a folder of its own, or the name of a new one.",
        )


def clear(state: Path) -> None:
    """End what an earlier demo left running, and begin with an empty folder; errors as `require_own`."""
    require_own(state)
    for _, process in _running(state):
        with suppress(psutil.Error):
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    (state / MARK).touch()


def _is_ours(state: Path) -> bool:
    return (state / MARK).exists() or not any(state.iterdir())
