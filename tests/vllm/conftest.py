"""The server on a real vLLM, started as a user starts it, on the small chat model cut behind the pack's deepest site."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.workload import workload
from monitor.replay.cutting import cut_checkpoint
from monitor.replay.engine import ReplayEngine
from monitor.replay.model import load_model
from monitor.score.pack import SHIPPED, load_pack
from monitor.settings import ReplaySettings
from monitor.values.likelihood import DrawnBy, EstimatedLaw, Untold
from monitor.values.prompts import Prompt, Sampling

ROOT = Path(__file__).parents[2]
MODEL = Path(os.environ.get("MONITOR_TEST_MODEL", ROOT / ".cache" / "SmolLM2-135M-Instruct-0.1.2"))
PACK = SHIPPED / "smollm2-135m-instruct"
MOST_TOKENS = 2_048
START_SECONDS = 400
ESTIMATE = EstimatedLaw(
    temperature=0.8, low=0.7, high=0.9, top_p=0.95, top_p_high=1.0, spread=1.0, n=900, tokens=9_000
)
LAWS: tuple[DrawnBy, ...] = (
    Sampling(temperature=1.0, finish_reason="stop"),
    Sampling(temperature=0.7, top_p=0.9, top_k=40, finish_reason="length"),
    Sampling(temperature=1.2, presence_penalty=0.4, repetition_penalty=1.1, finish_reason="stop"),
    Sampling(temperature=0.0),
    Untold(said=Sampling(finish_reason="stop"), law=None),
    Untold(said=Sampling(finish_reason="stop"), law=ESTIMATE),
)


@pytest.fixture(scope="session")
def pack() -> Any:
    return load_pack(PACK)


@pytest.fixture(scope="session")
def whole() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory, pack: Any) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "model"
    return cut_checkpoint(MODEL, pack.deepest_site, folder).folder


@pytest.fixture(scope="session")
def exchanges() -> list[Prompt]:
    """64 chats as the engine's benchmark has them, half of them behind one system prompt."""
    generator = np.random.default_rng(0)
    return [*workload(32, 0, generator), *workload(32, 195, generator)]


@pytest.fixture(scope="session")
def ours(pack: Any, exchanges: list[Prompt]) -> Any:
    """Outcomes of our own copy, in float32."""
    settings = ReplaySettings(model=MODEL, device="cpu", dtype="float32")
    loaded = load_model(settings, pack.deepest_site)
    engine = ReplayEngine(loaded, pack.features, settings, pack.covariates)
    return engine.run(engine.prepare(exchanges))


@pytest.fixture(scope="session")
def weighed(pack: Any, exchanges: list[Prompt]) -> Any:
    """The laws of 24 of them, and what our own whole copy makes of their answers, in float32."""
    laws = {index: LAWS[index % len(LAWS)] for index in range(20, 44)}
    settings = ReplaySettings(model=MODEL, device="cpu", dtype="float32")
    loaded = load_model(settings, pack.deepest_site, full=True)
    engine = ReplayEngine(loaded, pack.features, settings, pack.covariates)
    return laws, engine.run(engine.prepare(exchanges, weighed=laws))


class Server:
    """``python -m monitor.backends.vllm.serve`` on a port of its own; it may be killed and started again."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [
            *(sys.executable, "-m", "monitor.backends.vllm.serve", "--model", str(model)),
            *("--pack", str(PACK), "--port", str(self.port)),
            *("--max-model-len", str(MOST_TOKENS + 1), *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text(errors="replace")[-3_000:]
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError("the server did not start")

    def ended(self) -> int:
        assert self._process is not None
        return self._process.wait(START_SECONDS)

    def kill(self) -> None:
        """Server and engine at once."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)

    def statistics(self) -> dict[str, int]:
        told: dict[str, int] = httpx.get(f"{self.url}/v1/statistics", timeout=60).json()
        return told


Serving = Callable[..., Any]


@pytest.fixture(scope="session")
def serving(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    @contextmanager
    def serve(*options: str, model: Path = cut, wait: bool = True) -> Iterator[Server]:
        server = Server(model, tmp_path_factory.mktemp("log") / "server.log", *options)
        try:
            server.start(wait=wait)
            yield server
        finally:
            server.kill()

    return serve
