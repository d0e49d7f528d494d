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
from typing import Any, TypeVar

import torch

from monitor.replay.model import LoadedModel
from monitor.settings import ReplaySettings

ROWS = {"cpu": 16, "cuda": 128}
"""Rows that answer, or whose answers are weighed, at once."""
ALONE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What makes a process that inherits it run one thread."""

_Task = TypeVar("_Task")
_Shared = TypeVar("_Shared")
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
    """``work`` of each task, in their order; as `spread_over`, with nothing shared."""
    for _, found in spread_over(_done, work, tasks, jobs):
        yield found


def spread_over(
    work: Callable[[_Shared, _Task], _Result], shared: _Shared, tasks: Sequence[_Task], jobs: int
) -> Iterator[tuple[_Task, _Result]]:
    """Every task with ``work(shared, task)``, in order; in ``jobs`` processes, or here when one is enough.

    All three travel between processes, so they must be importable and picklable; ``shared`` goes to each once.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            yield task, work(shared, task)
        return
    # A process that was forked cannot use the GPU.
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_begin, initargs=(work, shared)
        ) as pool,
    ):
        yield from zip(tasks, pool.map(_one, tasks), strict=True)


_begun: list[tuple[Callable[[Any, Any], Any], Any]] = []
"""Of a process that was started: the work, and what all of its tasks share."""


def _begin(work: Callable[[Any, Any], Any], shared: Any) -> None:
    _begun.append((work, shared))


def _one(task: Any) -> Any:
    ((work, shared),) = _begun
    return work(shared, task)


def _done(work: Callable[[_Task], _Result], task: _Task) -> _Result:
    return work(task)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside run one thread: more would wait for each other."""
    before = {name: os.environ.get(name) for name in ALONE}
    os.environ.update(ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
