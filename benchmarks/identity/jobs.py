"""Work spread over processes, a thread each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Found = TypeVar("Found")

_work: list[tuple[Callable[[Any, Any], Any], Any]] = []
"""Of this process: the function and what all of its calls share."""


def spread_over(
    function: Callable[[Shared, Item], Found], shared: Shared, items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Found]]:
    """Every item with ``function(shared, item)``, in order. ``shared`` goes to each process once.

    With several jobs all three must be picklable, and the function stand in a module.
    """
    if jobs <= 1:
        for item in items:
            yield item, function(shared, item)
        return
    # Inherited by the processes, which read it when they load their libraries.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Not forked: a process that has begun on a GPU or with threads cannot be.
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(function, shared)
    ) as pool:
        yield from zip(items, pool.map(_one, items), strict=True)


def _begin(function: Callable[[Any, Any], Any], shared: Any) -> None:
    _work.append((function, shared))


def _one(item: Any) -> Any:
    ((function, shared),) = _work
    return function(shared, item)
