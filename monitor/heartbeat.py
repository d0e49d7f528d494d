"""When each loop of this process last went round; `/livez` rests on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Heartbeat:
    """When each loop of this process last went round. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}

    def beat(self, loop: str) -> None:
        """The loop is alive. The first beat makes it known."""
        with self._lock:
            self._beats[loop] = self._clock()

    def retire(self, loop: str) -> None:
        """The loop has ended as it should: it is watched no more."""
        with self._lock:
            self._beats.pop(loop, None)

    def age(self, loop: str, now: float | None = None) -> float | None:
        """Seconds since the loop's last beat, on the clock given when built; None before the first."""
        with self._lock:
            beat = self._beats.get(loop)
        return None if beat is None else (self._clock() if now is None else now) - beat

    def ages(self, now: float | None = None) -> dict[str, float]:
        """`age` of every loop that has beaten."""
        with self._lock:
            beats = dict(self._beats)
        now = self._clock() if now is None else now
        return {loop: now - beat for loop, beat in beats.items()}
