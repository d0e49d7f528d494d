"""Where these benchmarks run: the device, rows at once on it, and processes beside each other.

Everything is read in float32 (no TF32 on a GPU), so that a figure does not depend on the machine beyond the last
bits of matrix products. Greedy answers and trainings are sums of many of these: made on another device they are
other answers and other organisms, drawn from the same kind.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from monitor.replay.model import LoadedModel
from monitor.settings import ReplaySettings

ROWS = {"cpu": 16, "cuda": 128}
"""Rows that answer, or whose answers are weighed, at once."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 …; always in float32")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes of one thread each, for parts that do not need each other",
    )


def in_float32(model: Path, device: str, adapter: Path | None = None) -> ReplaySettings:
    # Some images turn TF32 on by an environment variable.
    torch.set_float32_matmul_precision("highest")
    return ReplaySettings(model=model, adapter=adapter, device=device, dtype="float32")


def rows_at_once(loaded: LoadedModel) -> int:
    return ROWS[loaded.device.type]


def described(device: str) -> str:
    """The machine, as results name it."""
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, float32"


def spread(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], jobs: int
) -> Iterator[_Result]:
    """``work`` of each task, in their order; in ``jobs`` processes, or here when one is enough.

    ``work`` and tasks travel between processes, so they must be importable and picklable.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(work, tasks)
        return
    # A process that was forked cannot use the GPU.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(work, tasks)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside run one thread: more would wait for each other."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
