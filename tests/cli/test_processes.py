"""The loops as processes: they start, answer, and end on SIGTERM with the code that is promised."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from kafka import KafkaProducer
from sqlalchemy import Engine, text

from monitor.demo.services import Postgres
from monitor.settings import PostgresSettings, Settings
from monitor.store.database import migrate, transaction

START_SECONDS = 60.0
"""On a busy machine; seconds on an idle one."""
STOP_SECONDS = 10.0


def slow(*commands: str) -> list[Any]:
    """A process takes seconds to start; before every commit one of a kind is enough."""
    return [pytest.param(command, marks=pytest.mark.slow) for command in commands]


class Process:
    """A Python process with ``--config``, and what it has logged."""

    def __init__(self, log: Path, command: Sequence[str], config: Path) -> None:
        self._log = log
        with log.open("wb") as sink:
            self._child = subprocess.Popen(
                [sys.executable, *command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, event: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if event in self.said:
                return self.said
            assert self._child.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"{event} was never logged:\n{self.said}")

    def answers(self, path: str, status: int) -> dict[str, Any]:
        """What ``path`` answers, once its status is the wanted one."""
        deadline = time.monotonic() + START_SECONDS
        with self.client() as client:
            while (answer := client.get(path, timeout=30)).status_code != status:
                assert self._child.poll() is None, self.said
                assert time.monotonic() < deadline, f"{path}: {answer.text}\n{self.said}"
                time.sleep(0.1)
        return dict(answer.json())

    @property
    def runs(self) -> bool:
        return self._child.poll() is None

    def client(self) -> httpx.Client:
        self.wait_for('"web.listening"')
        line = next(line for line in self.said.splitlines() if '"web.listening"' in line)
        return httpx.Client(base_url=f"http://127.0.0.1:{json.loads(line)['port']}")

    def ended(self, seconds: float = START_SECONDS) -> int:
        return self._child.wait(seconds)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        self._child.send_signal(signal.SIGTERM)
        return self.ended(seconds)

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._child.pid).children(recursive=True):
                child.kill()
        self._child.kill()
        self._child.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str, Path], Process]]:
    """``started("web", config)``: the process; killed at the end if it still runs."""
    processes: list[Process] = []

    def start(command: str, config: Path) -> Process:
        log = tmp_path / f"{command}.log"
        processes.append(Process(log, ["-m", "monitor", command], config))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.mark.slow
def test_a_courier_whose_only_endpoint_cannot_be_signed_for_refuses_to_start(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    migrated_url: str,
    tmp_path: Path,
) -> None:
    config = configured(
        postgres={"url": migrated_url},
        web={"port": 0},
        alerts={
            "endpoints": [
                {"name": "ops", "url": "http://127.0.0.1:1/", "secret_file": str(tmp_path / "key")}
            ]
        },
    )
    process = started("courier", config)
    assert process.ended() == 2
    assert "endpoint ops: secret_file: cannot read" in process.said
    assert "Traceback" not in process.said


@pytest.mark.slow
def test_one_endpoint_of_several_that_cannot_be_signed_for_is_said_until_it_can(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    migrated_url: str,
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    config = configured(
        postgres={"url": migrated_url},
        web={"port": 0},
        alerts={
            "endpoints": [
                {"name": "ops", "url": "http://127.0.0.1:1/", "secret_file": str(key)},
                {"name": "chat", "url": "http://127.0.0.1:1/", "format": "slack"},
            ]
        },
    )
    process = started("courier", config)
    said = process.wait_for('"courier.endpoint_unusable"')
    assert '"endpoint": "ops"' in said
    waiting = process.answers("/readyz", 503)
    assert "endpoint ops: secret_file: cannot read" in waiting["checks"]["endpoints"]
    key.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert process.answers("/readyz", 200)["checks"]["endpoints"] is True
    assert process.terminate() == 0


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("command", ["watcher", *slow("courier", "web")])
def test_sigterm_ends_a_loop_with_code_0(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    migrated_url: str,
    command: str,
) -> None:
    config = configured(
        postgres={"url": migrated_url},
        web={"port": 0},
        alerts={
            "endpoints": [{"name": "ops", "url": "http://127.0.0.1:1/hook", "format": "slack"}]
        },
    )
    process = started(command, config)
    process.wait_for('"monitor.running"')
    with process.client() as client:
        assert client.get("/livez").status_code == 200
    checks = process.answers("/readyz", 200)["checks"]
    assert (command == "watcher") == ("watcher" in checks), "ready once somebody leads"
    assert process.terminate() == 0
    assert '"monitor.stopped"' in process.said
    assert "Traceback" not in process.said


@pytest.mark.slow
def test_without_a_database_run_waits_for_it_and_ends_on_sigterm(
    started: Callable[[str, Path], Process], configured: Callable[..., Path]
) -> None:
    process = started("run", configured(postgres={"url": "postgresql+psycopg://127.0.0.1:1/none"}))
    process.wait_for('"monitor.waiting_for_database"')
    began = time.monotonic()
    assert process.terminate() == 0
    assert time.monotonic() - began < 5
    assert "error" not in re.sub(r'"error": ', "", process.said)


@pytest.mark.parametrize("command", ["worker", *slow("run", "watcher", "courier", "web")])
def test_with_postgres_down_a_process_is_alive_and_says_what_it_waits_for(
    started: Callable[[str, Path], Process], configured: Callable[..., Path], command: str
) -> None:
    process = started(
        command,
        configured(
            postgres={"url": "postgresql+psycopg://127.0.0.1:1/none"},
            kafka={"bootstrap_servers": "127.0.0.1:1"},
            web={"port": 0},
        ),
    )
    assert process.answers("/livez", 200)["alive"] is True
    waiting = process.answers("/readyz", 503)
    assert "Connection refused" in waiting["checks"]["database"]
    if command in ("run", "worker"):
        assert "database" in waiting["checks"]["model"]
    assert process.runs
    assert process.terminate() == 0


@pytest.mark.slow
def test_run_becomes_ready_when_postgres_comes(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    restartable_postgres: Postgres,
    kafka_bootstrap: str,
    topic: str,
    model_folder: Path,
    pack_folder: Path,
) -> None:
    migrate(PostgresSettings(url=restartable_postgres.url))
    restartable_postgres.stop()
    process = started(
        "run",
        configured(
            postgres={"url": restartable_postgres.url},
            web={"port": 0},
            kafka={
                "bootstrap_servers": kafka_bootstrap,
                "topics": [topic],
                "group_id": topic,
                "dead_letter_topic": None,
            },
            replay={"model": str(model_folder), "device": "cpu", "dtype": "float32"},
            pack={"path": str(pack_folder)},
        ),
    )
    process.answers("/livez", 200)
    process.answers("/readyz", 503)
    restartable_postgres.start()
    checks = process.answers("/readyz", 200)["checks"]
    assert set(checks.values()) == {True}
    assert process.terminate() == 0


@pytest.mark.slow
def test_a_worker_whose_pack_reads_answers_alone_says_at_its_start_what_it_will_skip(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    migrated_url: str,
    kafka_bootstrap: str,
    topic: str,
    model_folder: Path,
    answers_pack_folder: Path,
) -> None:
    process = started(
        "run",
        configured(
            postgres={"url": migrated_url},
            web={"port": 0},
            kafka={
                "bootstrap_servers": kafka_bootstrap,
                "topics": [topic],
                "group_id": topic,
                "dead_letter_topic": None,
            },
            replay={"model": str(model_folder), "device": "cpu", "dtype": "float32"},
            pack={"path": str(answers_pack_folder)},
        ),
    )
    unanswered, *unjudged = process.answers("/readyz", 200)["remarks"]
    assert unanswered.startswith(
        "prompts without an answer: skipped as no_answer: set replay.answer_share"
    )
    assert all("(allowed by pack.allow_unjudged: true)" in remark for remark in unjudged)
    assert len(unjudged) == len(Settings().drift.rules)
    assert process.terminate() == 0
    assert "worker.skips_unanswered" in process.said
    assert "pack.not_judged" in process.said


@pytest.mark.slow
def test_a_sidecar_never_ends_by_itself_and_starts_again_what_ended(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    postgres_url: str,
    model_folder: Path,
    pack_folder: Path,
) -> None:
    process = started(
        "sidecar",
        configured(
            postgres={"url": postgres_url},
            kafka={"bootstrap_servers": "127.0.0.1:1"},
            web={"port": 0},
            replay={"model": str(model_folder), "device": "cpu", "dtype": "float32"},
            pack={"path": str(pack_folder)},
        ),
    )
    said = process.wait_for('"sidecar.run_ended"')
    assert "monitor migrate" in said, "why the run was refused is in the same log"
    assert process.runs
    migrate(PostgresSettings(url=postgres_url))
    process.wait_for('"monitor.running"')
    assert process.terminate() == 0
    assert '"monitor.stopped"' in process.said, "the run ended as it does on SIGTERM"


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_model_that_is_being_loaded(
    tmp_path: Path, configured: Callable[..., Path], migrated_url: str
) -> None:
    config = configured(postgres={"url": migrated_url}, web={"port": 0})
    script = tmp_path / "slow_model.py"
    script.write_text(
        "import pathlib, sys, threading\n"
        "from monitor.app import run_loops\n"
        "from monitor.logs import configure\n"
        "from monitor.settings import load\n"
        "settings = load(pathlib.Path(sys.argv[-1]))\n"
        "configure(settings.log)\n"
        "def build(settings):\n"
        "    print('loading', flush=True)\n"
        "    threading.Event().wait()\n"
        "run_loops(settings, ('worker',), build=build)\n",
        encoding="utf-8",
    )
    process = Process(tmp_path / "log", [str(script)], config)
    try:
        process.wait_for("loading")
        assert process.terminate() == 0
        assert '"monitor.stopped"' in process.said
        assert "left_at_the_end_of_its_grace" not in process.said
    finally:
        process.kill()


def test_a_sidecar_with_a_configuration_that_is_wrong_waits_for_a_better_one(
    started: Callable[[str, Path], Process], configured: Callable[..., Path]
) -> None:
    process = started("sidecar", configured(kafka={"bootstrap_server": "typo"}))
    assert "bootstrap_server" in process.wait_for('"sidecar.run_ended"')
    assert process.runs
    assert process.terminate() == 0


@pytest.mark.slow
def test_a_database_without_the_schema_is_refused(
    started: Callable[[str, Path], Process], configured: Callable[..., Path], postgres_url: str
) -> None:
    process = started("courier", configured(postgres={"url": postgres_url}, web={"port": 0}))
    assert process.ended() == 2
    assert "monitor migrate" in process.said
    assert "Traceback" not in process.said


@pytest.mark.slow
def test_a_taken_port_ends_the_process_with_its_name(
    started: Callable[[str, Path], Process], configured: Callable[..., Path], migrated_url: str
) -> None:
    with taken_port() as port:
        process = started("watcher", configured(postgres={"url": migrated_url}, web={"port": port}))
        assert process.ended() == 2
    assert f"cannot listen at 127.0.0.1:{port}" in process.said


@pytest.mark.slow
def test_a_worker_whose_pack_does_not_fit_ends_all_loops_with_code_2(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    migrated_url: str,
    pack_folder: Path,
    other_model_folder: Path,
) -> None:
    config = configured(
        postgres={"url": migrated_url},
        web={"port": 0},
        replay={"model": str(other_model_folder), "device": "cpu", "dtype": "float32"},
        pack={"path": str(pack_folder)},
    )
    process = started("run", config)
    assert process.ended() == 2
    assert "does not fit the model" in process.said
    assert "Traceback" not in process.said


@pytest.mark.slow
def test_run_scores_what_is_produced_and_ends_on_sigterm(
    started: Callable[[str, Path], Process],
    configured: Callable[..., Path],
    database: Engine,
    migrated_url: str,
    kafka_bootstrap: str,
    topic: str,
    model_folder: Path,
    pack_folder: Path,
) -> None:
    config = configured(
        postgres={"url": migrated_url},
        web={"port": 0},
        kafka={
            "bootstrap_servers": kafka_bootstrap,
            "topics": [topic],
            "group_id": topic,
            "dead_letter_topic": None,
        },
        ingest={"chunk_wait": 0.2},
        replay={"model": str(model_folder), "device": "cpu", "dtype": "float32"},
        pack={"path": str(pack_folder)},
    )
    process = started("run", config)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all")
    for number in range(5):
        record = {"id": f"p{number}", "prompt": f"text {number}", "response": "yes"}
        producer.send(topic, json.dumps(record).encode())
    producer.send(topic, b"{")
    producer.close()

    def outcomes() -> dict[str, Any]:
        with transaction(database) as c:
            query = "SELECT outcome, sum(n) FROM monitor_data.ingest_counts GROUP BY outcome"
            return {name: int(n) for name, n in c.execute(text(query))}

    deadline = time.monotonic() + START_SECONDS
    while sum(outcomes().values()) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert outcomes()["scored"] == 5, process.said
    with process.client() as client:
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        assert "monitor_" in client.get("/metrics").text
    assert process.terminate() == 0
    assert "Traceback" not in process.said
