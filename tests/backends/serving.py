"""The server's real face with a reader that needs no vLLM, in a thread or as a process that may die."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from monitor.backends.vllm import wire
from monitor.backends.vllm.face import Read, create_app
from monitor.replay.outcome import Reading
from monitor.replay.regions import Tokens
from monitor.score.pack import Pack

DIES_AT = "MONITOR_TEST_DIES_AT"
"""The process ends in the middle of the call in which it has read so many rows."""


def about(pack: Pack, **changes: Any) -> wire.About:
    given: dict[str, Any] = {
        "version": wire.VERSION,
        "pack_id": pack.pack_id,
        "model_hash": str(pack.model.weights_hash),
        "model_id": pack.model.model_id,
        "dtype": "float32",
        "device": "cpu",
        "engine": "stub-1",
        "max_tokens": 2_048,
        "no_weighing": "it serves a copy that was cut behind block 2",
    }
    return wire.About(**(given | changes))


def of_its_ids(row: Tokens, columns: int) -> Reading:
    """Readings that tell which tokens were read, and nothing of a model."""
    drawn = np.random.default_rng(list(row.ids)).standard_normal(columns).astype(np.float32)
    return Reading(drawn, np.full(columns, len(row.ids), dtype=np.int64))


def residuals(loaded: Any, ids: Sequence[int], sites: Sequence[int]) -> dict[int, Any]:
    """The residual stream [t, d] of one row at each site, by our own copy's forward pass."""
    from monitor.replay.forward import Forward
    from monitor.replay.plan import plan

    found: dict[int, Any] = {}

    def start(_members: tuple[int, ...], _total: int) -> Any:
        return lambda site, residual: found.update({site: residual.clone()})

    work = plan([tuple(ids)], batch_tokens=len(ids), min_shared_tokens=None)
    Forward(loaded, work, sites, start, lambda _: None).run()
    return found


def reader(columns: int) -> Read:
    async def read(rows: Sequence[wire.Asked]) -> list[wire.Answered]:
        return [wire.Answered(of_its_ids(row.tokens, columns)) for row in rows]

    return read


async def nothing_counted() -> dict[str, int]:
    return {}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def answering(app: Any, port: int = 0) -> Iterator[str]:
    """The face in a thread of this process."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(10)


def process(pack: Pack, port: int, *, dies_at: int = 0) -> subprocess.Popen[bytes]:
    """A process that answers on ``port`` once this returns."""
    told = ",".join((pack.pack_id, str(pack.model.weights_hash), str(len(pack.features))))
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.backends.serving", str(port), told],
        env=os.environ | {DIES_AT: str(dies_at), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    _wait(f"http://127.0.0.1:{port}")
    return started


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError("the stub did not start")


def _main(port: int, pack_id: str, model_hash: str, columns: int) -> None:
    dies_at, seen = int(os.environ[DIES_AT]), 0

    async def read(rows: Sequence[wire.Asked]) -> list[wire.Answered]:
        nonlocal seen
        found = []
        for row in rows:
            seen += 1
            if seen == dies_at:
                os._exit(9)
            found.append(wire.Answered(of_its_ids(row.tokens, columns)))
            await asyncio.sleep(0)
        return found

    told = wire.About(
        version=wire.VERSION,
        pack_id=pack_id,
        model_hash=model_hash,
        model_id="stub",
        dtype="float32",
        device="cpu",
        engine="stub-1",
        max_tokens=2_048,
        no_weighing="it serves a copy that was cut behind block 2",
    )
    uvicorn.run(create_app(told, read, nothing_counted), port=port, log_level="critical")


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2].split(",")[:2], int(sys.argv[2].split(",")[2]))


def app(pack: Any, read: Any = None, key: str | None = None, **changes: Any) -> Any:
    columns = len(pack.features) + len(pack.covariates)
    return create_app(about(pack, **changes), read or reader(columns), nothing_counted, key)
