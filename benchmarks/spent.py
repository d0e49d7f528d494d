"""CPU seconds by part: this process's threads, and the servers that are its children.

Wall time of a busy machine says little; what a part has spent of a core says what it costs anywhere.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

import psutil

THREADS: Final[Mapping[str, str]] = {
    "kafka-source": "kafka client",
    "kafka-io": "kafka client",
    "fetch": "fetch",
    "worker": "replay",
    "store": "store",
}
"""By what a thread's name begins with, the part of the worker that it is."""
SERVERS: Final[Mapping[str, str]] = {
    "postgres": "postgres",
    "noida-db": "broker",
    "java": "broker",
}


def cpu_seconds() -> dict[str, float]:
    """Of each part, in all up to now. A thread that has ended counts no more."""
    spent: defaultdict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        part = next((p for start, p in THREADS.items() if thread.name.startswith(start)), None)
        if part is not None and thread.ident is not None:
            spent[part] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    for process in psutil.Process().children(recursive=True):
        try:
            part, used = SERVERS.get(process.name()), process.cpu_times()
        except psutil.NoSuchProcess:  # a server's own child that ended just now
            continue
        if part is not None:
            spent[part] += used.user + used.system
    return dict(spent)


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was spent between two readings, by part."""
    return {part: after[part] - before.get(part, 0.0) for part in sorted(after)}
